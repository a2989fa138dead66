//! The virtio devices, their transports and the ring code under a guest that attacks them on this
//! host's hypervisor: the smallest machine that has them all (one loop; four vCPUs, of which three
//! join in at one device at a time), so that what breaks is theirs. The same guest runs in
//! `nelly-monitor`, too.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nelly_disk::{FileReader, RawDisk};
use nelly_vmm::arch::x86_64::{self, layout};
use nelly_vmm::arch::{Address, Nested};
use nelly_vmm::boot::{self, BootRequest, Image};
use nelly_vmm::bus::{Bus, Effect};
use nelly_vmm::config::{BootProtocol, NetworkConfig, Platform, VsockConfig};
use nelly_vmm::hv::{self, Hypervisor, IrqchipPlan, Vcpu, VcpuExit, Vm};
use nelly_vmm::memory::{Backing, GuestRam};
use nelly_vmm::virtio::balloon::Balloon;
use nelly_vmm::virtio::blk::Block;
use nelly_vmm::virtio::console::{Console, Ends as ConsoleEnds};
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::fs::{FileSystem, SharedTree};
use nelly_vmm::virtio::mem::MemoryDevice;
use nelly_vmm::virtio::net::Network;
use nelly_vmm::virtio::rng::Rng;
use nelly_vmm::virtio::testing::WorkerLoop;
use nelly_vmm::virtio::vsock::Vsock;

/// Far longer than any sound run.
const PATIENCE: Duration = Duration::from_secs(300);

/// Builds the guest with the host's C compiler.
fn guest(folder: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/hostile/build.sh");
    let elf = folder.join("hostile");
    let status = Command::new(&script).arg(&elf).status().expect("the guest's build script starts");
    assert!(status.success(), "the guest builds");
    elf
}

/// vCPUs beside the first.
const RACERS: u8 = 3;

/// Where they wait until the first lets each of them go once; the next port tells how many there
/// are. See `tricks.c`.
const GATE: u16 = 0x510;

/// Lets racers through.
struct Gate {
    /// How often it was opened; `None`: it is over.
    opened: Mutex<Option<u64>>,
    changed: Condvar,
}

impl Gate {
    /// Each racer may go once more.
    fn open(&self) {
        if let Some(opened) = &mut *self.opened.lock().unwrap() {
            *opened += 1;
        }
        self.changed.notify_all();
    }

    fn end(&self) {
        *self.opened.lock().unwrap() = None;
        self.changed.notify_all();
    }

    /// Waits for the turn of a racer that went through so often; `false`: there is none any more.
    fn pass(&self, passed: &mut u64) -> bool {
        let opened = self.opened.lock().unwrap();
        let opened = self.changed.wait_while(opened, |opened| *opened == Some(*passed)).unwrap();
        *passed += 1;
        opened.is_some()
    }

    fn is_over(&self) -> bool {
        self.opened.lock().unwrap().is_none()
    }
}

/// Whoever is dropped with it ends the racers.
struct Ends<'a>(&'a Gate);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn devices(disk: File, console: &File, shared: &Path, ram: &GuestRam) -> Vec<Option<Box<dyn Device>>> {
    disk.set_len(1 << 20).unwrap();
    let ends = ConsoleEnds { input: None, output: Some(console.try_clone().unwrap().into()) };
    let (vsock, _control) = Vsock::new(&VsockConfig::default(), None).unwrap();
    let network = serde_json::json!({"id": "attacked", "mac": "52:54:00:12:34:56"});
    let network: NetworkConfig = serde_json::from_value(network).unwrap();
    let (network, _view) = Network::new(&network, Vec::new()).unwrap();
    let (memory, _control) = MemoryDevice::new(ram.hotplug_slot().unwrap().clone());
    let tree = SharedTree::new(File::open(shared).unwrap(), false, false).unwrap();
    vec![
        Some(Box::new(Rng)),
        Some(Box::new(Block::new(Box::new(RawDisk::new(disk, false).unwrap()), "attacked"))),
        Some(Box::new(Console::new(ends))),
        Some(Box::new(vsock)),
        Some(Box::new(network)),
        Some(Box::new(memory)),
        Some(Box::new(FileSystem::new(Arc::new(tree), "attacked", false))),
        Some(Box::new(Balloon::new(ram.slots()).0)),
        None,
    ]
}

/// What becomes of what a vCPU writes to the serial port.
enum Says<'a> {
    /// The first one's is the guest's word.
    Serial(&'a mut String),
    /// Another has nothing to say, and went through the gate so often.
    Nothing(u64),
}

impl Says<'_> {
    fn add(&mut self, words: &str) {
        if let Self::Serial(text) = self {
            text.push_str(words);
        }
    }
}

/// Serves one vCPU until the machine is reset, or everything is over.
fn serve(vcpu: &mut impl Vcpu, bus: &Bus, gate: &Gate, exits: &AtomicU64, mut says: Says<'_>) {
    let start = Instant::now();
    while !gate.is_over() {
        exits.fetch_add(1, Ordering::Relaxed);
        match vcpu.run().unwrap() {
            VcpuExit::Read { address: Address::Memory(address), data, .. } => bus.read(address, data),
            VcpuExit::Write { address: Address::Memory(address), data, .. } => {
                while bus.write(address, data) == Effect::Again {
                    std::thread::yield_now();
                }
            }
            VcpuExit::Read { address: Address::Port(GATE), data, .. } => {
                data.fill(0);
                if let Says::Nothing(passed) = &mut says
                    && !gate.pass(passed)
                {
                    break;
                }
            }
            VcpuExit::Read { address: Address::Port(port), data, .. } if port == GATE + 1 => {
                data.fill(RACERS)
            }
            VcpuExit::Read { data, .. } => data.fill(0x60),
            VcpuExit::Write { address: Address::Port(layout::COM1), data, .. } => {
                says.add(&data.iter().map(|&byte| char::from(byte)).collect::<String>());
            }
            VcpuExit::Write { address: Address::Port(GATE), .. } => gate.open(),
            VcpuExit::Write { address: Address::Port(0x64), .. } => break,
            VcpuExit::Write { .. } => {}
            other => {
                says.add(&format!("\n(the machine ended: {other:?})"));
                break;
            }
        }
        if start.elapsed() > PATIENCE {
            says.add("\n(the machine took too long)");
            break;
        }
    }
}

/// Runs the guest until it resets the machine; returns what it wrote to its serial port, and its
/// exits. With `shortcut`, notifications go around the monitor.
fn run(elf: &Path, shortcut: bool) -> (String, u64) {
    let hypervisor = hv::open().expect("a hypervisor");
    let vm = hypervisor.create_vm(Nested::Hidden).unwrap();
    let ram = GuestRam::with_hotplug(64 << 20, 128 << 20, Backing::Anonymous).unwrap();
    for slot in ram.slots() {
        vm.map(slot).unwrap();
    }
    let cpus = u32::from(RACERS) + 1;
    let vcpus = u8::try_from(cpus).unwrap();
    vm.create_irqchip(IrqchipPlan { vcpus, legacy_timer: false, lines: layout::IO_APIC_PINS }).unwrap();
    let workers = WorkerLoop::default();
    let console = tempfile::tempfile().unwrap();
    let shared = tempfile::tempdir().unwrap();
    let (mut bus, mut slots, mut announced) = (Bus::new(), Vec::new(), Vec::new());
    for (n, device) in (0u16..).zip(devices(tempfile::tempfile().unwrap(), &console, shared.path(), &ram)) {
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
            cpus,
            transports: &announced,
            platform: Platform::Mptable,
            protocol: BootProtocol::Elf64,
            seed: None,
            kernel_place: None,
        },
    )
    .unwrap();
    let (mut text, exits) = (String::new(), AtomicU64::new(0));
    let gate = Gate { opened: Mutex::new(Some(0)), changed: Condvar::new() };
    workers.beside(|| {
        let mut first = vm.create_vcpu(0, cpus).unwrap();
        first.load(&loaded.state).unwrap();
        // The others begin where the first does, without a start-up message, and the guest tells
        // them apart.
        let state = first.save().unwrap();
        std::thread::scope(|scope| {
            let ends = Ends(&gate);
            for index in 1..cpus {
                let (vm, bus, gate, exits, mut state) = (&vm, &bus, &gate, &exits, state.clone());
                let (tell, made) = std::sync::mpsc::channel();
                scope.spawn(move || {
                    let mut vcpu = vm.create_vcpu(index, cpus).unwrap();
                    let mut own = vcpu.save().unwrap();
                    for section in ["kvm.vcpu.mode", "kvm.vcpu.registers", "kvm.vcpu.system_registers"] {
                        own.take(section, 1).unwrap();
                        own.put(section, 1, state.take(section, 1).unwrap());
                    }
                    vcpu.restore(own).unwrap();
                    tell.send(()).unwrap();
                    let mut passed = 0;
                    if gate.pass(&mut passed) {
                        serve(&mut vcpu, bus, gate, exits, Says::Nothing(passed));
                    }
                });
                made.recv().unwrap();
            }
            // The first opens the gate for the others once it has taken its turn.
            vm.seal().unwrap();
            serve(&mut first, &bus, &gate, &exits, Says::Serial(&mut text));
            drop(ends);
        });
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
    (text, exits.into_inner())
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
        assert!(verdict.starts_with("hostile: PASSED 8 devices, "), "{text}");
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
    std::fs::create_dir(path("shared")).unwrap();
    let peer = UnixListener::bind(path("peer")).unwrap();
    let config = serde_json::json!({
        "schema": 1,
        "memory_bytes": 64 << 20,
        "hotplug_bytes": 128 << 20,
        "give_back": true,
        "kernel": {"path": elf},
        "disks": [{"id": "attacked", "source": {"path": path("disk")}}],
        "rng": true,
        "console": {"log": {"path": path("console")}},
        "serial": "stdio",
        "vsock": {},
        "networks": [{"id": "attacked", "mac": "52:54:00:12:34:56", "link": {"stream": {"path": path("peer")}}}],
        "shares": [{"tag": "attacked", "source": {"path": path("shared")}}],
        "spare_slots": 2,
        "time_limit_ms": 300_000,
    });
    std::fs::write(path("config"), config.to_string()).unwrap();
    // Takes every frame, until the monitor ends.
    std::thread::spawn(move || {
        let (mut frames, _) = peer.accept().unwrap();
        std::io::copy(&mut frames, &mut std::io::sink()).unwrap();
    });
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
    assert!(verdict.starts_with("hostile: PASSED 8 devices, "), "{text}{errors}");
    // What it broke is told once a kind, and counted.
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    let faults = result["faults"].as_array().unwrap();
    assert!(errors.lines().all(|line| line.starts_with("nelly-monitor: guest fault in device ")), "{errors}");
    assert_eq!(errors.lines().count(), faults.len());
    assert!(errors.contains(" (block attacked): "), "{errors}");
    // A flood of one kind, too.
    assert!(faults.iter().any(|fault| fault["count"].as_u64().unwrap() > 50), "{faults:?}");
    let total: u64 = faults.iter().map(|fault| fault["count"].as_u64().unwrap()).sum();
    assert!(total > 100 && faults.len() < 128, "{total} faults of {} kinds", faults.len());
    let printed = std::fs::read(path("console")).unwrap();
    assert!(printed.ends_with(b"console works\n"), "the console's last output arrived");
}
