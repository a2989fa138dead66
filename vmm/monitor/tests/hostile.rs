//! The virtio devices, their transports and the ring code under a guest that attacks them on this
//! host's hypervisor: the smallest machine that has them all (one vCPU, one loop), so that what
//! breaks is theirs. `tests/` runs the same guest in `nelly-monitor`.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nelly_disk::{FileReader, RawDisk};
use nelly_vmm::arch::x86_64::{self, layout};
use nelly_vmm::arch::{Address, Nested};
use nelly_vmm::boot::{self, BootRequest, Image};
use nelly_vmm::bus::{Bus, Effect};
use nelly_vmm::config::{BootProtocol, Platform, VsockConfig};
use nelly_vmm::hv::{self, Hypervisor, IrqchipPlan, Vcpu, VcpuExit, Vm};
use nelly_vmm::memory::{Backing, GuestRam};
use nelly_vmm::virtio::blk::Block;
use nelly_vmm::virtio::console::{Console, Ends};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::rng::Rng;
use nelly_vmm::virtio::testing::WorkerLoop;
use nelly_vmm::virtio::vsock::Vsock;

/// Longer than any sound run by two orders of magnitude.
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds the guest with the host's C compiler.
fn guest(folder: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/hostile/build.sh");
    let elf = folder.join("hostile");
    let status = Command::new(&script).arg(&elf).status().expect("the guest's build script starts");
    assert!(status.success(), "the guest builds");
    elf
}

fn devices(disk: File, console: &File) -> Vec<Option<Box<dyn Device>>> {
    disk.set_len(1 << 20).unwrap();
    let ends = Ends { input: None, output: Some(console.try_clone().unwrap().into()) };
    let (vsock, _control) = Vsock::new(&VsockConfig::default(), None).unwrap();
    vec![
        Some(Box::new(Rng)),
        Some(Box::new(Block::new(Box::new(RawDisk::new(disk, false).unwrap()), "attacked"))),
        Some(Box::new(Console::new(ends))),
        Some(Box::new(vsock)),
        None,
    ]
}

/// Runs the guest until it resets the machine; returns what it wrote to its serial port, and its
/// exits. With `shortcut`, notifications go around the monitor.
fn run(elf: &Path, shortcut: bool) -> (String, u64) {
    let hypervisor = hv::open().expect("a hypervisor");
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    let ram = GuestRam::new(64 << 20, Backing::Anonymous).unwrap();
    for slot in ram.slots() {
        vm.map(slot).unwrap();
    }
    vm.create_irqchip(IrqchipPlan { vcpus: 1, legacy_timer: false, lines: layout::IO_APIC_PINS }).unwrap();
    let workers = WorkerLoop::default();
    let console = tempfile::tempfile().unwrap();
    let (mut bus, mut slots, mut announced) = (Bus::new(), Vec::new(), Vec::new());
    for (n, device) in (0u16..).zip(devices(tempfile::tempfile().unwrap(), &console)) {
        let address = layout::VIRTIO_MMIO + u64::from(n) * layout::VIRTIO_STRIDE;
        let line = x86_64::line(layout::VIRTIO_LINE + u32::from(n)).unwrap();
        let mut mmio = workers.slot(n, ram.memory(), vm.irq_line(line).unwrap());
        if let Some(device) = device {
            mmio.0.attach(device).unwrap();
        }
        for (offset, value, bell) in mmio.doorbells().filter(|_| shortcut) {
            assert!(vm.offer_doorbell(Address::Memory(address + offset), value, 4, bell));
        }
        let mmio = Arc::new(Mutex::new(mmio));
        slots.push(mmio.clone());
        bus.insert(address, layout::VIRTIO_STRIDE, mmio).unwrap();
        announced.push(boot::MmioSlot { address, line });
    }
    let kernel = FileReader::new(File::open(elf).unwrap()).unwrap();
    let loaded = boot::x86::load(
        &ram,
        &BootRequest {
            kernel: Image { name: "hostile", bytes: &kernel },
            initrd: None,
            command_line: "",
            cpus: 1,
            transports: &announced,
            platform: Platform::Mptable,
            protocol: BootProtocol::Elf64,
            seed: None,
        },
    )
    .unwrap();
    let (mut text, mut exits) = (String::new(), 0);
    workers.beside(|| {
        let mut vcpu = vm.create_vcpu(0, 1).unwrap();
        vcpu.load(&loaded.state).unwrap();
        vm.seal().unwrap();
        let start = Instant::now();
        loop {
            exits += 1;
            match vcpu.run().unwrap() {
                VcpuExit::Read { address: Address::Memory(address), data, .. } => bus.read(address, data),
                VcpuExit::Write { address: Address::Memory(address), data, .. } => {
                    while bus.write(address, data) == Effect::Again {
                        std::thread::yield_now();
                    }
                }
                VcpuExit::Read { data, .. } => data.fill(0x60),
                VcpuExit::Write { address: Address::Port(layout::COM1), data, .. } => {
                    text.extend(data.iter().map(|&byte| char::from(byte)))
                }
                VcpuExit::Write { address: Address::Port(0x64), .. } => break,
                VcpuExit::Write { .. } => {}
                other => {
                    text.push_str(&format!("\n(the machine ended: {other:?})"));
                    break;
                }
            }
            if start.elapsed() > PATIENCE {
                text.push_str("\n(the machine took too long)");
                break;
            }
        }
    });
    let mut printed = Vec::new();
    std::io::Seek::rewind(&mut &console).unwrap();
    std::io::Read::read_to_end(&mut &console, &mut printed).unwrap();
    assert!(
        printed.ends_with(b"console works\n"),
        "the console's last output arrived; the guest says:\n{text}"
    );
    let faults: u64 = slots.iter().map(|slot| slot.lock().unwrap().0.interrupt().faults()).sum();
    assert!(faults > 100, "{faults} faults were counted");
    (text, exits)
}

#[test]
fn every_device_survives_a_hostile_guest() {
    let folder = tempfile::tempdir().unwrap();
    let elf = guest(folder.path());
    for shortcut in [true, false] {
        let start = Instant::now();
        let (text, exits) = run(&elf, shortcut);
        println!("{text}{exits} exits in {:?}", start.elapsed());
        let verdict = text.lines().last().unwrap_or_default();
        assert!(verdict.starts_with("hostile: PASSED 4 devices, "), "{text}");
        assert!(verdict.ends_with(" 0 failures"), "{text}");
    }
}

/// The same guest in the real program, with everything that a machine puts round its devices.
#[test]
fn the_monitor_survives_a_hostile_guest() {
    let folder = tempfile::tempdir().unwrap();
    let elf = guest(folder.path());
    let path = |name: &str| folder.path().join(name);
    File::create(path("disk")).unwrap().set_len(1 << 20).unwrap();
    File::create(path("console")).unwrap();
    let config = serde_json::json!({
        "schema": 1,
        "memory_bytes": 64 << 20,
        "kernel": {"path": elf},
        "disks": [{"id": "attacked", "source": {"path": path("disk")}}],
        "rng": true,
        "console": {"log": {"path": path("console")}},
        "serial": "stdio",
        "vsock": {},
        "spare_slots": 2,
        "time_limit_ms": 60_000,
    });
    std::fs::write(path("config"), config.to_string()).unwrap();
    let start = Instant::now();
    let done = Command::new(env!("CARGO_BIN_EXE_nelly-monitor"))
        .args([
            "--config".as_ref(),
            path("config").as_os_str(),
            "--result".as_ref(),
            path("result").as_os_str(),
        ])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let result = std::fs::read_to_string(path("result")).unwrap_or_default();
    println!("{text}{errors}{result}\nin {:?}", start.elapsed());
    assert_eq!(done.status.code(), Some(0), "{text}{errors}");
    let verdict = text.lines().last().unwrap_or_default();
    assert!(verdict.starts_with("hostile: PASSED 4 devices, "), "{text}{errors}");
    // What it broke is told once a kind, and counted.
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    let faults = result["faults"].as_array().unwrap();
    assert!(errors.lines().all(|line| line.starts_with("nelly-monitor: guest fault in device ")), "{errors}");
    assert_eq!(errors.lines().count(), faults.len());
    assert!(errors.contains(" (block attacked): "), "{errors}");
    let total: u64 = faults.iter().map(|fault| fault["count"].as_u64().unwrap()).sum();
    assert!(total > 100 && faults.len() < 64, "{total} faults of {} kinds", faults.len());
    let printed = std::fs::read(path("console")).unwrap();
    assert!(printed.ends_with(b"console works\n"), "the console's last output arrived");
}
