//! What a monitor of its own process has given up while its guest runs.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs;
use std::path::Path;

use nelly_vmm::config::{
    Confine, DiskConfig, DiskId, Endpoint, FileSource, LogSize, MachineConfig, MonitorUser, OnReset,
    ShareConfig, ShareTag,
};
use nelly_vmm::machine::{Confinement, EndReason, Event, Isolation, Machine, Resources};
use support::{SPIN, kernel};

/// mov dx, 0x3f8; mov al, '.'; again: out dx, al; jmp again
const CHATTER: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xeb, 0xfd];
/// mov al, 0xfe; out 0x64, al; then jmp $
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];

fn start(code: &[u8], change: impl FnOnce(&mut MachineConfig)) -> Machine {
    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(kernel(code)));
    change(&mut config);
    let isolation = Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() };
    Machine::start(&config, resources, &isolation).unwrap()
}

/// The lines of a thread's status, each a name and what stands there.
fn status(thread: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(thread.join("status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(":\t"));
    lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Every thread of a monitor.
fn threads(machine: &Machine) -> Vec<std::path::PathBuf> {
    let tasks = format!("/proc/{}/task", machine.process_id().unwrap());
    fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path()).collect()
}

/// Asserts that each thread's status says so.
fn all_say(machine: &Machine, expected: &[(&str, &str)]) {
    let threads = threads(machine);
    assert!(threads.len() > 1);
    for thread in threads {
        let status = status(&thread);
        for (name, value) in expected {
            let said = status.iter().find(|(said, _)| said == name).unwrap();
            assert_eq!(said.1, *value, "{name} of {:?}", status[0]);
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

const NONE: &str = "0000000000000000";
/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID
const OF_SHARES: &str = "00000000000000db";

fn confinement(machine: &Machine) -> Confinement {
    machine.inspect().unwrap().confinement.unwrap()
}

#[test]
fn no_thread_has_rights_while_the_guest_runs() {
    let machine = start(SPIN, |config| config.spare_slots = 2);
    let mut expected = vec![("NoNewPrivs", "1"), ("Seccomp", "2")];
    expected.extend([("CapPrm", NONE), ("CapEff", NONE), ("CapInh", NONE), ("CapAmb", NONE)]);
    if is_root() {
        expected.push(("CapBnd", NONE));
    }
    all_say(&machine, &expected);
    let process = format!("/proc/{}", machine.process_id().unwrap());
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{limits}");
    // What nobody may look into is root's, whoever it runs for.
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(format!("{process}/environ")).unwrap().uid(), 0);

    let done = confinement(&machine);
    assert!(done.no_new_privs && done.undumpable && done.seccomp);
    assert!(done.landlock == nelly_confine::tree::version());
    assert_eq!((done.confine, done.capabilities.as_deref()), (Confine::On, Some(&[][..])));
    machine.kill();
    drop(machine.wait());

    // A share keeps six, of whoever had them.
    let directory = tempfile::tempdir().unwrap();
    let machine = start(SPIN, |config| {
        let source = FileSource::Path(directory.path().to_owned());
        config.shares = vec![ShareConfig::new(ShareTag::new("s").unwrap(), source, false)];
    });
    all_say(&machine, &[("CapEff", if is_root() { OF_SHARES } else { NONE })]);
    let names = ["chown", "dac_override", "fowner", "fsetid", "setgid", "setuid"];
    let kept = confinement(&machine).capabilities.unwrap();
    assert_eq!(kept, if is_root() { &names[..] } else { &[] });
}

const SOMEBODY: MonitorUser = MonitorUser { uid: 4_000_001, gid: 4_000_002 };

#[test]
fn root_s_monitor_is_another_user_s_process_in_namespaces_of_its_own() {
    let given = Some(SOMEBODY);
    if !is_root() {
        let outcome = start(SPIN, |config| config.monitor_user = given).wait();
        let EndReason::Error(why) = &outcome.reason else { panic!("{:?}", outcome.reason) };
        assert!(why.contains("only root can give"), "{why}");
        return;
    }
    // Of root alone, as an image may be.
    let mut disk = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut disk, &[7; 4096]).unwrap();
    rustix::fs::fchmod(&disk, rustix::fs::Mode::RUSR).unwrap();
    let machine = {
        let mut resources = Resources::new();
        let mut config = MachineConfig::new(resources.add(kernel(SPIN)));
        let source = resources.add(std::os::fd::OwnedFd::from(disk));
        config.disks = vec![DiskConfig::new(DiskId::new("d").unwrap(), source, true)];
        (config.monitor_user, config.confine) = (given, Confine::Strict);
        let isolation = Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() };
        Machine::start(&config, resources, &isolation).unwrap()
    };
    let ids = |number: u32| [number; 4].map(|number| number.to_string()).join("\t");
    let (user, group) = (ids(SOMEBODY.uid), ids(SOMEBODY.gid));
    let mut expected = vec![("Uid", user.as_str()), ("Gid", group.as_str()), ("NoNewPrivs", "1")];
    expected.extend(["CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd"].map(|set| (set, NONE)));
    let group = format!("{} ", SOMEBODY.gid);
    expected.push(("Groups", &group));
    all_say(&machine, &expected);
    let process = format!("/proc/{}", machine.process_id().unwrap());
    for name in ["mnt", "net", "ipc", "uts"] {
        let of = |process: &str| fs::read_link(format!("{process}/ns/{name}")).unwrap();
        assert_ne!(of(&process), of("/proc/self"), "{name}");
    }
    let mounts = fs::read_to_string(format!("{process}/mounts")).unwrap();
    assert!(mounts.lines().count() == 1 && mounts.contains("tmpfs ro,"), "{mounts}");
    assert_eq!(fs::read_dir(format!("{process}/root")).unwrap().count(), 0);
    let done = confinement(&machine);
    assert_eq!(done.user, given);
    assert_eq!(done.namespaces, ["network", "ipc", "uts", "mount"]);
    assert!(done.no_new_privs && done.undumpable && done.seccomp && done.landlock > 0, "{done:?}");
    machine.kill();
    drop(machine.wait());

    // One that starts again needs no name for it.
    let machine = start(RESET, |config| {
        config.on_reset = OnReset::Reboot;
        config.monitor_user = given;
    });
    let mut events = machine.events().unwrap();
    let mut again = 0;
    while again < 3 {
        let event = events.next_event().unwrap().expect("it starts again and again");
        again += u32::from(event == Event::Rebooting);
    }
    machine.stop().unwrap();
    let outcome = machine.wait();
    assert_eq!(outcome.reason, EndReason::Stopped);
    let done = outcome.confinement.unwrap();
    assert!(done.user == given && done.namespaces.len() == 4, "{done:?}");
}

#[test]
fn what_is_off_is_not_done_and_what_is_done_is_told_at_the_end() {
    let machine = start(SPIN, |config| config.confine = Confine::Off);
    all_say(&machine, &[("NoNewPrivs", "0"), ("Seccomp", "0")]);
    let off = Confinement { confine: Confine::Off, ..Confinement::default() };
    assert_eq!(confinement(&machine), off);
    machine.kill();
    drop(machine.wait());

    let machine = start(RESET, |config| config.confine = Confine::Strict);
    let outcome = machine.wait();
    assert_eq!(outcome.reason, EndReason::Reset);
    let done = outcome.confinement.unwrap();
    assert!(done.confine == Confine::Strict && done.landlock > 0, "{done:?}");
}

/// Set in the process that a test starts of itself.
const CHILD: &str = "NELLY_TEST_CONFINED";

#[test]
fn threads_of_an_embedder_without_rights_have_lists() {
    if std::env::var_os(CHILD).is_some() {
        // The thread of the machine is made by this one, and has no more rights.
        nelly_confine::privilege::drop_capabilities(nelly_confine::privilege::CapabilitySet::empty())
            .unwrap();
        let mut resources = Resources::new();
        let config = MachineConfig::new(resources.add(kernel(RESET)));
        let outcome = Machine::start(&config, resources, &Isolation::Thread).unwrap().wait();
        assert_eq!(outcome.reason, EndReason::Reset);
        assert!(outcome.confinement.unwrap().seccomp);
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "threads_of_an_embedder_without_rights_have_lists"])
        .env(CHILD, "")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_confined_machine_starts_again_and_begins_full_logs_anew() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let machine = start(CHATTER, |config| {
        config.serial = Endpoint::Log(FileSource::Path(log.clone()));
        config.log_bytes = LogSize::new(LogSize::MIN).unwrap();
    });
    while !directory.path().join("log.1").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    machine.kill();
    drop(machine.wait());
    assert_eq!(fs::metadata(directory.path().join("log.1")).unwrap().len(), LogSize::MIN);

    let socket = directory.path().join("socket");
    let machine = start(RESET, |config| {
        config.on_reset = OnReset::Reboot;
        config.spare_slots = 1;
        config.vsock =
            Some(nelly_vmm::config::VsockConfig { unix_socket: Some(socket.clone()), ..Default::default() });
    });
    let mut events = machine.events().unwrap();
    let mut again = 0;
    while again < 5 {
        let event = events.next_event().unwrap().expect("it starts again and again");
        again += u32::from(event == Event::Rebooting);
    }
    machine.stop().unwrap();
    let outcome = machine.wait();
    assert_eq!(outcome.reason, EndReason::Stopped);
    assert!(outcome.starts > 5);
    assert!(!socket.exists(), "its socket went with it");
}
