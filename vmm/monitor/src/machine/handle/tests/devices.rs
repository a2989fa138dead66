//! Devices that come and go while the machine runs.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;

use super::*;
use crate::config::{BackingFile, DeviceName, DiskFormat, DiskLimits, DiskThreads};
use crate::virtio::spec::{feature, register, status};

/// Where the first slot's register is.
fn slot(register: u64) -> u64 {
    layout::VIRTIO_MMIO + register
}

fn disk(id: &str, path: &Path) -> DiskConfig {
    DiskConfig::new(DiskId::new(id).unwrap(), FileSource::Path(path.into()), false)
}

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8192).unwrap();
    file
}

/// Whether nobody holds the disk's lock, which goes with its open file.
fn is_free(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    match file.try_lock() {
        // At once, whoever has a copy of the descriptor.
        Ok(()) => file.unlock().is_ok(),
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}

/// The same, as soon as children of other tests have executed their programs: until then they have
/// all that is open here.
fn becomes_free(path: &Path) -> bool {
    (0..100_000).any(|_| {
        std::thread::yield_now();
        is_free(path)
    })
}

/// What a driver of the first slot does up to DRIVER_OK, with one queue in guest memory. A read of
/// the status ends it.
fn drive() -> Vec<Step> {
    let driven = status::ACKNOWLEDGE | status::DRIVER;
    let negotiated = driven | status::FEATURES_OK;
    let version = u32::try_from(feature::VERSION_1 >> 32).unwrap();
    let writes = [
        (register::STATUS, u32::from(status::ACKNOWLEDGE)),
        (register::STATUS, u32::from(driven)),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, version),
        (register::STATUS, u32::from(negotiated)),
        (register::QUEUE_SEL, 0),
        (register::QUEUE_NUM, 16),
        (register::QUEUE_DESC_LOW, 0x20_0000),
        (register::QUEUE_DRIVER_LOW, 0x20_1000),
        (register::QUEUE_DEVICE_LOW, 0x20_2000),
        (register::QUEUE_READY, 1),
        (register::STATUS, u32::from(negotiated | status::DRIVER_OK)),
    ];
    let mut steps: Vec<_> =
        writes.into_iter().map(|(register, value)| Step::write32(slot(register), value)).collect();
    steps.push(Step::read32(slot(register::STATUS)));
    steps
}

#[test]
fn a_disk_is_attached_and_detached_a_thousand_times() {
    let fake = Fake::new();
    fake.script(0, [sign()]);
    let machine = start(&fake, |config| config.spare_slots = 1);
    let (image, other) = (image(), image());
    let name = DeviceName::Disk(DiskId::new("late").unwrap());
    let mut answers = 1;
    for n in 0..1000 {
        let path = if n % 2 == 0 { image.path() } else { other.path() };
        machine.attach_disk(&disk("late", path), Resources::new()).unwrap();
        assert!(!is_free(path));
        if n % 10 == 0 {
            fake.script(0, drive());
            answers += 1;
            assert!(fake.wait_until(|record| record.answers.len() == answers));
            let (_, status) = fake.record().answers.pop().unwrap();
            assert_eq!(status, [15, 0, 0, 0], "the driver drives it, and a thread serves it");
        }
        let state = machine.inspect_device(&name).unwrap();
        assert_eq!((state.slot, state.kind.as_str(), state.name.as_deref()), (0, "block", Some("late")));
        assert_eq!(state.status, if n % 10 == 0 { 15 } else { 0 });
        machine.detach(&name).unwrap();
        assert!(becomes_free(path), "nothing of it is held");
        assert!(matches!(machine.inspect_device(&name), Err(ControlError::Refused(_))));
    }
    assert_eq!(fake.record().doorbells.len(), 1, "one doorbell served them all");
    fake.script(0, [Step::read32(slot(register::DEVICE_ID)), off()]);
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    assert_eq!(fake.record().answers.pop().unwrap().1, [0; 4]);
    assert_gone(&fake);
}

#[test]
fn what_was_detached_is_not_there_after_a_reset_nor_held_until_then() {
    let (image, kept) = (image(), image());
    let fake = Fake::new();
    let ids = || [0, 1].map(|n| Step::read32(slot(register::DEVICE_ID) + n * layout::VIRTIO_STRIDE));
    fake.script(0, ids());
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    let sent = resources.add(image.reopen().unwrap());
    config.disks = vec![DiskConfig { source: sent, ..disk("sent", image.path()) }, disk("kept", kept.path())];
    config.on_reset = OnReset::Reboot;
    let machine = start_with(&fake, &config, resources).unwrap();
    assert!(fake.wait_until(|record| record.answers.len() == 2));
    assert!(!is_free(image.path()));
    machine.detach(&DeviceName::Disk(DiskId::new("sent").unwrap())).unwrap();
    assert!(becomes_free(image.path()));
    fake.script(0, [Step::out(0x64, &[0xfe])]);
    fake.script(0, ids());
    fake.script(0, [off()]);
    let outcome = machine.wait();
    assert_eq!((outcome.reason, outcome.starts), (EndReason::PowerOff, 2));
    let answers: Vec<_> = fake.record().answers.into_iter().map(|(_, answer)| answer[0]).collect();
    // The disk that stayed comes first now, and the slot of the other is a spare one.
    assert_eq!(answers, [2, 2, 2, 0]);
}

#[test]
fn what_was_attached_is_there_after_a_reset_unless_it_was_detached_before() {
    let (image, other) = (image(), image());
    let fake = Fake::new();
    let ids = || [0, 1].map(|n| Step::read32(slot(register::DEVICE_ID) + n * layout::VIRTIO_STRIDE));
    fake.script(0, ids());
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    (config.spare_slots, config.on_reset) = (2, OnReset::Reboot);
    let machine = start_with(&fake, &config, resources).unwrap();
    assert!(fake.wait_until(|record| record.answers.len() == 2));
    machine.attach_disk(&disk("gone", other.path()), Resources::new()).unwrap();
    let mut sent = Resources::new();
    let source = sent.add(image.reopen().unwrap());
    machine.attach_disk(&DiskConfig { source, ..disk("late", image.path()) }, sent).unwrap();
    machine.detach(&DeviceName::Disk(DiskId::new("gone").unwrap())).unwrap();
    assert!(becomes_free(other.path()) && !is_free(image.path()));
    fake.script(0, [Step::out(0x64, &[0xfe])]);
    fake.script(0, ids());
    assert!(fake.wait_until(|record| record.answers.len() == 4));
    assert!(!is_free(image.path()));
    let late = DeviceName::Disk(DiskId::new("late").unwrap());
    assert_eq!(machine.inspect_device(&late).unwrap().name.as_deref(), Some("late"));
    // As before the reset, and gone with the next.
    machine.detach(&late).unwrap();
    assert!(becomes_free(image.path()));
    fake.script(0, [Step::out(0x64, &[0xfe])]);
    fake.script(0, ids());
    fake.script(0, [off()]);
    let outcome = machine.wait();
    assert_eq!((outcome.reason, outcome.starts), (EndReason::PowerOff, 3));
    let answers: Vec<_> = fake.record().answers.into_iter().map(|(_, answer)| answer[0]).collect();
    assert_eq!(answers, [0, 0, 2, 0, 0, 0]);
}

#[test]
fn a_detach_fits_a_pause_and_what_cannot_be_asked_is_refused_by_name() {
    let (image, second) = (image(), image());
    let fake = Fake::new();
    fake.script(0, drive());
    let machine = start(&fake, |config| {
        config.disks = vec![disk("root", image.path())];
        config.spare_slots = 1;
        config.rng = true;
        config.console = Endpoint::Stream;
    });
    assert!(fake.wait_until(|record| record.answers.len() == 1));
    let refused = |result: Result<(), ControlError>| match result {
        Err(ControlError::Refused(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let unknown = DeviceName::Disk(DiskId::new("other").unwrap());
    assert_eq!(refused(machine.detach(&unknown)), "the machine has no disk \"other\"");
    let fixed = refused(machine.detach(&DeviceName::Console));
    assert_eq!(fixed, "the console of this machine stays for as long as the machine");
    assert_eq!(refused(machine.request_memory(1 << 30)), "the machine has no memory device");
    let twice = refused(machine.attach_disk(&disk("root", second.path()), Resources::new()));
    assert_eq!(
        twice,
        "the machine has a disk \"root\" already, or one whose id begins with the same 20 bytes"
    );
    machine.pause().unwrap();
    machine.detach(&DeviceName::Disk(DiskId::new("root").unwrap())).unwrap();
    machine.detach(&DeviceName::Rng).unwrap();
    assert!(becomes_free(image.path()));
    // Its slot is the first one that is free.
    machine.attach_disk(&disk("root", second.path()), Resources::new()).unwrap();
    machine.resume().unwrap();
    let kinds: Vec<_> = machine.inspect().unwrap().devices.into_iter().map(|device| device.kind).collect();
    assert_eq!(kinds, ["block", "none", "console", "none"]);
    machine.stop().unwrap();
    assert_eq!(machine.wait().reason, EndReason::Stopped);
    assert!(becomes_free(second.path()));
    assert_gone(&fake);
}

/// The guest sees one disk, whose parts begin at multiples of 4096 bytes, and its monitor holds all
/// of their files.
#[test]
fn a_disk_of_several_files_is_one_device() {
    let file = |bytes: &[u8]| {
        let mut file = crate::sys::anonymous::memory_file("part").unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    let fake = Fake::new();
    fake.script(0, [register::DEVICE_ID, register::CONFIG].map(|at| Step::read32(slot(at))));
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    let mut parts = resources.add_all([file(&[1; 4096]), file(&[2; 5000]), file(&[3; 512])]);
    let first = parts.remove(0);
    let disk = DiskConfig::new(DiskId::new("image").unwrap(), first, true);
    config.disks = vec![DiskConfig { followed_by: parts, ..disk }];
    let machine = start_with(&fake, &config, resources).unwrap();
    assert!(fake.wait_until(|record| record.answers.len() == 2));
    let answers: Vec<_> = fake.record().answers.into_iter().map(|(_, answer)| answer[0]).collect();
    // A block device, and its sectors.
    assert_eq!(answers, [2, 8 + 16 + 8]);
    drop(machine);
}

/// The same of a disk that is put into a running machine, and again when the machine has been
/// started again.
#[test]
fn a_disk_of_several_files_is_attached() {
    let file = |bytes: &[u8]| {
        let mut file = crate::sys::anonymous::memory_file("part").unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    let fake = Fake::new();
    fake.script(0, [Step::read32(slot(register::DEVICE_ID))]);
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    (config.spare_slots, config.on_reset) = (1, OnReset::Reboot);
    let machine = start_with(&fake, &config, resources).unwrap();
    assert!(fake.wait_until(|record| record.answers.len() == 1));
    let attach = |sizes: [usize; 3], numbers: [u32; 3]| {
        let mut resources = Resources::new();
        resources.add_all(sizes.map(|size| file(&vec![1; size])));
        let [first, rest @ ..] = numbers.map(FileSource::Fd);
        let disk = DiskConfig::new(DiskId::new("late").unwrap(), first, true);
        machine.attach_disk(&DiskConfig { followed_by: rest.to_vec(), ..disk }, resources)
    };
    let error = attach([4096, 5000, 512], [0, 1, 3]).unwrap_err();
    assert!(matches!(&error, ControlError::Refused(error) if error.to_string().contains("[1]")), "{error:?}");
    attach([4096, 5000, 512], [0, 1, 2]).unwrap();
    let seen = || fake.record().answers.iter().map(|(_, answer)| answer[0]).collect::<Vec<_>>();
    fake.script(0, [register::DEVICE_ID, register::CONFIG].map(|at| Step::read32(slot(at))));
    assert!(fake.wait_until(|record| record.answers.len() == 3));
    assert_eq!(seen(), [0, 2, 8 + 16 + 8]);
    fake.script(0, [Step::out(0x64, &[0xfe])]);
    fake.script(0, [Step::read32(slot(register::CONFIG))]);
    assert!(fake.wait_until(|record| record.answers.len() == 4));
    assert_eq!(seen()[3], 8 + 16 + 8);
    drop(machine);
}

#[test]
fn a_disk_grows_under_its_driver_and_the_driver_is_told() {
    let fake = Fake::new();
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    let (first, fixed) = (image(), image());
    config.disks = vec![disk("root", first.path()), disk("kept", fixed.path())];
    config.disks[0].threads = DiskThreads::new(3).unwrap();
    config.disks[1].read_only = true;
    let machine = start_with(&fake, &config, resources).unwrap();
    let capacity = || Step::read32(slot(register::CONFIG));
    let answer = |wanted: usize| {
        assert!(fake.wait_until(|record| record.answers.len() >= wanted));
        let (_, bytes) = fake.record().answers.pop().unwrap();
        u32::from_le_bytes(bytes.try_into().unwrap())
    };
    let id = |name: &str| DiskId::new(name).unwrap();
    // Before a driver is there.
    machine.resize_disk(&id("root"), 16384).unwrap();
    fake.script(0, [Step::read32(slot(register::INTERRUPT_STATUS)), capacity()]);
    assert_eq!(answer(2), 32);
    fake.script(0, drive());
    assert_eq!(answer(3), 15);
    machine.resize_disk(&id("root"), 1 << 20).unwrap();
    fake.script(0, [capacity(), Step::read32(slot(register::INTERRUPT_STATUS))]);
    assert_eq!(answer(5), 2, "its configuration has changed");
    assert_eq!(fake.record().answers[3].1, 2048_u32.to_le_bytes());
    assert_eq!(first.as_file().metadata().unwrap().len(), 1 << 20);

    let chain = |error: ControlError| crate::text::chain(&error);
    for (name, bytes, what) in [
        ("root", 8192, "never made smaller"),
        ("root", (1 << 20) + 5, "whole sectors"),
        ("kept", 16384, "only read"),
        ("none", 16384, "has no disk \"none\""),
    ] {
        let error = chain(machine.resize_disk(&id(name), bytes).unwrap_err());
        assert!(error.contains(what), "{name} {bytes}: {error}");
    }
    let limits = DiskLimits { bytes_per_second: None, operations_per_second: std::num::NonZeroU64::new(5) };
    machine.limit_disk(&id("kept"), limits).unwrap();
    machine.limit_disk(&id("kept"), DiskLimits::default()).unwrap();
    assert!(chain(machine.limit_disk(&id("none"), limits).unwrap_err()).contains("none"));
    machine.detach(&DeviceName::Disk(id("root"))).unwrap();
    machine.resize_disk(&id("root"), 2 << 20).unwrap_err();
    fake.script(0, [off()]);
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    assert_gone(&fake);
}

#[test]
fn an_image_is_opened_with_what_lies_below_it_by_whoever_starts_the_machine() {
    use nelly_disk::{Format, NewImage, create_image};
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("base.raw"), vec![7; 1 << 20]).unwrap();
    std::fs::create_dir(path("elsewhere")).unwrap();
    let over = |at: &str, base: &str, format| {
        let backing = Some((path(base), format));
        create_image(&path(at), &NewImage { format: Format::Qcow2, size: None, cluster_bits: 16, backing })
            .unwrap()
    };
    over("middle.qcow2", "base.raw", Format::Raw);
    over("top.qcow2", "middle.qcow2", Format::Qcow2);
    over("elsewhere/far.qcow2", "middle.qcow2", Format::Qcow2);
    let qcow2 = |name: &str| DiskConfig { format: DiskFormat::Qcow2, ..disk("root", &path(name)) };
    let fake = Fake::new();
    let begin = |disk: DiskConfig| {
        let mut resources = Resources::new();
        let mut config = config(&mut resources);
        config.disks = vec![disk];
        start_with(&fake, &config, resources)
    };
    fake.script(0, [Step::read32(slot(register::CONFIG)), off()]);
    let machine = begin(qcow2("top.qcow2")).unwrap();
    assert_eq!(machine.wait().reason, EndReason::PowerOff);
    assert_eq!(fake.record().answers.pop().unwrap().1, 2048_u32.to_le_bytes());
    drop(machine);
    // What is handed in must be the whole chain, and nothing else.
    let handed = |below: &[(&str, DiskFormat)]| {
        let mut resources = Resources::new();
        let mut config = config(&mut resources);
        let open =
            |name: &str| File::options().read(true).write(name == "top.qcow2").open(path(name)).unwrap();
        let source = resources.add(open("top.qcow2"));
        let backing = below
            .iter()
            .map(|(name, format)| BackingFile { source: resources.add(open(name)), format: *format });
        config.disks = vec![DiskConfig { backing: backing.collect(), source, ..qcow2("top.qcow2") }];
        start_with(&fake, &config, resources)
    };
    let refusal = |started: Result<Machine, StartError>| crate::text::chain(&started.unwrap_err());
    let (middle, base) = (("middle.qcow2", DiskFormat::Qcow2), ("base.raw", DiskFormat::Raw));
    fake.script(0, [off()]);
    handed(&[middle, base]).unwrap().wait();
    for (below, what) in
        [(&[][..], "has a backing file"), (&[middle], "has a backing file"), (&[middle, middle], "")]
    {
        let error = refusal(handed(below));
        assert!(error.contains("root") && error.contains(what), "{error}");
    }
    let outside = refusal(begin(qcow2("elsewhere/far.qcow2")));
    assert!(outside.contains("outside"), "{outside}");
    fake.script(0, [off()]);
    begin(DiskConfig { backing_anywhere: true, ..qcow2("elsewhere/far.qcow2") }).unwrap().wait();
    // Two machines that would write to one image; several may stand on one.
    fake.script(0, [sign()]);
    let first = begin(qcow2("top.qcow2")).unwrap();
    assert!(refusal(begin(qcow2("top.qcow2"))).contains("in use"));
    assert!(refusal(begin(qcow2("middle.qcow2"))).contains("in use"));
    drop(first);
}
