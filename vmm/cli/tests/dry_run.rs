//! `run --dry-run`, `create` and `doctor` on any host: kernel and initramfs are files of no use,
//! and nothing is started.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

struct Home(tempfile::TempDir);

impl Home {
    /// With assets in the data directory, and a directory to run.
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let data = home.0.path().join("data");
        fs::create_dir_all(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        let manifest = json!({ "schema": 1, "build_id": "b1", "kernel": "vmlinux", "platform": "mptable",
            "initramfs": "i.cpio", "builtin": "busybox" });
        fs::write(data.join("assets.json"), manifest.to_string()).unwrap();
        fs::write(data.join("vmlinux"), "k").unwrap();
        fs::write(data.join("i.cpio"), "i").unwrap();
        fs::create_dir_all(home.0.path().join("tree/bin")).unwrap();
        fs::write(home.0.path().join("tree/bin/x"), "x").unwrap();
        home
    }

    /// The image.
    fn tree(&self) -> String {
        format!("rootfs:{}", self.0.path().join("tree").display())
    }

    fn by(&self, program: PathBuf, words: &[&str]) -> Output {
        let mut command = Command::new(program);
        let mut words = words.to_vec();
        if let ["run" | "create", ..] = words[..] {
            // The program of networks is another package's, which may not be built.
            words.splice(1..1, ["--net", "none"]);
        }
        command.args(words).env_clear().env("NELLY_HOME", self.0.path()).env("NELLY_MONITOR", "/bin/true");
        command.output().unwrap()
    }

    fn run(&self, words: &[&str]) -> Output {
        self.by(env!("CARGO_BIN_EXE_nelly").into(), words)
    }

    #[track_caller]
    fn refused(&self, words: &[&str], code: i32) -> String {
        let done = self.run(words);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(code), "{words:?}: {said}");
        assert!(done.stdout.is_empty(), "{words:?}");
        said
    }

    #[track_caller]
    fn planned(&self, flags: &[&str]) -> Value {
        let tree = self.tree();
        let words = [&["run", "--dry-run"], flags, &[tree.as_str(), "x"]].concat();
        let done = self.run(&words);
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    }
}

#[test]
fn a_dry_run_shows_the_user_and_what_only_the_guest_knows() {
    let home = Home::new();
    let of = |flags: &[&str]| {
        let planned = home.planned(flags);
        let unknown = planned["unknown"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap());
        let unknown: Vec<_> =
            unknown.filter_map(|key| key.strip_prefix("container.")).map(str::to_owned).collect();
        (planned["container"]["process"]["user"].clone(), unknown.join(" "))
    };
    assert_eq!(of(&[]), (json!({ "uid": 0, "gid": 0 }), String::new()));
    assert_eq!(of(&["-u", "1000:100"]), (json!({ "uid": 1000, "gid": 100 }), String::new()));
    assert_eq!(of(&["-u", "1000"]), (json!({ "uid": 1000, "gid": null }), "process.user.gid".into()));
    let (user, unknown) = of(&["-u", "web:www", "--group-add", "audio", "--group-add", "7"]);
    assert_eq!(user, json!({ "uid": null, "gid": null, "username": "web", "groupname": "www" }));
    assert_eq!(unknown, "process.user.uid process.user.gid process.user.additionalGids");
    let (_, unknown) = of(&["--sysctl", "net.core.no=1", "--tmpfs", "/a", "--tmpfs", "/b:size=64MB"]);
    assert_eq!(unknown, "linux.sysctl.net.core.no mounts./a");
}

#[test]
fn a_dry_run_refuses_what_the_run_refuses_and_each_before_the_host() {
    let home = Home::new();
    let tree = home.tree();
    for (flags, parts) in [
        (&["--tmpfs", "/x:size=lots"][..], &["--tmpfs", "size=lots"][..]),
        (&["--tmpfs", "/x:colour=red"], &["--tmpfs", "colour=red"]),
        (&["--mount", "type=tmpfs,target=/x,tmpfs-size=1x"], &["--mount", "size=1x"]),
        (&["--mount", "type=tmpfs,target=/x,tmpfs-mode=9"], &["--mount", "mode=9"]),
        (&["-u", "4294967295"], &["user", "4294967295"]),
        (&["--group-add", "4294967295"], &["--group-add"]),
        (&["--sysctl", "net..ip=1"], &["--sysctl"]),
        (&["--read-only", "--storage", "1G"], &["--storage"]),
        (&["--health-timeout", "5s"], &["--health-timeout"]),
    ] {
        for dry in [&["--dry-run"][..], &[]] {
            // Some of it is found after the image was unpacked, which comes after the look at KVM.
            let late = flags.contains(&"--storage") || flags.contains(&"--health-timeout");
            if late && dry.is_empty() {
                continue;
            }
            let said = home.refused(&[&["run"], dry, flags, &[&tree, "x"]].concat(), 125);
            assert!(
                parts.iter().all(|part| said.contains(part)) && !said.contains("KVM"),
                "{flags:?}: {said}"
            );
        }
        let said = home.refused(&[&["create"], flags, &[tree.as_str(), "x"]].concat(), 2);
        assert!(parts.iter().all(|part| said.contains(part)), "{flags:?}: {said}");
    }
    let said = home.refused(&["run", "--rm", "oci:/nonexistent/image", "x"], 125);
    assert!(said.contains("/nonexistent/image") && !said.contains("KVM"), "{said}");
    let said = home.refused(&["run", "--rm", &tree], 125);
    assert!(said.contains("no command") && !said.contains("KVM"), "{said}");
    let said = home.refused(&["run", "--pull", "never", "app:1"], 125);
    assert!(said.contains("`nelly image pull") || said.contains("nelly image pull app:1"), "{said}");
    let said = home.refused(&["run", "--dry-run", "app:1"], 125);
    assert!(said.contains("--dry-run fetches nothing") && said.contains("as nelly run without"), "{said}");
}

#[test]
fn what_is_not_started_needs_no_kvm() {
    let home = Home::new();
    let tree = home.tree();
    let made = home.run(&["create", "--name", "web", "--label", "a=b", &tree, "x"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let listed = home.run(&["ps", "-a", "--filter", "label=a=b"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("web") && listed.contains("Created"), "{listed}");
    let said = home.refused(&["run", "--dry-run", "--name", "web", &tree, "x"], 125);
    assert!(said.contains("web") && said.contains("taken"), "{said}");
}

#[test]
fn doctor_checks_all_parts_and_advises_make_in_a_checkout_alone() {
    let home = Home::new();
    let line = |said: &str, check: &str| {
        let line = said.lines().find(|line| line.split_whitespace().nth(1) == Some(check));
        line.unwrap_or_else(|| panic!("no {check} in {said}")).to_owned()
    };
    let done = home.run(&["doctor"]);
    assert_eq!(done.status.code(), Some(1), "the built-in image is not there");
    let said = String::from_utf8(done.stdout).unwrap();
    for check in ["kvm", "monitor", "keeper", "kernel", "initramfs", "image", "storage", "memory"] {
        line(&said, check);
    }
    assert!(line(&said, "image").starts_with("fail") && line(&said, "storage").starts_with("warn"), "{said}");
    assert!(said.contains("make -C "), "this program lies in a checkout: {said}");
    // Where a package would have put it.
    let bin = home.0.path().join("usr/bin");
    fs::create_dir_all(&bin).unwrap();
    // By another process: what this one has open to write, its other threads pass on to theirs.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_nelly")).arg(bin.join("nelly")).status();
    assert!(copied.unwrap().success());
    let done = home.by(bin.join("nelly"), &["doctor"]);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(line(&said, "keeper").starts_with("fail") && !said.contains("make"), "{said}");
    assert!(said.contains("install Nelly again"), "{said}");
}
