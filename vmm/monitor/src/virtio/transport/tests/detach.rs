//! Devices that are taken out of their slots, and what comes after them.

use std::sync::Arc;

use nelly_disk::RawDisk;

use super::*;
use crate::config::VsockConfig;
use crate::virtio::blk::Block;
use crate::virtio::device::Device;
use crate::virtio::vsock::Vsock;

/// A disk of eight sectors, and the file behind it.
fn disk() -> (Box<dyn Device>, std::fs::File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    // Another descriptor of another open file: it can be locked once the disk's is gone.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let other = std::fs::File::open(path).unwrap();
    (Box::new(Block::new(Box::new(RawDisk::new(file, false).unwrap()), "late")), other)
}

#[test]
fn a_slot_is_emptied_and_used_again_a_thousand_times() {
    let mut machine = Machine::empty();
    let mut bells = Vec::new();
    for n in 0..1000 {
        let (device, other): (Box<dyn Device>, _) = if n % 3 == 0 {
            (Box::new(Rng), None)
        } else {
            let (device, other) = disk();
            (device, Some(other))
        };
        machine.transport().attach(device).unwrap();
        assert!(matches!(machine.transport().attach(Box::new(Rng)), Err(AttachError::Occupied(5))));
        // Never driven, driven, used, or called home by a reset or a pause meanwhile.
        match n % 5 {
            0 => {}
            1 => machine.drive(),
            2 if n % 3 == 0 => {
                machine.drive();
                machine.use_it();
            }
            3 => {
                machine.drive();
                machine.turn();
                machine.set_status(0);
            }
            _ => {
                machine.drive();
                machine.turn();
                machine.transport().pause();
            }
        }
        machine.transport().detach();
        machine.transport().detach();
        machine.turn();
        assert!(machine.transport().vacant() && machine.transport().paused());
        assert_eq!((machine.read(reg::DEVICE_ID), machine.status()), (id::NONE, 0));
        assert_eq!(machine.read(reg::INTERRUPT_STATUS), 0);
        machine.write(reg::QUEUE_NOTIFY, 0);
        machine.transport().resume();
        assert!(machine.transport().interrupt().tally().identity().is_none());
        if let Some(other) = other {
            other.try_lock().expect("nobody has the disk's file open any more");
        }
        // One doorbell, the first one, for all of them.
        let now: Vec<_> = machine.transport().doorbells().map(|(_, bell)| Arc::as_ptr(bell)).collect();
        if n == 0 {
            bells = now;
        } else {
            assert_eq!(now, bells);
        }
    }
    machine.transport().attach(Box::new(Rng)).unwrap();
    machine.drive();
    machine.use_it();
}

#[test]
fn a_detach_waits_for_the_worker_and_so_does_the_driver() {
    let mut machine = Machine::with_rng();
    machine.drive();
    machine.turn();
    machine.transport().detach();
    assert!(!machine.transport().vacant() && !machine.transport().paused());
    assert!(matches!(machine.transport().attach(Box::new(Rng)), Err(AttachError::Occupied(5))));
    // Neither a reset of the driver's nor a pause of the machine's changes what is under way.
    machine.set_status(0);
    machine.transport().pause();
    assert_eq!(machine.slot.mmio.write(reg::STATUS, &u32::from(ACKNOWLEDGE).to_le_bytes()), Effect::Again);
    assert_eq!((machine.status(), machine.read(reg::DEVICE_ID)), (READY, id::ENTROPY));
    machine.turn();
    assert!(machine.transport().vacant() && machine.transport().paused());
    assert_eq!(machine.slot.workers.stops(), 1, "asked once");
    machine.set_status(ACKNOWLEDGE);
    assert_eq!(machine.status(), 0, "an empty slot takes no driver");
}

#[test]
fn a_device_with_fewer_queues_is_not_rung_by_the_bells_of_the_one_before() {
    let mut machine = Machine::empty();
    let (vsock, _control) = Vsock::new(&VsockConfig::default(), None).unwrap();
    machine.transport().attach(Box::new(vsock)).unwrap();
    assert_eq!(machine.transport().doorbells().count(), 3);
    machine.transport().detach();
    machine.transport().attach(Box::new(Rng)).unwrap();
    machine.drive();
    machine.use_it();
    let ignored = machine.transport().ignored();
    machine.write(reg::QUEUE_NOTIFY, 1);
    assert_eq!(machine.transport().ignored(), ignored + 1);
    // By the hypervisor's short cut it rings where nobody listens.
    machine.transport().doorbells().nth(2).unwrap().1.notify().unwrap();
    machine.turn();
    machine.use_it();
}

#[test]
fn faults_are_told_of_the_device_that_made_them() {
    let mut machine = Machine::with_rng();
    let break_it = |machine: &mut Machine| {
        machine.drive();
        machine.driver.offer(64);
        machine.write(reg::QUEUE_NOTIFY, 0);
        machine.turn();
        assert!(machine.transport().interrupt().needs_reset());
    };
    break_it(&mut machine);
    machine.transport().detach();
    machine.turn();
    assert!(machine.transport().vacant() && !machine.transport().interrupt().needs_reset());
    machine.transport().attach(disk().0).unwrap();
    break_it(&mut machine);
    machine.reset();
    break_it(&mut machine);
    let faults = machine.transport().interrupt().tally().faults();
    let faults: Vec<_> =
        faults.iter().map(|fault| (fault.device_id, fault.name.as_deref(), fault.count)).collect();
    assert_eq!(faults, [(id::ENTROPY, None, 1), (id::BLOCK, Some("late"), 2)]);
}
