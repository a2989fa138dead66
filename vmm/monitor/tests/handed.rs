//! What a monitor has of whoever started it: the files that were handed over, and nothing else.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod support;

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nelly_vmm::config::{DiskConfig, DiskId, Endpoint, FileSource, MachineConfig};
use nelly_vmm::machine::{Isolation, Machine, Resources};
use rustix::fs::{Mode, OFlags};
use support::{SPIN, image, kernel};

/// mov dx, 0x3f8; mov al, '.'; out dx, al
const SPEAK: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee];

/// A machine that speaks and then runs for ever, and a disk that nobody reads.
fn config(kernel: FileSource, disk: FileSource) -> MachineConfig {
    let mut config = MachineConfig::new(kernel);
    let id = DiskId::new("disk").unwrap();
    config.disks = vec![DiskConfig::new(id, disk, true)];
    config
}

/// What a process's descriptors lead to.
fn open_files(process: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    entries.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect()
}

/// The process knows neither the environment nor the directory nor `stray` of whoever started it,
/// and has `disk`.
fn assert_shed(process: u32, stray: &Path, disk: &Path) {
    let environment = fs::read(format!("/proc/{process}/environ")).unwrap();
    assert!(environment.iter().all(|&byte| byte == 0), "{}", String::from_utf8_lossy(&environment));
    assert_eq!(fs::read_link(format!("/proc/{process}/cwd")).unwrap(), Path::new("/"));
    let files = open_files(process);
    assert!(files.contains(&disk.to_owned()), "{files:?}");
    assert!(!files.contains(&stray.to_owned()), "{files:?}");
}

#[test]
fn a_held_monitor_has_what_its_holder_gave_it() {
    let directory = tempfile::tempdir().unwrap();
    let (stray, disk) = (directory.path().join("stray"), directory.path().join("disk"));
    fs::write(&stray, "secret").unwrap();
    fs::write(&disk, [0; 4096]).unwrap();
    // Left open to programs that are executed, as other programs leave theirs.
    let left_open = rustix::fs::open(&stray, OFlags::RDONLY, Mode::empty()).unwrap();
    assert!(std::env::vars_os().count() > 1, "cargo sets some");

    let mut resources = Resources::new();
    let kernel = resources.add(kernel(&[SPEAK, SPIN].concat()));
    let mut config = config(kernel, resources.add(File::open(&disk).unwrap()));
    config.serial = Endpoint::Stream;
    let isolation = Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() };
    let machine = Machine::start(&config, resources, &isolation).unwrap();
    machine.serial().unwrap().read_exact(&mut [0]).unwrap();
    assert_shed(machine.process_id().unwrap(), &stray, &disk);
    // The holder keeps its own.
    assert!(File::from(left_open).metadata().is_ok());
}

/// Nobody writes to it, and nobody ever will.
#[test]
fn a_fifo_in_place_of_a_file_is_refused_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let named = || FileSource::Path(fifo.clone());
    let monitor = || env!("CARGO_BIN_EXE_nelly-monitor").into();
    for isolation in [Isolation::Process { monitor: monitor() }, Isolation::Thread] {
        for field in ["kernel", "initrd", "disks[0]"] {
            let mut resources = Resources::new();
            let kernel = resources.add(kernel(SPIN));
            let mut config = match field {
                "disks[0]" => config(kernel, named()),
                _ => MachineConfig::new(kernel),
            };
            match field {
                "kernel" => config.kernel = named(),
                "initrd" => config.initrd = Some(named()),
                _ => {}
            }
            let error = Machine::start(&config, resources, &isolation).unwrap_err();
            let reason = error.source().unwrap().to_string();
            assert!(reason.starts_with(field) && reason.contains("fifo"), "{reason}");
        }
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_nelly-monitor")).arg("--config").arg(&fifo).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8(output.stderr).unwrap().contains("FIFO"));
}

/// As a shell or a program in another language starts it, here with relative paths.
#[test]
fn a_monitor_alone_closes_what_its_configuration_does_not_name() {
    let directory = tempfile::tempdir().unwrap();
    let within = |name: &str| directory.path().join(name);
    fs::write(within("kernel"), image(&[SPEAK, SPIN].concat())).unwrap();
    fs::write(within("stray"), "secret").unwrap();
    fs::write(within("disk"), [0; 4096]).unwrap();
    let mut config = config(FileSource::Path("kernel".into()), FileSource::Fd(8));
    config.serial = Endpoint::Stdio;
    config.console = Endpoint::Log(FileSource::Path("log".into()));
    fs::write(within("config"), config.to_json()).unwrap();

    let script = "exec 7<stray 8<disk 9<stray; exec \"$0\" --config config --result result";
    let mut monitor = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_nelly-monitor")])
        .current_dir(directory.path())
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has begun once its guest has spoken.
    monitor.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert_shed(monitor.id(), &within("stray"), &within("disk"));
    let files = open_files(monitor.id());
    assert!(files.contains(&within("log")) && files.contains(&within("result")), "{files:?}");
    assert!(!files.contains(&within("config")), "{files:?}");
    let process = rustix::process::Pid::from_child(&monitor);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(monitor.wait().unwrap().code(), Some(128 + 15));
    assert!(fs::read_to_string(within("result")).unwrap().contains("stopped"));
}
