//! `nelly isolated`, `nelly host` and `nelly config show isolated`, up to the start of the monitor,
//! in whose place a script keeps what it is handed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// Keeps the configuration that it is handed beside itself.
const MONITOR: &str = r#"#!/bin/sh
for file in /proc/self/fd/*; do
  case $(readlink "$file") in /memfd:nelly-config*) cat "$file" >"$0.config" ;; esac
done
"#;

/// Variables of all tests: nothing of the network, whose program is another package's.
const QUIET: &[(&str, &str)] = &[("DISABLE_CONTAINERD_CSI_PROXY", "1"), ("VM_PASSWORD", "open sesame")];

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("monitor"), MONITOR).unwrap();
        fs::set_permissions(place.path("monitor"), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `nelly` with these words and variables, perhaps behind another program.
    fn command(&self, before: &[&str], words: &[&str], variables: &[(&str, &str)]) -> Command {
        let all = [before, &[env!("CARGO_BIN_EXE_nelly")], words].concat();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).current_dir(&self.0).env_clear().env("NELLY_HOME", self.path("home"));
        command.env("PATH", "/usr/bin:/bin").env("NELLY_MONITOR", self.path("monitor"));
        command.envs(QUIET.iter().copied()).envs(variables.iter().copied());
        command
    }

    fn nelly(&self, words: &[&str], variables: &[(&str, &str)]) -> Output {
        self.command(&[], words, variables).output().unwrap()
    }

    /// What is said on stdout.
    #[track_caller]
    fn said(&self, words: &[&str], variables: &[(&str, &str)]) -> String {
        let done = self.nelly(words, variables);
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// The message of a refusal with this code; nothing is left behind.
    #[track_caller]
    fn refused(&self, words: &[&str], variables: &[(&str, &str)], code: i32) -> String {
        let before = self.names();
        let done = self.nelly(words, variables);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!((done.status.code(), self.names()), (Some(code), before), "{words:?}: {said}");
        assert!(done.stdout.is_empty() && !said.contains("panicked"), "{said}");
        said
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_dry_run_prints_the_command_of_boot_and_touches_nothing() {
    let place = Place::new();
    let before = place.names();
    let variables = [
        ("DRY_RUN_ONLY", "1"),
        ("DIR_K3S_VAR", "k3s"),
        ("VM_USERNAME", "ada"),
        ("KVM_MEMORY", "4"),
        ("KVM_CPU_TYPE", "host"),
    ];
    // Whatever would make a file or a socket, or begin another program.
    let calls = "trace=open,openat,creat,mkdir,mkdirat,socket,memfd_create,rename,renameat2,link,linkat,symlinkat,\
                 unlink,unlinkat,truncate,ftruncate,fork,vfork,execve";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/stderr", "-e", calls];
    let done = place.command(&strace, &["isolated", "--", "--timeout", "1h"], &variables).output().unwrap();
    let (out, calls) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    assert!(done.status.success(), "{calls}");
    assert!(
        out.starts_with("nelly boot --image image/debian-12-genericcloud-")
            && out.trim_end().ends_with("--timeout 1h"),
        "{out}"
    );
    for part in [
        ",overlay=image/isolated-disk.qcow2,size=3G --user ada ",
        "--memory 4G",
        "-p 5555:22",
        "--share host0=k3s/var/lib/kubelet",
        "--password-file <(printf %s \"$VM_PASSWORD\")",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(
        !out.contains("sesame") && calls.contains("warning: KVM_CPU_TYPE has no meaning here"),
        "{calls}"
    );
    let traced: Vec<_> = calls.lines().filter(|line| !line.starts_with("nelly: ")).collect();
    assert!(traced.iter().any(|line| line.contains("execve(")) && traced.len() > 3, "{calls}");
    for line in traced {
        let reads = line.contains("O_RDONLY") && !line.contains("O_CREAT") && !line.contains("O_TMPFILE");
        let own = line.contains("execve(") && line.contains("/nelly\"");
        let tells = line.contains(" +++ ") || line.contains("/proc/self/") || line.contains("exited");
        assert!(reads || own || tells, "{line}");
    }
    assert_eq!(place.names(), before);
    assert_eq!(place.said(&["isolated", "--dry-run", "--", "--timeout", "1h"], &variables[1..]), out);
    // As the line of the shell, too, which bash finds words in.
    let words = format!("set -- {}; echo $#", out.trim_end());
    let done = place.command(&["bash", "-c", &words], &[], &[]).output().unwrap();
    assert!(
        done.status.success() && String::from_utf8(done.stdout).unwrap().trim().parse::<u32>().unwrap() > 20
    );
}

#[test]
fn config_show_tells_each_setting_and_its_source() {
    let place = Place::new();
    let before = place.names();
    let variables = [("KVM_CPU", "3"), ("DEFAULT_KVM_PORTS_REDIRECT", "80:8080")];
    let text = place.said(&["config", "show", "isolated"], &variables);
    let words = |key: &str| {
        let line =
            text.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key}: {text}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(words("cpus"), "cpus 3 $KVM_CPU");
    assert_eq!(words("ports"), "ports 127.0.0.1:80:8080 $DEFAULT_KVM_PORTS_REDIRECT");
    assert_eq!(words("password"), "password (hidden) $VM_PASSWORD");
    assert_eq!(words("memory"), "memory 2G default");
    assert!(!text.contains("sesame") && !text.contains("$6$"), "{text}");
    let json: Value =
        serde_json::from_str(&place.said(&["config", "show", "--json", "host"], &variables)).unwrap();
    let row = |key: &str| json.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
    assert_eq!((&row("cpus")["value"], &row("cpus")["env"]), (&"3".into(), &"KVM_CPU".into()));
    assert_eq!(row("disk_size")["source"], "profile host");
    assert!(row("cpus")["variables"].as_array().unwrap().contains(&"DEFAULT_KVM_LINUX_CPU".into()));
    assert!(!json.to_string().contains("sesame"), "{json}");
    // The settings of nelly itself are still there.
    assert!(place.said(&["config", "show"], &[]).contains("log_level"));
    assert_eq!(place.names(), before);
}

#[test]
fn a_bare_kernel_is_handed_to_the_monitor() {
    let place = Place::new();
    fs::create_dir_all(place.path("image/final_artifact")).unwrap();
    fs::write(place.path("image/Image"), "a kernel").unwrap();
    let variables = [
        ("RUN_BARE_KERNEL", "1"),
        ("DEFAULT_RIMD_KERNEL_FILENAME", "Image"),
        ("ADDITIONAL_KERNEL_COMMANDLINE", "quiet"),
        ("KVM_MEMORY", "512M"),
        // Nothing listens there.
        ("DEFAULT_RIMD_ARTIFACT_URL", "http://127.0.0.1:1/artifacts"),
    ];
    let said = place.refused(&["isolated"], &variables, 125);
    assert!(
        said.contains("no initrd image/final_artifact/initramfs")
            && said.contains("DEFAULT_RIMD_IMAGE_FILENAME"),
        "{said}"
    );
    fs::write(place.path("image/final_artifact/initramfs.linux_arm64.cpio"), "an initrd").unwrap();
    let done = place.nelly(&["isolated", "--", "--dry-run"], &variables);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    // The program of the user-mode network is another package's, and may not be there.
    if done.status.success() {
        let config: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(config["memory_bytes"], 512 << 20);
        let line = config["command_line"].as_str().unwrap();
        assert!(
            line.starts_with("console=ttyS0 ip=10.0.2.15::10.0.2.2:") && line.ends_with(" quiet"),
            "{line}"
        );
    } else {
        assert!(said.contains("nelly-usernet"), "{said}");
    }
}

#[test]
fn what_cannot_be_is_said_with_what_to_do() {
    let place = Place::new();
    // Nothing listens there.
    let image = [("DEFAULT_IMAGE", "d.qcow2"), ("DEFAULT_IMAGE_SOURCE_URL", "http://127.0.0.1:1/images/")];
    let said = place.refused(&["isolated"], &image, 125);
    assert!(said.contains("there is no image image/d.qcow2"), "{said}");
    assert!(said.contains("cannot fetch http://127.0.0.1:1/images/d.qcow2: cannot connect"), "{said}");
    let said = place.refused(&["isolated", "--", "--dry-run"], &image, 125);
    assert!(
        said.contains("there is no image") && said.contains("without --dry-run, it is fetched"),
        "{said}"
    );
    for (words, variables, code, what) in [
        (&["isolated"][..], &[("KVM_MEMORY", "lots")][..], 125, "KVM_MEMORY=lots: is no size"),
        (&["config", "show", "host"], &[("KVM_MEMORY", "lots")], 1, "KVM_MEMORY=lots: is no size"),
        (&["isolated", "--dry-run", "--", "--cpus", "3"], &[], 125, "the flags for nelly boot: "),
        (&["isolated", "--dry-run", "--", "--frobnicate"], &[], 125, "'--frobnicate'"),
        (&["isolated", "web"], &[], 125, "'web'"),
        (
            &["host", "--dry-run"],
            &[("ENABLE_K3S_DIOD", "1"), ("K3S_VERSION_INSTALL", "/usr/bin/")],
            125,
            "/usr/bin/ is no file, and it is to be the program of k3s",
        ),
        (&["config", "show", "web"], &[], 2, "isolated-bare"),
        (
            &["isolated"],
            &[("VM_PASSWORD_ENCRYPTED", "clear")],
            125,
            "VM_PASSWORD_ENCRYPTED: the hashed password",
        ),
    ] {
        let said = place.refused(words, variables, code);
        assert!(said.contains(what), "{words:?}: {said}");
    }
}
