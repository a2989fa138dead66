//! Machines that are saved and go on elsewhere, on this host's hypervisor: guests of a few
//! instructions that count, in processes of their own and in threads of this one.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the guests are assembled into this program")]

#[path = "support/asm.rs"]
mod asm;
mod support;

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use asm::guest;
use nelly_vmm::config::{
    CpuCount, DiskConfig, DiskId, Endpoint, FileSource, HotplugSize, MachineConfig, MemorySize, VsockConfig,
};
use nelly_vmm::machine::{
    ControlError, EndReason, Isolation, Machine, Resources, Snapshot, StartError, State,
};
use proptest::prelude::*;
use support::{SPIN, kernel};
use tempfile::TempDir;

guest!(
    counting,
    // The second processor counts in its register and in memory, from real mode at 0x8000, and
    // halts for good when they are not the same.
    "lea rsi, [rip + 5f]",
    "mov edi, 0x8000",
    "mov ecx, 64",
    "rep movsb",
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "xor edx, edx",
    "mov ecx, 0x830",
    "mov eax, 0xc4500",
    "wrmsr",
    "mov eax, 0xc4608",
    "wrmsr",
    // The first one counts what it receives at the serial port, in a register and in memory, and
    // answers with both counts and with the other processor's.
    "mov edx, 0x3fc",
    "mov al, 3",
    "out dx, al",
    "xor ebx, ebx",
    "2: mov edx, 0x3fd",
    "in al, dx",
    "test al, 1",
    "jz 2b",
    "mov edx, 0x3f8",
    "in al, dx",
    "inc ebx",
    "mov ebp, 0x201000",
    "inc dword ptr [rbp + 0x100]",
    "mov [rbp], ebx",
    "mov eax, [rbp + 0x100]",
    "mov [rbp + 4], eax",
    "mov edi, 0x30000",
    "mov eax, [rdi]",
    "mov [rbp + 8], eax",
    "mov esi, ebp",
    "mov ecx, 12",
    "rep outsb",
    "jmp 2b",
    ".code16",
    "5: mov ax, 0x3000",
    "mov ds, ax",
    "xor ebx, ebx",
    "xor si, si",
    "3: mov eax, dword ptr [si]",
    "cmp eax, ebx",
    "jne 4f",
    "inc ebx",
    "mov dword ptr [si], ebx",
    "jmp 3b",
    "4: cli",
    "hlt",
    "jmp 4b",
);

guest!(
    ticking,
    // An interrupt descriptor table at 0x210000, whose vector 0x40 is below.
    "lea rax, [rip + 3f]",
    "mov edi, 0x210400",
    "mov [rdi], ax",
    "mov word ptr [rdi + 2], 0x10",
    "mov word ptr [rdi + 4], 0x8e00",
    "shr rax, 16",
    "mov [rdi + 6], ax",
    "mov edi, 0x211000",
    "mov word ptr [rdi], 0xfff",
    "mov dword ptr [rdi + 2], 0x210000",
    "lidt [rdi]",
    // The local APIC by its registers of x2APIC: on; its timer counts nanoseconds, once.
    "xor edx, edx",
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "xor edx, edx",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "wrmsr",
    "mov ecx, 0x83e",
    "mov eax, 0xb",
    "wrmsr",
    "mov ecx, 0x832",
    "mov eax, 0x40",
    "wrmsr",
    "mov ecx, 0x838",
    "mov eax, 1000000",
    "wrmsr",
    "xor ebx, ebx",
    // It sleeps from tick to tick.
    "2: sti",
    "hlt",
    "jmp 2b",
    "3: inc ebx",
    "mov al, bl",
    "mov edx, 0x3f8",
    "out dx, al",
    "xor edx, edx",
    "xor eax, eax",
    "mov ecx, 0x80b",
    "wrmsr",
    "mov ecx, 0x838",
    "mov eax, 1000000",
    "wrmsr",
    "iretq",
);

fn isolations() -> [Isolation; 2] {
    [Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() }, Isolation::Thread]
}

/// Where a machine is saved.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn state(&self) -> std::path::PathBuf {
        self.0.path().join("state")
    }

    fn memory(&self) -> std::path::PathBuf {
        self.0.path().join("memory")
    }

    /// New files, or those that are there anew.
    fn create(&self) -> Snapshot {
        let create = |path| File::options().write(true).create(true).truncate(false).open(path).unwrap();
        Snapshot { state: create(self.state()).into(), memory: create(self.memory()).into() }
    }

    fn open(&self) -> Snapshot {
        let open = |path| File::open(path).unwrap();
        Snapshot { state: open(self.state()).into(), memory: open(self.memory()).into() }
    }
}

/// The config of every machine here, and its files.
fn config(
    code: &[u8],
    folder: &Folder,
    change: impl FnOnce(&mut MachineConfig),
) -> (MachineConfig, Resources) {
    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(kernel(code)));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    config.serial = Endpoint::Stream;
    let disk = folder.0.path().join("disk");
    let disk = File::options().read(true).write(true).create(true).truncate(false).open(disk).unwrap();
    disk.set_len(1 << 20).unwrap();
    config.disks.push(DiskConfig::new(DiskId::new("data").unwrap(), resources.add(disk), false));
    config.rng = true;
    config.console = Endpoint::Stream;
    config.vsock = Some(VsockConfig::default());
    config.hotplug_bytes = HotplugSize::new(128 << 20).unwrap();
    config.give_back = true;
    config.spare_slots = 1;
    change(&mut config);
    (config, resources)
}

fn cpus(count: u8) -> impl Fn(&mut MachineConfig) {
    move |config| config.cpus = CpuCount::new(count.into()).unwrap()
}

/// The counting guest's answer: the first processor's count, the same in memory, the other's.
fn ask(serial: &mut UnixStream) -> [u32; 3] {
    serial.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    serial.write_all(b"?").unwrap();
    let mut bytes = [0; 12];
    serial.read_exact(&mut bytes).unwrap();
    let (words, _) = bytes.as_chunks::<4>();
    [0, 1, 2].map(|n| u32::from_le_bytes(words[n]))
}

/// Asks a guest of so many processors, whose first answer is to be `n`, until its other processor
/// has counted beyond `other` too. Says what both have come to.
fn count_on(serial: &mut UnixStream, n: u32, other: u32, processors: u8) -> (u32, u32) {
    let until = Instant::now() + Duration::from_secs(60);
    for n in n.. {
        let [register, memory, found] = ask(serial);
        assert_eq!([register, memory], [n, n]);
        assert!(found >= other, "{found} after {other}");
        if (processors == 1 && found == 0) || found > other {
            return (n, found);
        }
        assert!(Instant::now() < until, "the second processor stands still at {found}");
    }
    unreachable!("nobody asks 2^32 times")
}

/// The sentences of an error.
fn said(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        said.push_str(&format!(": {error}"));
        below = error.source();
    }
    said
}

#[test]
fn what_is_saved_goes_on_where_it_was_as_often_as_one_likes() {
    for isolation in isolations() {
        for count in [1, 2] {
            let folder = Folder::new();
            let (config, resources) = config(counting(), &folder, cpus(count));
            let machine = Machine::start(&config, resources, &isolation).unwrap();
            let mut serial = machine.serial().unwrap();
            let (before, others) = count_on(&mut serial, 1, 0, count);
            machine.pause().unwrap();
            machine.save(folder.create()).unwrap();
            // It is as it was, and goes on. What it is saved to anew is all that counts.
            machine.resume().unwrap();
            let (last, others) = count_on(&mut serial, before + 1, others, count);
            machine.pause().unwrap();
            machine.save(folder.create()).unwrap();
            machine.kill();
            assert_eq!(machine.wait().reason, EndReason::Killed);
            let meta = fs::metadata(folder.memory()).unwrap();
            assert_eq!(meta.len(), (16 + 128) << 20);
            assert!(meta.blocks() * 512 < 4 << 20, "{} blocks of memory", meta.blocks());

            for _ in 0..2 {
                let resources = self::config(counting(), &folder, cpus(count)).1;
                let machine = Machine::restore(&config, resources, folder.open(), &isolation).unwrap();
                assert_eq!(machine.state().unwrap(), State::Paused);
                let mut serial = machine.serial().unwrap();
                let kinds: Vec<_> =
                    machine.inspect().unwrap().devices.into_iter().map(|device| device.kind).collect();
                assert_eq!(kinds, ["block", "entropy", "console", "vsock", "memory", "balloon", "none"]);
                machine.resume().unwrap();
                count_on(&mut serial, last + 1, others, count);
                drop(machine);
            }

            // And one that was restored is saved like any other.
            let second = Folder::new();
            let resources = self::config(counting(), &folder, cpus(count)).1;
            let machine = Machine::restore(&config, resources, folder.open(), &isolation).unwrap();
            machine.save(second.create()).unwrap();
            drop(machine);
            let resources = self::config(counting(), &folder, cpus(count)).1;
            let machine = Machine::restore(&config, resources, second.open(), &isolation).unwrap();
            machine.resume().unwrap();
            count_on(&mut machine.serial().unwrap(), last + 1, others, count);
            machine.stop().unwrap();
            let outcome = machine.wait();
            assert_eq!(outcome.reason, EndReason::Stopped);
            let stamps: Vec<_> = outcome.timeline.stamps.iter().map(|stamp| stamp.name.to_string()).collect();
            assert!(stamps.contains(&"memory_restored".to_owned()), "{stamps:?}");
            assert!(!stamps.contains(&"kernel_loaded".to_owned()), "{stamps:?}");
        }
    }
}

/// A guest that is saved while it sleeps between two ticks of its timer wakes elsewhere by the tick
/// that was due, and no tick is lost or made up.
#[test]
fn a_timer_that_was_set_goes_off_elsewhere() {
    for isolation in isolations() {
        let folder = Folder::new();
        let log = folder.0.path().join("log");
        let to_log =
            |config: &mut MachineConfig| config.serial = Endpoint::Log(FileSource::Path(log.clone()));
        let len = || fs::metadata(&log).map_or(0, |meta| meta.len());
        let wait_for = |ticks| {
            let until = Instant::now() + Duration::from_secs(60);
            while len() < ticks {
                assert!(Instant::now() < until, "no tick for a minute: {} of {ticks}", len());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let (config, resources) = self::config(ticking(), &folder, to_log);
        let mut machine = Machine::start(&config, resources, &isolation).unwrap();
        for round in 1..=4 {
            wait_for(round * 300);
            machine.pause().unwrap();
            machine.save(folder.create()).unwrap();
            machine.stop().unwrap();
            assert_eq!(machine.wait().reason, EndReason::Stopped);
            let (config, resources) = self::config(ticking(), &folder, to_log);
            machine = Machine::restore(&config, resources, folder.open(), &isolation).unwrap();
            machine.resume().unwrap();
        }
        wait_for(1500);
        machine.stop().unwrap();
        machine.wait();
        let ticks = fs::read(&log).unwrap();
        for (n, tick) in (1u64..).zip(ticks) {
            assert_eq!(u64::from(tick), n % 256, "tick {n}");
        }
    }
}

/// What makes a config another machine's.
type Change = fn(&mut MachineConfig);

#[test]
fn what_differs_is_refused_by_its_name() {
    let folder = saved();
    let table: [(&str, Change); 7] = [
        ("the saved machine has 1 vCPU, this one has 2", |config| config.cpus = CpuCount::new(2).unwrap()),
        ("the saved machine has 16777216 bytes of memory, this one has 33554432", |config| {
            config.memory_bytes = MemorySize::new(32 << 20).unwrap()
        }),
        ("the saved machine can have 134217728 bytes more of memory, this one has 0", |config| {
            config.hotplug_bytes = HotplugSize::new(0).unwrap()
        }),
        ("the saved machine has 7 virtio slots, this one has 8", |config| config.spare_slots = 2),
        ("the saved machine has in slot 5 balloon, this one has nothing", |config| {
            (config.give_back, config.spare_slots) = (false, 2)
        }),
        ("the saved machine has in slot 1 entropy, this one has console", |config| {
            (config.rng, config.spare_slots) = (false, 2)
        }),
        ("the saved machine has in slot 0 block \"data\", this one has block \"other\"", |config| {
            config.disks[0].id = DiskId::new("other").unwrap()
        }),
    ];
    for (sentence, change) in table {
        let (config, resources) = config(SPIN, &folder, change);
        let refused = Machine::restore(&config, resources, folder.open(), &Isolation::Thread).unwrap_err();
        assert_eq!(
            said(&refused),
            format!("cannot start the machine: cannot restore the saved machine: {sentence}")
        );
    }
}

/// A saved machine of one vCPU.
fn saved() -> Folder {
    let folder = Folder::new();
    let (config, resources) = config(counting(), &folder, |_| {});
    let machine = Machine::start(&config, resources, &Isolation::Thread).unwrap();
    assert_eq!(ask(&mut machine.serial().unwrap())[0], 1);
    machine.pause().unwrap();
    machine.save(folder.create()).unwrap();
    folder
}

fn restore(folder: &Folder, snapshot: Snapshot) -> Result<Machine, StartError> {
    let (config, resources) = config(counting(), folder, |_| {});
    Machine::restore(&config, resources, snapshot, &Isolation::Thread)
}

#[test]
fn files_that_are_no_saved_machine_are_told() {
    let folder = saved();
    let refusal = |snapshot: Snapshot| said(&restore(&folder, snapshot).unwrap_err());
    let Snapshot { state, memory } = folder.open();
    let swapped = refusal(Snapshot { state: memory, memory: state });
    assert!(swapped.contains("longer than"), "{swapped}");
    let mut open = folder.open();
    open.memory = File::open("/dev/zero").unwrap().into();
    assert!(refusal(open).contains("the file of the memory is no regular file"));
    let mut open = folder.open();
    open.state = std::io::pipe().unwrap().0.into();
    assert!(refusal(open).contains("the file of the state is no regular file"));
    let mut open = folder.open();
    open.state = File::options().write(true).open(folder.state()).unwrap().into();
    assert!(refusal(open).contains("cannot read the file of the state"));
    let memory = File::options().write(true).open(folder.memory()).unwrap();
    let len = memory.metadata().unwrap().len();
    for other in [0, len - 1, len + 4096] {
        memory.set_len(other).unwrap();
        let error = refusal(folder.open());
        assert!(error.contains(&format!("has {other} bytes, and this machine's memory {len}")), "{error}");
    }
    memory.set_len(len).unwrap();
    fs::write(folder.state(), "something else").unwrap();
    assert!(refusal(folder.open()).contains("it is no state of a machine"));
}

/// A state that anything may have been done to: whatever it is, there is a machine or an error, and
/// soon.
fn tampered(bytes: &[u8]) {
    static FOLDER: OnceLock<Folder> = OnceLock::new();
    let folder = FOLDER.get_or_init(saved);
    let mut state = tempfile::tempfile().unwrap();
    state.write_all(bytes).unwrap();
    let snapshot = Snapshot { state: state.into(), memory: folder.open().memory };
    if let Ok(machine) = restore(folder, snapshot) {
        assert_eq!(machine.state().unwrap(), State::Paused);
    }
}

fn whole() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| fs::read(saved().state()).unwrap())
}

#[test]
fn a_state_that_is_cut_off_is_refused() {
    let whole = whole();
    let folder = saved();
    for len in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let mut state = tempfile::tempfile().unwrap();
        state.write_all(&whole[..len]).unwrap();
        let snapshot = Snapshot { state: state.into(), memory: folder.open().memory };
        assert!(restore(&folder, snapshot).is_err(), "{len} of {} bytes", whole.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn bytes_changed_at_random_harm_nobody(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        removed in prop::option::weighted(0.2, (any::<prop::sample::Index>(), 1usize..64)),
    ) {
        let mut bytes = whole().to_vec();
        for (at, value) in changes {
            *at.get_mut(&mut bytes) = value;
        }
        if let Some((at, len)) = removed {
            let at = at.index(bytes.len());
            bytes.drain(at..bytes.len().min(at + len));
        }
        tampered(&bytes);
    }
}

#[test]
fn a_machine_that_cannot_be_saved_is_as_it_was() {
    for isolation in isolations() {
        let folder = Folder::new();
        let (config, resources) = config(counting(), &folder, |_| {});
        let machine = Machine::start(&config, resources, &isolation).unwrap();
        let mut serial = machine.serial().unwrap();
        assert_eq!(ask(&mut serial)[0], 1);
        let refusal = |snapshot: Snapshot| {
            let refused = machine.save(snapshot).unwrap_err();
            assert!(matches!(refused, ControlError::Refused(_)), "{refused:?}");
            said(&refused)
        };
        assert!(refusal(folder.create()).ends_with("the machine is Running"));
        machine.pause().unwrap();
        let write = |path: &str| File::options().write(true).open(path).unwrap().into();
        let full = Snapshot { state: write("/dev/full"), memory: folder.create().memory };
        let error = refusal(full);
        assert!(error.contains("the file of the state is not a regular file"), "{error}");
        let device = Snapshot { state: folder.create().state, memory: write("/dev/full") };
        assert!(refusal(device).contains("the file of the memory is no regular file"));
        let pipe = Snapshot { state: std::io::pipe().unwrap().1.into(), memory: folder.create().memory };
        assert!(refusal(pipe).contains("the file of the state is not a regular file"));
        let mut read_only = folder.create();
        read_only.memory = folder.open().memory;
        assert!(refusal(read_only).contains("cannot write the file of the memory"));
        // It was paused all the time, and can be saved and go on.
        assert_eq!(machine.state().unwrap(), State::Paused);
        machine.save(folder.create()).unwrap();
        machine.resume().unwrap();
        assert_eq!(ask(&mut serial)[..2], [2, 2]);
        drop(machine);
        let machine = restore(&folder, folder.open()).unwrap();
        machine.resume().unwrap();
        assert_eq!(ask(&mut machine.serial().unwrap())[..2], [2, 2]);
    }
}

/// A monitor that may write no more than so many blocks of 512 bytes to a file: a disk that is full
/// in the middle of the memory.
fn limited(folder: &Path, blocks: u32) -> Isolation {
    let program = folder.join("monitor");
    let monitor = env!("CARGO_BIN_EXE_nelly-monitor");
    let script = format!("#!/bin/sh\ntrap '' XFSZ\nulimit -f {blocks}\nexec {monitor} \"$@\"\n");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Isolation::Process { monitor: program }
}

#[test]
fn a_disk_that_fills_up_meanwhile_is_an_error_and_no_end() {
    let folder = Folder::new();
    let isolation = limited(folder.0.path(), 64);
    let (config, resources) = config(counting(), &folder, |_| {});
    let machine = Machine::start(&config, resources, &isolation).unwrap();
    let mut serial = machine.serial().unwrap();
    assert_eq!(ask(&mut serial)[0], 1);
    machine.pause().unwrap();
    for _ in 0..3 {
        let error = said(&machine.save(folder.create()).unwrap_err());
        assert!(error.contains("cannot write the file of the memory: File too large"), "{error}");
        assert_eq!(machine.state().unwrap(), State::Paused);
    }
    machine.resume().unwrap();
    assert_eq!(ask(&mut serial)[..2], [2, 2]);
}

/// The end of a machine does not wait for a save of much memory, and who waits for the save hears
/// of it.
#[test]
fn a_save_is_given_up_when_the_machine_ends() {
    for isolation in isolations() {
        let folder = Folder::new();
        let (config, resources) = config(counting(), &folder, |config| {
            config.memory_bytes = MemorySize::new(1 << 30).unwrap();
        });
        let machine = Machine::start(&config, resources, &isolation).unwrap();
        assert_eq!(ask(&mut machine.serial().unwrap())[0], 1);
        machine.pause().unwrap();
        let saving = machine.begin_save(folder.create()).unwrap();
        let second = machine.save(folder.create()).unwrap_err();
        assert!(said(&second).ends_with("the machine is being saved"), "{second:?}");
        let resumed = machine.resume().unwrap_err();
        assert!(said(&resumed).ends_with("the machine is being saved"), "{resumed:?}");
        machine.stop().unwrap();
        assert!(matches!(saving.done(), Err(ControlError::Ended)));
        assert_eq!(machine.wait().reason, EndReason::Stopped);
    }
}

/// Copies serve as well, without holes too.
#[test]
fn the_files_of_a_saved_machine_can_be_copied() {
    let folder = saved();
    let moved = Folder::new();
    let mut bytes = Vec::new();
    File::open(folder.memory()).unwrap().read_to_end(&mut bytes).unwrap();
    fs::write(moved.memory(), &bytes).unwrap();
    fs::copy(folder.state(), moved.state()).unwrap();
    drop(folder);
    let machine = restore(&moved, moved.open()).unwrap();
    machine.resume().unwrap();
    assert_eq!(ask(&mut machine.serial().unwrap())[..2], [2, 2]);
}
