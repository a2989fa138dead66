//! A program that holds machines through the library: when it dies at any moment, its monitors end
//! by themselves, and with them the paths of their sockets.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nelly_tests::random::Numbers;
use nelly_tests::{Watchdog, program};
use nelly_vmm::boot::testing::{Segment, elf};
use nelly_vmm::config::{Endpoint, FileSource, MachineConfig, MemorySize, VsockConfig};
use nelly_vmm::machine::{Isolation, Machine, Resources};
use rustix::process::Pid;

use crate::{TEST_LIMIT, alone, moments, processes};

/// Set in the process that the test starts of itself: where its machines have their files.
const CHILD: &str = "NELLY_TEST_EMBEDDER";

/// cli; hlt; then jmp back to it
const REST: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];

fn start(isolation: &Isolation, place: &Path, number: usize) -> Machine {
    const ENTRY: u64 = 0x10_0000;
    let kernel = place.join("kernel");
    let code = elf(ENTRY, &[Segment { address: ENTRY, bytes: REST, memory: REST.len() as u64 }], &[], &[]);
    std::fs::write(&kernel, code).unwrap();
    let mut config = MachineConfig::new(FileSource::Path(kernel));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    config.serial = Endpoint::Log(FileSource::Path(place.join(format!("log{number}"))));
    let socket = place.join(format!("socket{number}"));
    config.vsock = Some(VsockConfig { unix_socket: Some(socket), ..Default::default() });
    Machine::start(&config, Resources::new(), isolation).unwrap()
}

/// Starts machines until it is killed, some of which it gives up.
fn embed(place: &Path) -> ! {
    let process = Isolation::Process { monitor: program("nelly-monitor") };
    let mut held = Vec::new();
    for number in 0.. {
        let isolation = if number % 3 == 2 { &Isolation::Thread } else { &process };
        held.push(start(isolation, place, number % 8));
        if held.len() == 4 {
            drop(held.remove(0));
        }
    }
    unreachable!("nobody counts so far")
}

#[test]
fn monitors_end_with_whoever_held_them() {
    if let Some(place) = std::env::var_os(CHILD) {
        embed(Path::new(&place));
    }
    let _alone = alone();
    let _clock = Watchdog::new(TEST_LIMIT);
    let mut random = Numbers::seeded("NELLY_KILLS_SEED");
    for moment in 0..moments(1) {
        let delay = Duration::from_millis(random.below(300));
        let what = format!("moment {moment}: the holder after {delay:?}");
        println!("{what}");
        let place = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "embedder::monitors_end_with_whoever_held_them"])
            .env(CHILD, place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        processes::kill(Pid::from_child(&child));
        assert_eq!(nelly_tests::code(child.wait().unwrap()), 128 + 9, "{what}");
        processes::none_is_left(&what);
        // Machines in its threads had no time to remove the paths of theirs, every third.
        let names = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let sockets: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("socket")).collect();
        assert!(sockets.len() <= 2, "{what}: {sockets:?}");
    }
    println!("load: {} moments of a program that holds machines: no monitor stayed", moments(1));
}
