//! Writable layers on a disk: a loop device of the file system that the build makes for them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nelly_protocol::messages as m;
use serde_json::Value;

use crate::bench::{Outcome, World, refusal, spec};

crate::scenarios!(
    what_was_written_is_there_again,
    what_was_synced_is_there_after_a_cut,
    a_disk_that_cannot_be_used_is_named,
    a_link_is_no_layer,
    it_grows_to_its_disk,
    read_only_roots_leave_the_disk_alone,
);

/// A disk: a file behind a loop device.
pub(crate) struct Disk {
    directory: tempfile::TempDir,
    pub(crate) device: String,
}

pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Disk {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rootfs/build-storage");
        output(Command::new(build).arg(directory.path().join("disk")));
        Self::of(directory)
    }

    fn of(directory: tempfile::TempDir) -> Self {
        let device =
            output(Command::new("losetup").args(["--find", "--show"]).arg(directory.path().join("disk")));
        Self { directory, device: device.trim().to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// What this disk holds at this instant, as another one.
    fn copy(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        output(Command::new("cp").arg("--sparse=always").args([self.file(), directory.path().join("disk")]));
        Self::of(directory)
    }

    /// The same disk after `change` of its file.
    fn changed(mut self, change: impl FnOnce(&File)) -> Self {
        self.detach();
        change(&OpenOptions::new().read(true).write(true).open(self.file()).unwrap());
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Self::of(directory)
    }

    fn detach(&mut self) {
        if !self.device.is_empty() {
            output(Command::new("losetup").arg("--detach").arg(&self.device));
            self.device.clear();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        }
    }
}

pub(crate) fn request(
    world: &World,
    id: &str,
    spec: &Value,
    disk: &Disk,
    stdio: &m::Stdio,
) -> m::CreateContainerRequest {
    let mut request = world.create_request(id, spec, stdio);
    request.rootfs.mut_or_insert_default().upper_device.clone_from(&disk.device);
    request
}

async fn sh_spec(world: &World, id: &str, spec: &Value, disk: &Disk) -> Outcome {
    let streams = world.streams();
    let outcome = world.run_request(&request(world, id, spec, disk, &streams.stdio), &streams).await;
    assert_eq!(outcome.exit.exit_code, 0, "{outcome:?}");
    outcome
}

async fn sh(world: &World, id: &str, script: &str, disk: &Disk) -> String {
    sh_spec(world, id, &spec(&["sh", "-c", script]), disk).await.stdout
}

/// What it says why there is no container on this disk.
async fn refused(world: &World, id: &str, disk: &Disk) -> String {
    let request = request(world, id, &spec(&["true"]), disk, &m::Stdio::new());
    let (code, text) = refusal(world.create(&request).await);
    assert_eq!(code, ttrpc::Code::INTERNAL, "{text}");
    text
}

async fn what_was_written_is_there_again(world: Arc<World>) {
    let disk = Disk::new();
    let written = "set -e; chmod 751 /; echo kept > /kept; mkdir -p /deep/er; mv /data/garbage /deep/er/; \
                   rm /data/plain /escape; mknod /deep/null c 1 3; chmod 4711 /kept; stat -c %a /";
    assert_eq!(sh(&world, "one", written, &disk).await, "751\n");
    let read =
        "set -e; stat -c %a / /kept; cat /kept; ls /deep/er /data; test ! -e /escape; test -c /deep/null";
    let said = sh(&world, "two", read, &disk).await;
    assert_eq!(said, "751\n4711\nkept\n/data:\norphan\nsmall\nsmall-script\n\n/deep/er:\ngarbage\n");
    // Nobody's layer but this disk's.
    assert!(world.sh("three", "ls /").await.stdout.contains("escape"));
}

async fn what_was_synced_is_there_after_a_cut(world: Arc<World>) {
    let disk = Disk::new();
    let idle = request(&world, "idle", &spec(&["sleep", "1000"]), &disk, &m::Stdio::new());
    world.create(&idle).await.unwrap();
    assert!(world.start("idle").await.failure.is_none());
    let script =
        "echo 1 > /synced; dd if=/dev/zero of=/large bs=64k count=64 conv=fsync 2>/dev/null; sync /synced";
    assert_eq!(world.exec_sh("idle", "e", script).await.exit.exit_code, 0);
    // It is mounted still, and its journal holds what happened.
    let cut = disk.copy();
    assert_eq!(sh(&world, "after", "cat /synced; stat -c %s /large", &cut).await, "1\n4194304\n");
}

async fn a_disk_that_cannot_be_used_is_named(world: Arc<World>) {
    let bytes_at = |disk: Disk, at: u64, bytes: &'static [u8]| {
        disk.changed(|file| file.write_all_at(bytes, at).unwrap())
    };
    let damaged = [
        bytes_at(Disk::new(), 1024, &[0; 1024]),
        // The superblock's checksum, and the descriptors of its groups.
        bytes_at(Disk::new(), 1024 + 0x3fc, &[1, 2, 3, 4]),
        bytes_at(Disk::new(), 4096, &[0xff; 64]),
        Disk::new().changed(|file| file.set_len(32 << 20).unwrap()),
    ];
    for (number, disk) in damaged.iter().enumerate() {
        let text = refused(&world, &format!("c{number}"), disk).await;
        assert!(text.contains(&format!("the disk {} of the writable layer", disk.device)), "{text}");
        assert!(text.contains("damaged"), "{text}");
    }
    let mut absent = Disk::new();
    absent.detach();
    absent.device = "/dev/no-such-disk".to_owned();
    let text = refused(&world, "absent", &absent).await;
    absent.device.clear();
    assert!(text.contains("/dev/no-such-disk") && text.contains("No such file"), "{text}");
    let request = {
        let mut request = world.create_request("relative", &spec(&["true"]), &m::Stdio::new());
        request.rootfs.mut_or_insert_default().upper_device = "vdb".to_owned();
        request
    };
    let (code, text) = refusal(world.create(&request).await);
    assert!(code == ttrpc::Code::INVALID_ARGUMENT && text.contains("rootfs.upper_device"), "{text}");
}

async fn a_link_is_no_layer(world: Arc<World>) {
    for name in ["upper", "work"] {
        let disk = Disk::new();
        let place = tempfile::tempdir().unwrap();
        output(Command::new("mount").arg(&disk.device).arg(place.path()));
        std::os::unix::fs::symlink("/tmp", place.path().join(name)).unwrap();
        output(Command::new("umount").arg(place.path()));
        let text = refused(&world, name, &disk).await;
        assert!(text.contains(&format!("/disk/{name}: Not a directory")), "{text}");
    }
}

async fn it_grows_to_its_disk(world: Arc<World>) {
    // CAP_SYS_RESOURCE, which some machines keep from root; a guest's root has it
    // (tests/tests/e2e/storage.rs).
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(effective, 16).unwrap() & 1 << 24 == 0 {
        println!("not tried: growing a file system needs CAP_SYS_RESOURCE");
        return;
    }
    let mut disk = Disk::new();
    for gibibytes in [1_u64, 1, 8, 1024] {
        disk = disk.changed(|file| file.set_len(gibibytes << 30).unwrap());
        let id = format!("c{gibibytes}");
        let blocks = sh(&world, &id, "stat -f -c %b /; echo x >> /grown; wc -l < /grown", &disk).await;
        let blocks: u64 = blocks.lines().next().unwrap().parse().unwrap();
        // What it keeps for itself is less than a tenth.
        assert!(
            ((gibibytes << 18) / 10 * 9..=gibibytes << 18).contains(&blocks),
            "{blocks} of {gibibytes} GiB"
        );
    }
}

async fn read_only_roots_leave_the_disk_alone(world: Arc<World>) {
    let disk = Disk::new();
    let before = fs::read(disk.file()).unwrap();
    let streams = world.streams();
    let mut request =
        request(&world, "c", &spec(&["sh", "-c", "echo > /x || echo no"]), &disk, &streams.stdio);
    request.rootfs.mut_or_insert_default().read_only = true;
    assert_eq!(world.run_request(&request, &streams).await.stdout, "no\n");
    assert!(fs::read(disk.file()).unwrap() == before);
}
