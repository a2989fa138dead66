//! Writable layers on disks: what outlives a machine, and what does not.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::{Sandbox, Streams};
use nelly_sandbox::spec::ContainerSpec;
use nelly_sandbox::spec::machine::{IMAGE_DEVICE, STORAGE_DEVICE};
use nelly_sandbox::state::storage::{self, StorageSize};
use nelly_tests::asset;

use super::Home;
use super::machine::{container, out_of_process, sandbox_on};

fn disk(home: &Home, mebibytes: u64) -> PathBuf {
    let path = home.path().join("disk.raw");
    let size = StorageSize::new(mebibytes << 20).unwrap();
    storage::create(&asset("storage.ext4"), &path, size).unwrap();
    path
}

fn on_disk(script: &str) -> ContainerSpec {
    ContainerSpec { upper_device: Some(STORAGE_DEVICE.to_owned()), ..container(&["sh", "-c", script]) }
}

/// A machine with the disk, and a container that runs the script.
async fn begin(home: &Home, disk: &Path, script: &str) -> (Sandbox, Streams) {
    let sandbox = sandbox_on(home, out_of_process(), disk).await;
    let streams = sandbox.run("c", &on_disk(script), IMAGE_DEVICE, None).await.unwrap().unwrap();
    (sandbox, streams)
}

/// Runs the script to its end and stops the machine, as a person would; answers what it said.
async fn stopped(home: &Home, disk: &Path, script: &str) -> String {
    let (sandbox, streams) = begin(home, disk, script).await;
    let end = sandbox.agent().wait(ProcessId { container: "c", exec: "" }).await.unwrap();
    let mut text = String::new();
    streams.stdout.unwrap().read_to_string(&mut text).unwrap();
    streams.stderr.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(end.exit_code, 0, "{text}");
    sandbox.agent().shutdown(1000).await.unwrap();
    sandbox.gone().await;
    text
}

/// Whether the file system's journal has nothing to say (kernel: fs/ext4/ext4.h).
fn is_clean(disk: &Path) -> bool {
    let mut superblock = [0; 1024];
    File::open(disk).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    superblock[0x3a] & 1 == 1 && superblock[0x60] & 4 == 0
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

/// What `df` says the root has: thousands of KiB.
const SIZE: &str = "df -Pk / | tail -n 1 | awk '{print $2}'";

fn size(said: &str) -> u64 {
    said.lines().next_back().unwrap().parse().unwrap()
}

#[test]
fn what_was_written_before_a_stop_is_there_and_the_disk_may_have_grown() {
    let home = Home::new();
    let disk = disk(&home, 1 << 10);
    run(async {
        let write = format!("set -e; echo kept > /kept; rm /etc/group; mkdir /many; {SIZE}");
        let kibibytes = size(&stopped(&home, &disk, &write).await);
        assert!((900 << 10..1 << 20).contains(&kibibytes), "{kibibytes} KiB of a gibibyte");
        assert!(is_clean(&disk), "it was not unmounted");
        OpenOptions::new().write(true).open(&disk).unwrap().set_len(40 << 30).unwrap();
        let read = format!("set -e; cat /kept; test ! -e /etc/group; test -d /many; {SIZE}");
        let said = stopped(&home, &disk, &read).await;
        assert!(said.starts_with("kept\n"), "{said}");
        assert!((38 << 20..40 << 20).contains(&size(&said)), "{said} of 40 gibibytes");
        let used = std::fs::metadata(&disk).unwrap().blocks() * 512;
        assert!(used < 32 << 20, "the host has {used} bytes of an empty disk");
    });
}

#[test]
fn what_was_synced_before_a_kill_is_there_and_freed_space_is_the_hosts_again() {
    let home = Home::new();
    let disk = disk(&home, 256);
    run(async {
        let script = "dd if=/dev/urandom of=/large bs=1M count=32 2>/dev/null; md5sum /large; sync; echo done; sleep 1000";
        let (sandbox, streams) = begin(&home, &disk, script).await;
        let mut said = String::new();
        let mut stdout = streams.stdout.unwrap();
        while !said.ends_with("done\n") {
            let mut bytes = [0; 256];
            let read = stdout.read(&mut bytes).unwrap();
            assert!(read > 0, "{said}");
            said.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        sandbox.machine().kill();
        sandbox.gone().await;
        assert!(!is_clean(&disk), "nobody unmounted it");
        let blocks = || std::fs::metadata(&disk).unwrap().blocks() * 512;
        let with_large = blocks();
        let again = stopped(&home, &disk, "md5sum /large && rm /large").await;
        assert_eq!(again.lines().next(), said.lines().next());
        let without = blocks();
        assert!(without + (30 << 20) < with_large, "{with_large} bytes before, {without} after");
    });
}

#[test]
fn a_damaged_disk_is_named() {
    let home = Home::new();
    let disk = disk(&home, 64);
    OpenOptions::new().write(true).open(&disk).unwrap().write_all_at(&[0xff; 64], 4096).unwrap();
    run(async {
        let sandbox = sandbox_on(&home, out_of_process(), &disk).await;
        let error = sandbox.run("c", &on_disk("true"), IMAGE_DEVICE, None).await.err().unwrap();
        let chain = nelly_vmm::text::chain(&error);
        assert!(
            chain.contains("the disk /dev/vdb of the writable layer") && chain.contains("damaged"),
            "{chain}"
        );
    });
}
