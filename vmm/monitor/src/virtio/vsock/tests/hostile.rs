//! A guest that means harm, or is broken.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::super::packet::{HEADER_LEN, Header, Op, SHUTDOWN_BOTH};
use super::super::{fuzz_packets, receive_accepted};
use super::*;
use crate::virtio::testing::Part;

/// What the device answered since the log was opened.
fn answers(guest: &mut Guest) -> Vec<Op> {
    let log = guest.log.take().unwrap();
    guest.log = Some(Vec::new());
    log.iter().map(|(header, _)| Op::from_raw(header.op).unwrap()).collect()
}

fn proper_use(guest: &mut Guest) {
    let (mut stream, key) = joined(guest, 77);
    stream.write_all(b"proper").unwrap();
    guest.pump();
    assert_eq!(guest.sockets[&key].received, b"proper");
    guest.write_all(key, b"use");
    let mut bytes = [0; 3];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"use");
    guest.shutdown(key, SHUTDOWN_BOTH);
    assert_eq!(stream.read(&mut bytes).unwrap(), 0);
}

#[test]
fn what_belongs_to_no_connection_is_answered_by_rst() {
    let mut guest = Guest::new(without_door());
    guest.log = Some(Vec::new());
    let key = Key { guest: 1, host: 2 };
    for raw in (0..=u16::MAX).step_by(13).chain(0..10) {
        let header = Header { op: raw, ..Guest::header(key, Op::Rw, 0, 0) };
        guest.send(header, &[]);
        guest.pump();
        let expected: &[Op] = if raw == Op::Rst.raw() { &[] } else { &[Op::Rst] };
        assert_eq!(answers(&mut guest), expected, "operation {raw}");
    }
    let base = Guest::header(key, Op::Request, 0, 0);
    let table = [
        ("another socket type", Header { kind: 2, ..base }, 1),
        ("another destination", Header { dst_cid: 9, ..base }, 1),
        ("another destination, reset", Header { dst_cid: 9, op: Op::Rst.raw(), ..base }, 0),
        ("somebody else's name", Header { src_cid: 9, ..base }, 0),
        ("the host's name", Header { src_cid: 2, ..base }, 0),
        ("high bits of the name", Header { src_cid: 3 | 1 << 32, ..base }, 0),
    ];
    for (name, header, count) in table {
        guest.send(header, &[]);
        guest.pump();
        assert_eq!(answers(&mut guest).len(), count, "{name}");
    }
    assert_eq!(guest.control.connections(), 0);
    proper_use(&mut guest);
}

#[test]
fn breaking_the_protocol_on_a_connection_costs_the_connection() {
    let mut guest = Guest::new(without_door());
    let cases: [(&str, Header, usize); 5] = [
        ("a second REQUEST", Header { op: 1, ..Header::default() }, 0),
        ("a RESPONSE to nothing", Header { op: 2, ..Header::default() }, 0),
        ("an unknown operation", Header { op: 99, ..Header::default() }, 0),
        ("a length beyond the chain", Header { op: 5, len: 4096, ..Header::default() }, 100),
        ("a length beyond everything", Header { op: 5, len: u32::MAX, ..Header::default() }, 100),
    ];
    for (name, bad, payload) in cases {
        let (stream, key) = joined(&mut guest, 5);
        let faults = guest.control.faults();
        let Header { op, len, .. } = bad;
        let header = Header { op, len, ..Guest::header(key, Op::Rw, 0, 0) };
        guest.send(header, &vec![0; payload]);
        guest.pump();
        assert!(guest.sockets[&key].reset, "{name}");
        assert_eq!(guest.control.faults(), faults + 1, "{name}");
        assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0, "{name}");
    }
    assert_eq!(guest.control.connections(), 0);
    proper_use(&mut guest);
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset_and_what_fitted_arrives() {
    let mut guest = Guest::new(without_door());
    let (mut stream, key) = joined(&mut guest, 5);
    let bytes = Pattern::bytes(9, 2 << 20);
    let mut sent = 0;
    while let count @ 1.. = guest.write(key, &bytes[sent..]) {
        sent += count;
    }
    assert!(sent < bytes.len() && guest.sockets[&key].credit() == 0);
    // The device may have room by now that it has not told of; not for more than a whole window,
    // though.
    let header = Guest::header(key, Op::Rw, 0, (256 << 10) + 1);
    guest.send(header, &vec![1; (256 << 10) + 1]);
    guest.pump();
    assert!(guest.sockets[&key].reset);
    let mut got = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        got.extend_from_slice(&buffer[..count]);
        guest.pump();
    }
    assert!(got == bytes[..sent]);
    assert_eq!(guest.control.connections(), 0);
}

#[test]
fn chains_of_every_shape() {
    let mut guest = Guest::new(without_door());
    let (mut stream, key) = joined(&mut guest, 5);
    // Too short for a header, in one piece and in several; nothing at all to read.
    guest.send_parts(&[Part::Read(vec![0; HEADER_LEN - 1])]);
    guest.send_parts(&[Part::Read(vec![0; 20]), Part::Read(vec![0; 23])]);
    guest.bench.queues[1].add(&[Part::Write(100)]);
    guest.bench.kick(1);
    assert_eq!(guest.bench.queues[1].used().unwrap().len, 0);
    assert_eq!(guest.control.faults(), 3);
    // A header in crumbs, and payload in its tail.
    let header = Guest::header(key, Op::Rw, 0, 6).encode();
    let mut parts: Vec<Part> = header.iter().map(|byte| Part::Read(vec![*byte])).collect();
    parts.push(Part::Read(b"cru".to_vec()));
    parts.push(Part::Read(b"mbs and more than was said".to_vec()));
    guest.send_parts(&parts);
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"crumbs");
    guest.pump();
    assert_eq!(guest.bench.interrupt.faults(), 0);
}

#[test]
fn receive_buffers_too_small_for_anything_are_given_back() {
    let (mut device, control) = without_door();
    let mut bench = crate::virtio::testing::Bench::new(&mut device, 16, None);
    let _answer = connect(&control, 5);
    bench.queues[0].add(&[Part::Write(10)]);
    bench.queues[0].add(&[Part::Read(vec![0; 10])]);
    bench.queues[0].add(&[Part::Write(20), Part::Write(24)]);
    bench.kick(0);
    assert_eq!(bench.queues[0].used().unwrap().len, 0);
    assert_eq!(bench.queues[0].used().unwrap().len, 0);
    let used = bench.queues[0].used().unwrap();
    assert_eq!(used.len, 44);
    let header = Header::decode(used.data.first_chunk().unwrap());
    assert_eq!((header.op, header.dst_port), (Op::Request.raw(), 5));
    assert_eq!(control.faults(), 2);
}

#[test]
fn resets_that_find_no_room_hold_the_guests_packets_up_and_lose_none() {
    let mut guest = Guest::new(without_door());
    guest.refill = false;
    guest.bench.turn();
    // 256 buffers take the first answers; then they pile up until the device reads no more.
    let mut sent = 0u32;
    while guest.bench.queues[1].config().size > 0 && sent < 3000 {
        let header = Guest::header(Key { guest: sent, host: 1 }, Op::Request, 0, 0);
        guest.bench.queues[1].add(&[Part::Read(header.encode().to_vec())]);
        guest.bench.kick(1);
        sent += 1;
        if guest.bench.queues[1].used().is_none() {
            break;
        }
        while guest.bench.queues[1].used().is_some() {}
    }
    assert!((1024..2000).contains(&sent), "{sent} packets were read without an answer leaving");
    assert!(!guest.bench.is_ready(std::time::Duration::from_millis(20)));
    guest.log = Some(Vec::new());
    guest.refill = true;
    guest.pump();
    assert!(guest.bench.queues[1].used().is_some());
    let mut ports: Vec<u32> = guest.log.take().unwrap().iter().map(|(header, _)| header.dst_port).collect();
    ports.sort_unstable();
    assert_eq!(ports, (0..sent).collect::<Vec<_>>());
    proper_use(&mut guest);
}

#[test]
fn a_guest_without_room_cannot_pile_up_turns() {
    let mut guest = Guest::new(without_door());
    let (ours, theirs) = crate::sys::stream_pair().unwrap();
    guest.control.listen(6, theirs);
    guest.refill = false;
    guest.bench.turn();
    for port in 0..5000 {
        let key = Key { guest: port, host: 6 };
        guest.send(Guest::header(key, Op::Request, 0, 0), &[]);
        drop(receive_accepted(ours.as_fd()).unwrap());
        guest.send(Guest::header(key, Op::Rst, 0, 0), &[]);
    }
    let returned = guest.bench.stop();
    let rest = returned.state.downcast::<super::super::worker::Rest>().unwrap();
    assert!(rest.muxer.turns_len() <= 64, "{}", rest.muxer.turns_len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_packets(&data);
    }

    /// Few ports, valid addresses: this comes deep.
    #[test]
    fn any_sequence_of_plausible_packets_is_survived(
        packets in proptest::collection::vec((0u16..9, 0u32..4, 0u32..4, 0u32..3000, any::<u32>(), any::<u32>()), 1..80),
    ) {
        let mut guest = Guest::new(without_door());
        let (ours, theirs) = crate::sys::stream_pair().unwrap();
        guest.control.listen(1, theirs);
        guest.listening.insert(2);
        let streams: Vec<_> = (0..2).map(|_| joined(&mut guest, 2)).collect();
        let mut accepted = Vec::new();
        for (op, guest_port, flags, len, alloc, forwarded) in packets {
            let key = if guest_port == 2 { streams[0].1 } else { Key { guest: guest_port, host: 1 } };
            let header = Header {
                op,
                buf_alloc: alloc,
                fwd_cnt: forwarded,
                ..Guest::header(key, Op::Rw, flags, len)
            };
            let payload = vec![0; usize::try_from(len.saturating_sub(flags)).unwrap()];
            guest.send(header, &payload);
            // Another guest model would lose count; the device must not.
            guest.sockets.clear();
            guest.pump();
            ours_nonblocking(&ours);
            if let Ok(Some((stream, ..))) = receive_accepted(ours.as_fd()) {
                let mut stream = stream;
                // The guest may have closed its half already.
                let _ = stream.write_all(b"to whom it may concern");
                accepted.push(stream);
            }
        }
        drop((streams, accepted));
        guest.pump();
        prop_assert_eq!(guest.bench.interrupt.faults(), 0);
        proper_use(&mut guest);
    }
}

fn ours_nonblocking(channel: &std::os::fd::OwnedFd) {
    crate::sys::set_nonblocking(channel).unwrap();
}
