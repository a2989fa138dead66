//! A device that comes back from saved state, in another process perhaps.

use super::super::packet::Op;
use super::*;
use crate::config::ContextId;
use crate::state::testing::{carry, refuses_damage, restore, written};
use crate::virtio::device::Device;
use crate::virtio::testing::Part;

const EVENT: usize = 2;

/// One that was saved while its guest had a connection, and that connection.
fn saved() -> (Vsock, Key) {
    let mut guest = Guest::new(without_door());
    let (_stream, key) = joined(&mut guest, 5);
    guest.device.reclaim(guest.bench.stop().state);
    (guest.device, key)
}

#[test]
fn the_guest_is_told_once_and_before_anything_else() {
    let (device, control) = {
        let mut fresh = without_door();
        carry(&saved().0, &mut fresh.0).unwrap();
        fresh
    };
    // Somebody wants in at once.
    let answer = connect(&control, 6);
    let mut guest = Guest::new((device, control));
    guest.listening.insert(6);
    guest.log = Some(Vec::new());
    guest.pump();
    assert_eq!(guest.log.as_deref(), Some(&[][..]), "the driver does not know yet");
    guest.bench.queues[EVENT].add(&[Part::Write(4)]);
    guest.bench.queues[EVENT].add(&[Part::Write(8)]);
    guest.bench.line.take();
    guest.bench.kick(EVENT);
    let used = guest.bench.queues[EVENT].used().unwrap();
    assert_eq!((used.len, used.data), (4, vec![0; 4]));
    assert_eq!(guest.bench.line.take(), 1);
    guest.pump();
    assert_eq!(guest.log.as_deref(), Some(&[][..]), "the driver is not through with it");
    assert_eq!(guest.bench.queues[EVENT].device_wish().1, 2, "it wants to hear of the third buffer");
    guest.bench.queues[EVENT].add(&[Part::Write(4)]);
    guest.bench.kick(EVENT);
    guest.pump();
    assert_eq!(guest.open().len(), 1);
    answer.try_recv().unwrap().unwrap();
    assert!(guest.bench.queues[EVENT].used().is_none(), "told once");
    // Nor again after a pause.
    guest.device.reclaim(guest.bench.stop().state);
    let mut guest = Guest::new((guest.device, guest.control));
    guest.bench.queues[EVENT].add(&[Part::Write(4)]);
    guest.bench.kick(EVENT);
    assert!(guest.bench.queues[EVENT].used().is_none());
}

#[test]
fn a_driver_that_starts_anew_is_told_nothing() {
    let (mut device, control) = without_door();
    carry(&saved().0, &mut device).unwrap();
    device.reset();
    let mut guest = Guest::new((device, control));
    guest.bench.queues[EVENT].add(&[Part::Write(4)]);
    guest.bench.kick(EVENT);
    assert!(guest.bench.queues[EVENT].used().is_none());
    joined(&mut guest, 6);
}

#[test]
fn what_stayed_behind_is_answered_with_a_reset() {
    let (saved, key) = saved();
    let (mut device, control) = without_door();
    carry(&saved, &mut device).unwrap();
    let mut guest = Guest::new((device, control));
    for _ in 0..2 {
        guest.bench.queues[EVENT].add(&[Part::Write(4)]);
        guest.bench.kick(EVENT);
    }
    guest.log = Some(Vec::new());
    guest.send(Guest::header(key, Op::Rw, 0, 3), b"old");
    guest.pump();
    let log = guest.log.take().unwrap();
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].0.op, log[0].0.dst_port), (Op::Rst.raw(), key.guest));
    assert_eq!(guest.control.connections(), 0);
}

#[test]
fn a_short_buffer_is_no_word() {
    let (mut device, control) = without_door();
    carry(&saved().0, &mut device).unwrap();
    let mut guest = Guest::new((device, control));
    guest.bench.queues[EVENT].add(&[Part::Write(3)]);
    guest.bench.kick(EVENT);
    assert_eq!(guest.bench.queues[EVENT].used().unwrap().len, 0);
    guest.bench.queues[EVENT].add(&[Part::Write(4)]);
    guest.bench.kick(EVENT);
    assert_eq!(guest.bench.queues[EVENT].used().unwrap().len, 4);
}

#[test]
fn the_monitors_own_port_stays_taken() {
    let make = || {
        let config = VsockConfig { power_port: Some(9), ..VsockConfig::default() };
        Vsock::new(&config, Some(Box::new(|_| {}))).unwrap()
    };
    for taken in [false, true] {
        let mut guest = Guest::new(make());
        if taken {
            let key = guest.dial(9);
            assert!(guest.sockets[&key].accepted);
        }
        guest.device.reclaim(guest.bench.stop().state);
        let (mut device, control) = make();
        carry(&guest.device, &mut device).unwrap();
        let mut guest = Guest::new((device, control));
        for _ in 0..2 {
            guest.bench.queues[EVENT].add(&[Part::Write(4)]);
            guest.bench.kick(EVENT);
        }
        let key = guest.dial(9);
        assert_eq!(guest.sockets[&key].accepted, !taken);
    }
}

#[test]
fn another_guest_and_damage_are_refused() {
    let saved = saved().0;
    let config = VsockConfig { cid: ContextId::new(77).unwrap(), ..VsockConfig::default() };
    let (mut other, _control) = Vsock::new(&config, None).unwrap();
    let error = restore(&mut other, written(&saved)).unwrap_err().to_string();
    assert!(error.ends_with("its context id is 3, and here it is 77"), "{error}");
    refuses_damage(&saved, || without_door().0, |_| {});
}
