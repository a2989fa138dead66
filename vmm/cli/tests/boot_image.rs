//! `nelly boot --image` up to the start of the monitor, in whose place a script keeps what it is
//! handed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Keeps the configuration and the memory files it is handed beside itself.
const MONITOR: &str = r#"#!/bin/sh
for file in /proc/self/fd/*; do
  case $(readlink "$file") in
    /memfd:kernel*) cat "$file" >"$0.kernel" ;;
    /memfd:initrd*) cat "$file" >"$0.initrd" ;;
    /memfd:nelly-config*) cat "$file" >"$0.config" ;;
    /memfd:seed*) cat "$file" >"$0.seed" ;;
  esac
done
"#;

const GRUB: &str = "
menuentry 'First' --id first { linux /boot/vmlinuz-1 root=/dev/vda ro console=ttyS0; initrd /boot/early.img /boot/initrd.img-1 }
menuentry 'Second' --id second { linux /boot/vmlinuz-2 root=/dev/vda }
";

struct Place(tempfile::TempDir);

impl Place {
    /// With an ext4 image `disk.raw` of 16 MiB that boots by GRUB.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let tree = place.path("tree");
        for directory in ["boot/grub", "etc"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        fs::write(tree.join("etc/fstab"), "/dev/vda / ext4 rw 0 1\n").unwrap();
        fs::write(tree.join("boot/grub/grub.cfg"), GRUB).unwrap();
        for (name, bytes) in [
            ("vmlinuz-1", "kernel one"),
            ("vmlinuz-2", "kernel two"),
            ("early.img", "early"),
            ("initrd.img-1", "late"),
        ] {
            fs::write(tree.join("boot").join(name), bytes).unwrap();
        }
        let mut make = Command::new("mke2fs");
        make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-F", "-t", "ext4", "-d"]);
        assert!(make.arg(&tree).arg(place.path("disk.raw")).arg("16M").status().unwrap().success());
        fs::remove_dir_all(&tree).unwrap();
        fs::write(place.path("monitor"), MONITOR).unwrap();
        fs::set_permissions(place.path("monitor"), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn nelly(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(words).current_dir(&self.0).env_clear().env("TMPDIR", self.0.path());
        command.env("NELLY_HOME", self.path("home")).env("NELLY_MONITOR", self.path("monitor"));
        command
    }

    /// The configuration that a boot with these flags would have.
    #[track_caller]
    fn planned(&self, flags: &[&str]) -> Value {
        let done = self.nelly(&[&["boot", "--dry-run"], flags].concat());
        assert!(done.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    }

    /// The message of a boot that is refused. Nothing is left behind.
    #[track_caller]
    fn refused(&self, flags: &[&str]) -> String {
        let before = self.names();
        let done = self.nelly(&[&["boot"], flags].concat());
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(125), "{flags:?}: {said}");
        assert!(done.stdout.is_empty() && !said.contains("panicked"), "{flags:?}: {said}");
        assert_eq!(self.names(), before, "{flags:?}");
        said
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }

    fn kept(&self, name: &str) -> String {
        fs::read_to_string(self.path("monitor").with_extension(name)).unwrap()
    }
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[test]
fn the_monitor_is_handed_what_the_images_boot_loader_would_take() {
    let place = Place::new();
    let before = fs::read(place.path("disk.raw")).unwrap();
    let names = place.names();
    let planned = place.planned(&["--image", "disk.raw", "--append", "quiet", "--disk", "disk.raw,ro"]);
    assert_eq!(planned["command_line"], "root=/dev/vda ro console=ttyS0 quiet");
    assert_eq!((&planned["platform"], &planned["on_reset"]), (&"acpi".into(), &"reboot".into()));
    assert_eq!(
        (&planned["disks"][0]["format"], &planned["disks"][1]["read_only"]),
        (&"qcow2".into(), &true.into())
    );
    place.planned(&["--image", "disk.raw,overlay=over.qcow2,size=20M"]);
    assert_eq!(place.names(), names, "a dry run makes nothing");

    let done = place.nelly(&["boot", "--image", "disk.raw,overlay=over.qcow2,size=20M"]);
    assert!(done.status.success() && !said(&done).contains("is gone"), "{}", said(&done));
    assert_eq!((place.kept("kernel"), place.kept("initrd")), ("kernel one".into(), "early\0\0\0late".into()));
    let config: Value = serde_json::from_str(&place.kept("config")).unwrap();
    assert_eq!(config["disks"][0]["backing"].as_array().unwrap().len(), 1, "{config}");
    let info = place.nelly(&["disk", "info", "--json", "over.qcow2"]);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["size_bytes"], 20 << 20);
    // Again, of the overlay that is there now; and of a link, kept by nobody.
    assert!(place.nelly(&["boot", "--image", "disk.raw,overlay=over.qcow2"]).status.success());
    symlink(place.path("disk.raw"), place.path("link.raw")).unwrap();
    let done = place.nelly(&["boot", "--image", "link.raw"]);
    assert!(done.status.success() && said(&done).contains("overlay=PATH keeps it"), "{}", said(&done));
    assert!(fs::read(place.path("disk.raw")).unwrap() == before, "the base was written");
}

#[test]
fn a_seed_lets_in_the_keys_of_ssh_and_is_one_instance_for_each_disk() {
    let place = Place::new();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    fs::create_dir(place.path(".ssh")).unwrap();
    fs::write(place.path(".ssh/id_ed25519.pub"), format!("{key} login@laptop\n")).unwrap();
    let seed = |disk: &str| {
        let words = ["boot", "--image", disk, "--hostname", "web"];
        let done = place.command(&words).env("HOME", place.0.path()).output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        for text in [".ssh/id_ed25519.pub may log in", "the machine has no network: add -p 2222:22"] {
            assert!(said(&done).contains(text), "{}", said(&done));
        }
        ["user-data", "meta-data"].map(|name| {
            let mut read = Command::new("mtype");
            read.arg("-i").arg(place.path("monitor.seed")).arg(format!("::{name}"));
            let text = read.output().unwrap().stdout;
            String::from_utf8(text).unwrap()
        })
    };
    let first = seed("disk.raw,overlay=first.qcow2");
    let config: Value = serde_json::from_str(first[0].strip_prefix("#cloud-config\n").unwrap()).unwrap();
    // Without its comment.
    assert_eq!(config["ssh_authorized_keys"], serde_json::json!([key]));
    assert!(first[1].contains("instance-id") && first[1].contains("\"web\""), "{}", first[1]);
    assert_eq!(seed("disk.raw,overlay=first.qcow2"), first);
    let other = seed("disk.raw,overlay=other.qcow2");
    assert_eq!(other[0], first[0]);
    assert_ne!(other[1], first[1]);
}

/// A copy of a used disk has the state of its cloud-init, too: with the same `instance-id` both
/// machines would have the same host keys and the same machine-id.
#[test]
fn a_copy_of_a_disk_is_an_instance_of_its_own() {
    let place = Place::new();
    fs::write(place.path("user"), "#cloud-config\n{}\n").unwrap();
    fs::write(place.path("network"), "version: 2\n").unwrap();
    // All that the seed says is the same, and no network's hardware address stands in it.
    let given = ["--user-data", "user", "--network-config", "network"];
    let id = |disk: &str| {
        let done = place.nelly(&[&["boot", "--image", disk], &given[..]].concat());
        assert!(done.status.success(), "{}", said(&done));
        let seed = place.path("monitor.seed");
        let read = Command::new("mtype").arg("-i").arg(seed).arg("::meta-data").output().unwrap();
        let data: Value = serde_json::from_slice(&read.stdout).unwrap();
        data["instance-id"].as_str().unwrap().to_owned()
    };
    let first = id("disk.raw,overlay=first.qcow2");
    fs::copy(place.path("first.qcow2"), place.path("clone.qcow2")).unwrap();
    fs::copy(place.path("disk.raw"), place.path("copy.raw")).unwrap();
    let mut seen = vec![
        first.clone(),
        id("disk.raw,overlay=clone.qcow2"),
        id("disk.raw,rw"),
        id("copy.raw,rw"),
        // One of which nothing is kept is another one each time.
        id("disk.raw"),
        id("disk.raw"),
    ];
    assert_eq!(id("disk.raw,overlay=first.qcow2"), first);
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "{seen:?}");
}

#[test]
fn kernel_initrd_and_entry_are_a_users_to_choose() {
    let place = Place::new();
    let second = place.planned(&["--image", "disk.raw", "--entry", "second"]);
    assert_eq!(second["command_line"], "root=/dev/vda console=ttyS0");
    assert!(second["initrd"].is_null(), "{second}");
    for name in ["Second", "/boot/vmlinuz-2"] {
        assert_eq!(place.planned(&["--image", "disk.raw", "--entry", name]), second);
    }
    fs::write(place.path("own"), "own").unwrap();
    let own = ["--kernel", "own", "--initrd", "own"];
    let planned = place.planned(&[&["--image", "disk.raw"], &own[..]].concat());
    let own = serde_json::json!({ "path": "own" });
    assert_eq!((&planned["kernel"], &planned["initrd"]), (&own, &own), "{planned}");
    let planned = place.planned(&["--image", "disk.raw", "--on-reset", "exit", "--platform", "mptable"]);
    assert_eq!((&planned["platform"], &planned["on_reset"]), (&"mptable".into(), &"exit".into()));
    let refused = place.refused(&["--image", "disk.raw", "--entry", "third"]);
    assert!(refused.contains("\"third\"") && refused.contains("First; Second"), "{refused}");
}

#[test]
fn what_boots_nothing_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let whole = fs::read(place.path("disk.raw")).unwrap();
    fs::write(place.path("empty.raw"), "").unwrap();
    fs::write(place.path("cut.raw"), &whole[..1 << 20]).unwrap();
    fs::write(place.path("zeroes.raw"), vec![0; 1 << 20]).unwrap();
    fs::write(place.path("cut.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
    fs::write(place.path("other.qcow2"), b"no image").unwrap();
    for (value, what) in [
        ("nowhere.raw", "No such file"),
        ("home/..", "directory"),
        ("/dev/null", "device"),
        ("empty.raw", "is empty"),
        ("cut.raw", "cut.raw"),
        ("zeroes.raw,overlay=new.qcow2,size=1G", "no kernel was found; looked for"),
        ("cut.qcow2", "cut.qcow2"),
        ("other.qcow2,overlay=new.qcow2", "other.qcow2"),
        ("disk.raw,ro,size=1G", "only read"),
        ("disk.raw,cache=none", "unknown"),
        (",ro", "no file"),
    ] {
        fs::create_dir_all(place.path("home")).unwrap();
        let refused = place.refused(&["--image", value]);
        assert!(refused.contains(what), "{value}: {refused}");
    }
    assert!(place.refused(&["--image", "zeroes.raw"]).contains("hint: give the kernel itself"));
    assert!(place.refused(&[]).contains("--kernel"));
    assert!(place.refused(&["--kernel", "disk.raw", "--entry", "x"]).contains("--image"));
    let small = Path::new("disk.raw,overlay=new.qcow2");
    let large = [b"kernel".as_slice(), &vec![1; 3 << 20]].concat();
    fs::write(place.path("vmlinuz-1"), large).unwrap();
    for request in ["rm /boot/vmlinuz-1", "write vmlinuz-1 /boot/vmlinuz-1"] {
        let mut write = Command::new("debugfs");
        write.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").current_dir(&place.0);
        assert!(write.args(["-w", "-R", request, "disk.raw"]).output().unwrap().status.success());
    }
    let refused = place.refused(&["--image", small.to_str().unwrap(), "-m", "2M"]);
    assert!(refused.contains("the machine has 2 MiB") && refused.contains("--memory"), "{refused}");
}

#[test]
fn an_image_has_a_seed_behind_all_other_disks_unless_it_shall_have_none() {
    let place = Place::new();
    fs::write(place.path("data.img"), [0; 4096]).unwrap();
    let ids = |flags: &[&str]| {
        let words = [&["--image", "disk.raw", "--disk", "data.img"], flags].concat();
        let disks = place.planned(&words)["disks"].clone();
        disks.as_array().unwrap().iter().map(|disk| disk["id"].to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids(&[]), "\"disk0\" \"disk1\" \"seed\"");
    assert_eq!(ids(&["--user", "ada"]), "\"disk0\" \"disk1\" \"seed\"");
    assert_eq!(ids(&["--no-seed"]), "\"disk0\" \"disk1\"");
    let refused = place.nelly(&["boot", "--image", "disk.raw", "--no-seed", "--user", "ada"]);
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--user"));
}

#[test]
fn an_image_is_read_by_a_process_that_reaches_nothing_else() {
    let place = Place::new();
    let calls = place.path("calls");
    let mut traced = Command::new("strace");
    traced.args(["-ff", "-qq", "-o"]).arg(&calls).arg(env!("CARGO_BIN_EXE_nelly"));
    traced.args(["disk", "boot-entries", "--extract", "out", "disk.raw"]).current_dir(&place.0).env_clear();
    traced.env("NELLY_HOME", place.path("home"));
    let done = traced.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(fs::read(place.path("out/kernel")).unwrap(), b"kernel one");
    assert_eq!(fs::read(place.path("out/initrd")).unwrap(), b"early\0\0\0late");
    assert_eq!(fs::read_to_string(place.path("out/cmdline")).unwrap(), "root=/dev/vda ro console=ttyS0\n");
    // One file of calls for each process.
    let traces = place.names().into_iter().filter(|path| path.to_string_lossy().contains("/calls."));
    let traces: Vec<String> = traces.map(|path| fs::read_to_string(path).unwrap()).collect();
    let (readers, others): (Vec<_>, Vec<_>) =
        traces.iter().partition(|calls| calls.contains("seccomp(SECCOMP_SET_MODE_FILTER"));
    let [reader] = readers[..] else { panic!("{} processes have a filter", readers.len()) };
    let (before, after) = reader.split_once("seccomp(SECCOMP_SET_MODE_FILTER").unwrap();
    for call in ["open(", "openat(", "socket(", "execve(", "recvmsg(", "clone("] {
        assert!(!after.contains(call), "{call}: {after}");
    }
    // It reads the image after it has given up everything, and nobody else does.
    let (_, number) = after.split_once("flock(").unwrap();
    let read = format!("pread64({}, ", number.split_once(',').unwrap().0);
    assert!(after.contains(&read) && !before.contains(&read), "{reader}");
    for calls in others {
        let opened = calls.lines().find(|line| line.contains("\"disk.raw\"") && line.contains("open"));
        let Some(number) = opened.and_then(|line| line.rsplit_once("= ")).map(|(_, number)| number.trim())
        else {
            continue;
        };
        let (_, since) = calls.split_once("\"disk.raw\", O_").unwrap();
        let reads = [format!("read({number}, "), format!("pread64({number}, "), format!("preadv({number}, ")];
        assert!(!reads.iter().any(|read| since.contains(read)), "{since}");
    }
}
