//! Whole machines on a scripted hypervisor: what a guest does, what a holder asks, how it ends.

mod devices;
mod lost_peers;
mod networks;
mod snapshot;
mod taken_over;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;

use super::start::{recorder, thread};
use super::*;
use crate::arch::Address;
use crate::arch::x86_64::layout;
use crate::boot::testing::{Segment, elf};
use crate::config::{DiskId, Endpoint, MachineConfig, OnReset, Platform, VsockConfig};
use crate::hv::fake::{Fake, Step};
use crate::machine::confine::Process;
use crate::machine::outcome::{EndReason, Event};
use crate::machine::{QueueState, Snapshot, server, wire};
use crate::timeline::{self, GuestCounter, name};

const COM1: u16 = layout::COM1;

fn kernel() -> OwnedFd {
    let code = [0xf4];
    let segment = Segment { address: 0x10_0000, bytes: &code, memory: 0x1000 };
    let image = elf(0x10_0000, &[segment], &[], &[]);
    let mut file = crate::sys::anonymous::memory_file("kernel").unwrap();
    file.write_all(&image).unwrap();
    file.into()
}

fn config(resources: &mut Resources) -> MachineConfig {
    let mut config = MachineConfig::new(resources.add(kernel()));
    config.memory_bytes = crate::config::MemorySize::new(4 << 20).unwrap();
    config
}

fn start_with(fake: &Fake, config: &MachineConfig, resources: Resources) -> Result<Machine, StartError> {
    begin_with(fake, config, resources, None)
}

/// The same of a machine that may have been saved.
fn begin_with(
    fake: &Fake,
    config: &MachineConfig,
    resources: Resources,
    snapshot: Option<Snapshot>,
) -> Result<Machine, StartError> {
    let (control, theirs) = sys::stream_pair().unwrap();
    let fake = fake.clone();
    let body =
        thread(move || server::serve_on(|| Ok(fake), theirs, recorder(), None, Process::Embedder)).unwrap();
    Machine::hold(config, resources, snapshot, control, body)?.done()
}

fn start(fake: &Fake, change: impl FnOnce(&mut MachineConfig)) -> Machine {
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    change(&mut config);
    start_with(fake, &config, resources).unwrap()
}

/// Nothing of the machine is left.
fn assert_gone(fake: &Fake) {
    let record = fake.record();
    assert_eq!((record.vcpus, record.machines, record.slots.len()), (0, 0, 0));
}

/// Something that shows in the record once the guest runs. After the last step of its script a vCPU
/// computes until there are more.
fn sign() -> Step {
    Step::read32(0xdead_0000)
}

fn off() -> Step {
    Step::out(layout::ACPI_SLEEP_CONTROL, &[0x34])
}

#[test]
fn every_route_to_the_end_is_told_apart() {
    let panic = || Step::out(COM1, b"\nKernel panic - not syncing: no init\n");
    let table: Vec<(Vec<Step>, EndReason)> = vec![
        (vec![off()], EndReason::PowerOff),
        (vec![Step::out(layout::ACPI_RESET, &[1])], EndReason::Reset),
        (vec![Step::out(0x64, &[0xfe])], EndReason::Reset),
        (vec![Step::out(0xcf9, &[0x06])], EndReason::Reset),
        (vec![Step::out(0x92, &[0x01])], EndReason::Reset),
        (vec![Step::TripleFault], EndReason::TripleFault),
        (vec![Step::PowerOff], EndReason::PowerOff),
        (vec![Step::Reset], EndReason::Reset),
        (vec![panic(), Step::out(0x64, &[0xfe])], EndReason::Panic),
        (vec![panic(), Step::TripleFault], EndReason::Panic),
        (
            vec![Step::Fault("an impossible instruction".into())],
            EndReason::Error("an impossible instruction".into()),
        ),
    ];
    for (script, reason) in table {
        let fake = Fake::new();
        fake.script(0, script.clone());
        let machine = start(&fake, |_| {});
        let outcome = machine.wait();
        assert_eq!(outcome.reason, reason, "{script:?}");
        assert_eq!(outcome.starts, 1);
        let at = |name| outcome.timeline.at(name).unwrap();
        assert!(
            at(name::MONITOR_MAIN) <= at(name::FIRST_ENTRY) && at(name::FIRST_ENTRY) <= at(name::GUEST_END)
        );
        assert_gone(&fake);
        assert!(matches!(machine.pause(), Err(ControlError::Ended)), "{script:?}");
    }
}

#[test]
fn a_guest_that_says_that_it_halts_and_does_is_at_its_end() {
    let words = |text: &str| Step::out(COM1, text.as_bytes());
    let halted = "[    1.000000] reboot: System halted\n";
    let off = "[    1.000000] reboot: Power off not available: System halted instead\n";
    for (text, reason) in [(halted, EndReason::Halted), (off, EndReason::PowerOff)] {
        let fake = Fake::new();
        fake.script(0, [words(text), Step::Sleep]);
        fake.script(1, [Step::Sleep]);
        let machine = start(&fake, |config| config.cpus = crate::config::CpuCount::new(2).unwrap());
        assert_eq!(machine.wait().reason, reason);
        assert_gone(&fake);
    }
}

#[test]
fn a_file_that_is_no_kernel_is_named_at_its_first_fault() {
    // A kernel of the test says nothing of itself; one that has done something was one.
    for (script, named) in [(vec![Step::TripleFault], true), (vec![off(), Step::TripleFault], false)] {
        let fake = Fake::new();
        fake.script(0, script);
        let outcome = start(&fake, |_| {}).wait();
        let hint = outcome.hint.unwrap_or_default();
        assert_eq!(hint == "descriptor 0 does not look like a Linux kernel", named, "{hint}");
    }
}

#[test]
fn words_of_a_halt_alone_end_nothing() {
    let fake = Fake::new();
    // The second vCPU goes on, as if a program had written the words; each look kicks it once.
    fake.script(0, [Step::out(COM1, b"System halted\n"), Step::Sleep]);
    let machine = start(&fake, |config| config.cpus = crate::config::CpuCount::new(2).unwrap());
    assert!(fake.wait_until(|record| record.kicks >= 6));
    assert_eq!(machine.state().unwrap(), State::Running);
    // A pause and looks do not get into each other's way.
    machine.pause().unwrap();
    assert_eq!(machine.state().unwrap(), State::Paused);
    machine.resume().unwrap();
    let kicks = fake.record().kicks;
    assert!(fake.wait_until(|record| record.kicks > kicks));
    machine.stop().unwrap();
    assert_eq!(machine.wait().reason, EndReason::Stopped);
    // One that only halts, without a word, is not looked at.
    let fake = Fake::new();
    fake.script(0, [sign(), Step::Sleep]);
    let machine = start(&fake, |config| config.time_limit_ms = Some(100));
    assert_eq!(machine.wait().reason, EndReason::TimeLimit);
}

#[test]
fn a_failing_hypervisor_and_a_bug_end_the_machine_with_a_sentence() {
    for step in [Step::Fail, Step::Panic] {
        let fake = Fake::new();
        fake.script(1, [step.clone()]);
        let machine = start(&fake, |config| config.cpus = crate::config::CpuCount::new(3).unwrap());
        let EndReason::Error(what) = machine.wait().reason else { panic!("{step:?}") };
        assert!(!what.is_empty());
        assert_gone(&fake);
    }
}

#[test]
fn a_pause_holds_every_vcpu_and_a_resume_lets_them_go_on() {
    let fake = Fake::new();
    for cpu in 0..4 {
        fake.script(cpu, [sign()]);
    }
    let machine = start(&fake, |config| {
        config.cpus = crate::config::CpuCount::new(4).unwrap();
        config.rng = true;
    });
    let mut events = machine.events().unwrap();
    assert_eq!(machine.state().unwrap(), State::Running);
    assert!(fake.wait_until(|record| record.answers.len() == 4));
    machine.pause().unwrap();
    machine.pause().unwrap();
    assert_eq!(machine.state().unwrap(), State::Paused);
    fake.script(0, [Step::read32(layout::VIRTIO_MMIO + 8), off()]);
    assert_eq!((fake.record().kicks, fake.record().answers.len()), (4, 4));
    machine.resume().unwrap();
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    // The entropy device's id, read after the pause.
    assert_eq!(fake.record().answers[4..], [(0, vec![4, 0, 0, 0])]);
    let mut seen = Vec::new();
    while let Some(event) = events.next_event().unwrap() {
        seen.push(event);
    }
    let states = [State::Pausing, State::Paused, State::Running, State::Ending].map(Event::State);
    assert_eq!(seen[..4], states);
    assert!(matches!(&seen[4..], [Event::Ended(outcome)] if outcome.reason == EndReason::PowerOff));
}

#[test]
fn memory_for_later_is_mapped_before_the_controllers_too() {
    let fake = Fake::new();
    // The hypervisor refuses what comes after them.
    let machine = start(&fake, |config| {
        config.hotplug_bytes = crate::config::HotplugSize::new(256 << 20).unwrap();
    });
    let record = fake.record();
    assert!(record.irqchip.is_some() && record.slots.len() == 2, "{record:?}");
    drop(machine);
    assert_gone(&fake);
}

/// The entropy device found, and its one queue of 8 entries described with the descriptor table at
/// `table`.
fn drive_rng(table: u32) -> Vec<Step> {
    let registers = [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, 8),
        (0x80, table),
        (0x90, 0x2000),
        (0xa0, 0x3000),
        (0x44, 1),
        (0x70, 15),
    ];
    registers.map(|(register, value)| Step::write32(layout::VIRTIO_MMIO + register, value)).into()
}

#[test]
fn what_a_driver_writes_after_a_reset_is_not_lost() {
    let fake = Fake::new();
    let status = layout::VIRTIO_MMIO + 0x70;
    let mut script = drive_rng(0x1000);
    // It goes on at once, as Linux does.
    script.extend([Step::read32(status), Step::write32(status, 0), Step::write32(status, 1)]);
    script.extend([Step::read32(status), off()]);
    fake.script(0, script);
    let machine = start(&fake, |config| config.rng = true);
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    assert_eq!(fake.record().answers, [(0, vec![15, 0, 0, 0]), (0, vec![1, 0, 0, 0])]);
}

#[test]
fn what_a_guest_breaks_is_told_once_a_kind_and_counted() {
    let fake = Fake::new();
    let reset = || Step::write32(layout::VIRTIO_MMIO + 0x70, 0);
    fake.script(0, [sign()]);
    let (ours, theirs) = sys::stream_pair().unwrap();
    let mut resources = Resources::new();
    let mut wanted = config(&mut resources);
    (wanted.rng, wanted.spare_slots, wanted.serial) = (true, 1, Endpoint::Stream);
    resources.log_to(theirs);
    let machine = start_with(&fake, &wanted, resources).unwrap();
    let mut events = machine.events().unwrap();
    let before = machine.inspect().unwrap();
    assert_eq!((before.schema, before.starts, before.devices.len()), (1, 1, 2));
    assert!(fake.wait_until(|record| record.answers.len() == 1));
    machine.pause().unwrap();
    machine.resume().unwrap();
    for table in [0x1008, 0x1008, 0xffff_f000] {
        fake.script(0, drive_rng(table));
        fake.script(0, [reset()]);
    }
    fake.script(0, drive_rng(0x1000));
    fake.script(0, [sign()]);
    assert!(fake.wait_until(|record| record.answers.len() == 2));
    machine.pause().unwrap();
    let seen = machine.inspect().unwrap();
    assert_eq!(seen.state, State::Paused);
    let [rng, empty] = &seen.devices[..] else { panic!("{seen:?}") };
    assert_eq!((rng.kind.as_str(), rng.status, rng.needs_reset, rng.interrupts), ("entropy", 15, false, 3));
    assert_eq!((empty.kind.as_str(), empty.queues.len()), ("none", 0));
    let position = QueueState {
        chains: Some(0),
        size: Some(8),
        driver_available: Some(0),
        next_available: Some(0),
        next_used: Some(0),
    };
    assert_eq!(rng.queues, [position]);
    assert_eq!((seen.memory.boot_bytes, seen.exits.memory_read), (4 << 20, 2));
    assert_eq!((seen.unclaimed_memory_accesses, &seen.vcpus[..]), (2, &[seen.exits][..]));
    assert_eq!(seen.consoles.iter().map(|console| console.port.as_str()).collect::<Vec<_>>(), ["serial"]);
    machine.resume().unwrap();
    fake.script(0, [off()]);
    let outcome = machine.wait();
    let kinds: Vec<_> =
        outcome.faults.iter().map(|f| (f.device.as_str(), f.kind.as_str(), f.count)).collect();
    assert_eq!(kinds, [("entropy", "ring_alignment", 2), ("entropy", "ring_outside_memory", 1)]);
    assert_eq!(rng.faults, outcome.faults);
    let mut told = Vec::new();
    while let Some(event) = events.next_event().unwrap() {
        if let Event::Fault(fault) = event {
            told.push(fault.kind);
        }
    }
    assert_eq!(told, ["ring_alignment", "ring_outside_memory"]);
    let mut text = String::new();
    std::fs::File::from(ours).read_to_string(&mut text).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let says = |line: &str, what| {
        line.contains("device 0 (entropy): the driver described a bad queue: ") && line.contains(what)
    };
    assert!(
        lines.len() == 2 && says(lines[0], "0x1008 is not aligned") && says(lines[1], "0xfffff000"),
        "{text}"
    );
}

#[test]
fn stop_kill_drop_and_the_time_limit_end_a_machine_that_would_run_for_ever() {
    for paused in [false, true] {
        let fake = Fake::new();
        let machine = start(&fake, |_| {});
        assert!(machine.try_wait().is_none());
        if paused {
            machine.pause().unwrap();
        }
        machine.stop().unwrap();
        assert_eq!(machine.wait().reason, EndReason::Stopped);
        assert_gone(&fake);

        let machine = start(&fake, |_| {});
        if paused {
            machine.pause().unwrap();
        }
        machine.kill();
        assert_eq!(machine.wait().reason, EndReason::Killed);
        machine.kill();
        assert_gone(&fake);

        let machine = start(&fake, |_| {});
        if paused {
            machine.pause().unwrap();
        }
        drop(machine);
        assert_gone(&fake);
    }
    let fake = Fake::new();
    let machine = start(&fake, |config| config.time_limit_ms = Some(20));
    assert_eq!(machine.wait().reason, EndReason::TimeLimit);
}

#[test]
fn a_reset_starts_the_guest_again_and_its_reader_stays() {
    let fake = Fake::new();
    fake.script(0, [sign()]);
    let machine = start(&fake, |config| {
        config.on_reset = OnReset::Reboot;
        config.serial = Endpoint::Stream;
    });
    let mut serial = machine.serial().unwrap();
    assert!(fake.wait_until(|record| record.answers.len() == 1));
    machine.pause().unwrap();
    machine.resume().unwrap();
    fake.script(0, [Step::out(COM1, b"one "), Step::Reset, Step::out(COM1, b"two"), off()]);
    let outcome = machine.wait();
    assert_eq!((outcome.reason, outcome.starts, outcome.exits.port_write), (EndReason::PowerOff, 2, 3));
    let mut text = String::new();
    serial.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two");
    assert_gone(&fake);
}

#[test]
fn a_machine_that_starts_again_reads_the_files_that_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    let mut image = Vec::new();
    let mut file = std::fs::File::from(kernel());
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut image).unwrap();
    std::fs::write(&path, image).unwrap();
    let fake = Fake::new();
    fake.script(0, [sign()]);
    let machine = start(&fake, |config| {
        config.kernel = FileSource::Path(path.clone());
        config.on_reset = OnReset::Reboot;
    });
    assert!(fake.wait_until(|record| record.answers.len() == 1));
    // Whatever the name leads to by now.
    std::fs::rename(&path, folder.path().join("old")).unwrap();
    std::fs::write(&path, "no kernel").unwrap();
    fake.script(0, [Step::Reset, off()]);
    let outcome = machine.wait();
    assert_eq!((outcome.reason, outcome.starts), (EndReason::PowerOff, 2));
}

#[test]
fn what_messages_call_a_file_is_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, "no kernel").unwrap();
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    config.kernel = FileSource::Path(path.clone());
    let Err(StartError::Refused(error)) = start_with(&Fake::new(), &config, resources) else {
        panic!("it started")
    };
    let text = wire::chain(&error).join(": ");
    assert!(text.contains(path.to_str().unwrap()) && !text.contains("descriptor"), "{text}");
}

#[test]
fn the_power_button_is_told_to_a_guest_with_acpi() {
    let fake = Fake::new();
    fake.script(0, [Step::WaitForLine(layout::POWER_BUTTON_LINE), off()]);
    let machine = start(&fake, |config| config.platform = Platform::Acpi);
    machine.press_power_button().unwrap();
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    let fake = Fake::new();
    fake.script(0, [Step::WaitForLine(layout::POWER_BUTTON_LINE), off()]);
    let machine = start(&fake, |config| config.platform = Platform::Mptable);
    let error = machine.press_power_button().unwrap_err();
    assert!(matches!(error, ControlError::NoPowerButton), "{error:?}");
    assert_eq!(fake.record().lines.get(&layout::POWER_BUTTON_LINE), None);
    machine.kill();
}

#[test]
fn the_serial_stream_carries_both_ways_and_starts_with_what_was_said_before() {
    let fake = Fake::new();
    fake.script(
        0,
        [Step::out(COM1, b"early"), Step::out(COM1 + 1, &[1]), Step::WaitForLine(layout::COM1_LINE)],
    );
    let read = |port, count| Step::Read { address: Address::Port(port), width: 1, count };
    fake.script(0, [read(COM1 + 5, 1), read(COM1, 2), off()]);
    let machine = start(&fake, |config| config.serial = Endpoint::Stream);
    let mut serial = machine.serial().unwrap();
    let mut text = [0; 5];
    serial.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"early");
    serial.write_all(b"hi").unwrap();
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    let answers = fake.record().answers;
    assert_eq!(answers, [(0, vec![0x61]), (0, b"hi".to_vec())]);
    assert_eq!(serial.read(&mut text).unwrap(), 0);
}

#[test]
fn a_log_gets_everything_before_the_end_is_told() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let fake = Fake::new();
    fake.script(0, [Step::out(COM1, &[b'x'; 20_000]), Step::TripleFault]);
    let machine = start(&fake, |config| {
        config.serial = Endpoint::Log(FileSource::Path(log.path().to_owned()));
    });
    machine.wait();
    assert_eq!(std::fs::read(log.path()).unwrap(), vec![b'x'; 20_000]);
}

#[test]
fn a_guest_that_never_stops_does_not_fill_the_disk_by_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let (path, older) = (folder.path().join("log"), folder.path().join("log.1"));
    let fake = Fake::new();
    let line = |byte| Step::out(COM1, &[byte; 10_000]);
    fake.script(0, [line(b'a'), line(b'b'), line(b'c'), off()]);
    let machine = start(&fake, |config| {
        config.serial = Endpoint::Log(FileSource::Path(path.clone()));
        config.log_bytes = crate::config::LogSize::new(4096).unwrap();
    });
    machine.wait();
    // 30,000 bytes are seven files of 4096 and a rest.
    assert_eq!(std::fs::read(path).unwrap(), vec![b'c'; 30_000 - 7 * 4096]);
    assert_eq!(std::fs::read(older).unwrap(), vec![b'c'; 4096]);
}

#[test]
fn an_empty_slot_is_filled_while_the_machine_runs() {
    let mut disk = crate::sys::anonymous::memory_file("disk").unwrap();
    disk.write_all(&[7; 4096]).unwrap();
    let fake = Fake::new();
    let id = layout::VIRTIO_MMIO + 8;
    fake.script(0, [Step::read32(id)]);
    let machine = start(&fake, |config| config.spare_slots = 1);
    assert!(fake.wait_until(|record| record.answers.len() == 1));
    let wanted = |resources: &mut Resources| {
        DiskConfig::new(DiskId::new("late").unwrap(), resources.add(disk.try_clone().unwrap()), false)
    };
    let mut resources = Resources::new();
    let late = wanted(&mut resources);
    machine.attach_disk(&late, resources).unwrap();
    let several = DiskConfig { followed_by: vec![FileSource::Fd(1)], ..late.clone() };
    let ControlError::Refused(error) = machine.attach_disk(&several, Resources::new()).unwrap_err() else {
        panic!("it is refused before anything is asked");
    };
    assert!(error.to_string().contains("disk.followed_by: a disk of several files must be"), "{error}");
    let missing = DiskConfig { source: FileSource::Path("/no/such/disk".into()), ..late };
    let ControlError::Refused(error) = machine.attach_disk(&missing, Resources::new()).unwrap_err() else {
        panic!("the holder opens it");
    };
    assert!(error.to_string().contains("disk: cannot open /no/such/disk"), "{error}");
    assert_eq!(fake.record().doorbells.len(), 1);
    let mut resources = Resources::new();
    let another = wanted(&mut resources);
    let error = machine.attach_disk(&another, resources).unwrap_err();
    assert!(matches!(error, ControlError::Refused(_)), "{error:?}");
    machine.pause().unwrap();
    machine.resume().unwrap();
    fake.script(0, [Step::read32(id), Step::read32(id + 0xf8), off()]);
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    // Nothing there, then a block device of eight sectors.
    let answers: Vec<_> = fake.record().answers.into_iter().map(|(_, answer)| answer).collect();
    assert_eq!(answers, [[0; 4], [2, 0, 0, 0], [8, 0, 0, 0]]);
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    let refused = |change: &dyn Fn(&mut MachineConfig)| {
        let fake = Fake::new();
        let mut resources = Resources::new();
        let mut config = config(&mut resources);
        change(&mut config);
        let error = start_with(&fake, &config, resources).expect_err("it started");
        assert_gone(&fake);
        let StartError::Refused(error) = error else { panic!("{error:?}") };
        wire::chain(&error).join(": ")
    };
    let missing = FileSource::Path("/no/such/file".into());
    let kernel = refused(&|config| config.kernel = missing.clone());
    assert!(kernel.starts_with("kernel: cannot open /no/such/file"), "{kernel}");
    let initrd = refused(&|config| config.initrd = Some(FileSource::Fd(9)));
    assert!(initrd.starts_with("initrd: descriptor 9 was not handed in"), "{initrd}");
    let disk = refused(&|config| {
        let disk = DiskConfig::new(DiskId::new("root").unwrap(), FileSource::Path("/".into()), true);
        config.disks.push(disk);
    });
    assert!(disk.starts_with("disks[0]: cannot open /: it is a directory"), "{disk}");
    let stdio = refused(&|config| config.serial = Endpoint::Stdio);
    assert!(stdio.starts_with("serial, console: "), "{stdio}");
    let memory = refused(&|config| config.memory_bytes = crate::config::MemorySize::new(1 << 40).unwrap());
    assert!(memory.starts_with("memory_bytes: "), "{memory}");
}

#[test]
fn a_holder_of_another_version_is_told_both_and_gets_everything_back() {
    let (control, theirs) = sys::stream_pair().unwrap();
    let server = std::thread::spawn(move || {
        server::serve_on(
            || -> Result<Fake, _> { panic!("nothing is started") },
            theirs,
            recorder(),
            None,
            Process::Embedder,
        );
    });
    let ((reply, theirs), (given, kept)) = (sys::stream_pair().unwrap(), sys::stream_pair().unwrap());
    let request =
        serde_json::json!({ "op": "start", "version": wire::VERSION + 1, "machine": "of another kind" });
    wire::send(control.as_fd(), &request, &[theirs.as_fd(), given.as_fd()]).unwrap();
    drop((theirs, given));
    let answer = wire::Receiver::new(1).receive(reply.as_fd()).unwrap();
    let wire::Received::Frame(Answer::Failed(said), _) = answer else { panic!("{answer:?}") };
    assert!(
        said[0].contains(&format!("version {} ", wire::VERSION))
            && said[0].contains(&format!("version {}:", wire::VERSION + 1)),
        "{said:?}"
    );
    server.join().unwrap();
    assert_eq!(rustix::io::read(&kept, &mut [0; 1]), Ok(0));
}

#[test]
fn requests_that_the_machine_cannot_answer_are_refused() {
    let fake = Fake::new();
    let machine = start(&fake, |_| {});
    assert!(matches!(machine.vsock().connect(1), Err(ControlError::Refused(_))));
    assert!(matches!(machine.vsock().listen(1), Err(ControlError::Refused(_))));
    assert!(matches!(machine.serial(), Err(ControlError::Refused(_))));
    assert!(matches!(machine.console(), Err(ControlError::Refused(_))));
    // Still in good order.
    machine.resume().unwrap();
    assert!(machine.exit_counts().is_ok());
}

#[test]
fn a_machine_that_ends_answers_those_who_wait() {
    let fake = Fake::new();
    let machine = start(&fake, |config| config.vsock = Some(VsockConfig::default()));
    let pending = machine.vsock().begin_connect(5).unwrap();
    let listener = machine.vsock().listen(6).unwrap();
    machine.stop().unwrap();
    assert!(pending.stream().is_err());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    machine.wait();
    assert_gone(&fake);
}

#[test]
fn a_monitor_that_dies_is_told_apart_from_one_that_speaks() {
    let mut resources = Resources::new();
    let config = config(&mut resources);
    let isolation = Isolation::Process { monitor: "/bin/false".into() };
    let error = Machine::start(&config, resources, &isolation).expect_err("it started");
    assert!(matches!(error, StartError::Died(_) | StartError::Talk(_)), "{error:?}");
    let isolation = Isolation::Process { monitor: "/no/such/monitor".into() };
    assert!(matches!(Machine::start(&config, Resources::new(), &isolation), Err(StartError::Spawn { .. })));
}

#[test]
fn the_monitor_stamps_a_start_once_and_in_order() {
    let before = timeline::now_ns();
    let fake = Fake::new();
    fake.script(0, [Step::out(0x64, &[0xfe]), off()]);
    let machine = start(&fake, |config| config.on_reset = OnReset::Reboot);
    let (spawned, outcome) = (machine.spawned_ns(), machine.wait());
    let timeline = outcome.timeline;
    let names: Vec<_> = timeline.stamps.iter().map(|stamp| stamp.name.as_ref()).collect();
    assert_eq!(outcome.starts, 2);
    assert_eq!(
        names,
        [
            name::MONITOR_MAIN,
            name::MONITOR_CONFIG,
            name::MEMORY_MAPPED,
            name::KERNEL_LOADED,
            name::VM_CREATED,
            name::DEVICES_READY,
            name::VCPU_CREATED,
            name::FIRST_ENTRY,
            name::GUEST_END
        ]
    );
    let moments: Vec<_> = timeline.stamps.iter().map(|stamp| stamp.at_ns).collect();
    assert!(moments.is_sorted() && before <= moments[0] && before <= spawned);
    assert_eq!(timeline.at(name::MONITOR_MAIN), Some(timeline.origin_ns));
}

#[test]
fn a_guests_counter_is_told_by_a_running_machine_or_not_at_all() {
    let counter =
        GuestCounter { at_ns: 7, counter: 9, error_ns: 1, span_ns: 2, span_ticks: 3, nominal_khz: 4 };
    for known in [None, Some(counter)] {
        let fake = Fake::new();
        fake.set_counter(known);
        fake.script(0, [sign()]);
        let machine = start(&fake, |_| {});
        assert!(fake.wait_until(|record| !record.answers.is_empty()));
        assert_eq!(machine.guest_counter().unwrap(), known);
        machine.pause().unwrap();
        let refused = machine.guest_counter().unwrap_err();
        assert!(matches!(refused, ControlError::Refused(_)), "{refused:?}");
        machine.resume().unwrap();
        assert_eq!(machine.close().reason, EndReason::Killed);
        assert_gone(&fake);
    }
}
