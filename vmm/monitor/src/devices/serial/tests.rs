//! The port to a guest and to its host, and its state.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;
use crate::hv::IrqLine;
use crate::state::testing::{carry, refuses_damage};

#[derive(Default)]
struct Edges(AtomicU32);

impl IrqLine for Edges {
    fn pulse(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn set(&self, _high: bool) -> io::Result<()> {
        unreachable!("the port's line is an edge")
    }
}

struct Recorder {
    sent: Vec<u8>,
    room: usize,
    wanted: u32,
}

impl Line for Recorder {
    fn ready(&self) -> bool {
        self.sent.len() < self.room
    }

    fn transmit(&mut self, byte: u8) {
        self.sent.push(byte);
    }

    fn input_wanted(&mut self) {
        self.wanted += 1;
    }
}

fn port(room: usize) -> (Serial<Recorder>, Arc<Edges>) {
    let edges = Arc::new(Edges::default());
    (Serial::new(Recorder { sent: Vec::new(), room, wanted: 0 }, edges.clone()), edges)
}

fn get(port: &mut Serial<Recorder>, offset: u64) -> u8 {
    let mut byte = [0];
    port.read(offset, &mut byte);
    byte[0]
}

fn put(port: &mut Serial<Recorder>, offset: u64, value: u8) {
    assert_eq!(port.write(offset, &[value]), Effect::None);
}

#[test]
fn looks_like_a_16550a_to_linux() {
    let (mut port, _) = port(usize::MAX);
    // autoconfig(): IER keeps 4 bits, scratch keeps 8, loopback wires the modem lines, FIFOs
    // answer in IIR.
    put(&mut port, 1, 0);
    assert_eq!(get(&mut port, 1), 0);
    put(&mut port, 1, 0x0f);
    assert_eq!(get(&mut port, 1), 0x0f);
    put(&mut port, 1, 0);
    put(&mut port, 4, 0x1a);
    assert_eq!(get(&mut port, 6) & 0xf0, 0x90);
    put(&mut port, 4, 0);
    assert_eq!(get(&mut port, 6), 0xb0);
    put(&mut port, 2, 1);
    assert_eq!(get(&mut port, 2) >> 6, 3);
    put(&mut port, 2, 0);
    assert_eq!(get(&mut port, 2), 1);
    put(&mut port, 7, 0xa5);
    assert_eq!(get(&mut port, 7), 0xa5);
    // The divisor hides data and IER.
    put(&mut port, 3, 0x83);
    put(&mut port, 0, 1);
    put(&mut port, 1, 2);
    assert_eq!((get(&mut port, 0), get(&mut port, 1)), (1, 2));
    put(&mut port, 3, 3);
    assert_eq!((get(&mut port, 1), port.line.sent.len()), (0, 0));
    assert_eq!(get(&mut port, 5), 0x60);
}

#[test]
fn the_transmit_interrupt_answers_each_enabling_and_each_burst_once() {
    let (mut port, edges) = port(usize::MAX);
    for round in 1..=2 {
        put(&mut port, 1, 2);
        assert_eq!(edges.0.load(Ordering::SeqCst), round);
        assert_eq!(get(&mut port, 2), 2);
        assert_eq!(get(&mut port, 2), 1);
        put(&mut port, 1, 0);
    }
    put(&mut port, 1, 2);
    assert_eq!(get(&mut port, 2), 2);
    for byte in 0..16 {
        put(&mut port, 0, byte);
    }
    assert_eq!(edges.0.load(Ordering::SeqCst), 4);
    assert_eq!(get(&mut port, 2), 2);
    assert_eq!(port.line.sent.len(), 16);
}

#[test]
fn a_slow_host_holds_the_transmitter() {
    let (mut port, edges) = port(2);
    put(&mut port, 1, 2);
    assert_eq!(get(&mut port, 2), 2);
    put(&mut port, 0, b'a');
    put(&mut port, 0, b'b');
    assert_eq!(get(&mut port, 5), 0);
    assert_eq!(get(&mut port, 2), 1);
    let before = edges.0.load(Ordering::SeqCst);
    port.line.room = 4;
    port.drained();
    assert_eq!(edges.0.load(Ordering::SeqCst), before + 1);
    assert_eq!((get(&mut port, 5), get(&mut port, 2)), (0x60, 2));
}

#[test]
fn input_waits_for_the_guest_and_interrupts_it() {
    let (mut port, edges) = port(usize::MAX);
    assert_eq!(port.receive(b"hi"), 2);
    // What a driver does when it opens the port.
    put(&mut port, 2, 7);
    assert_eq!((get(&mut port, 5), get(&mut port, 0), get(&mut port, 2)), (0x60, 0, 0xc1));
    put(&mut port, 1, 1);
    assert_eq!(edges.0.load(Ordering::SeqCst), 1);
    assert_eq!((get(&mut port, 5), get(&mut port, 2)), (0x61, 0xc4));
    assert_eq!((get(&mut port, 0), get(&mut port, 0), get(&mut port, 2)), (b'h', b'i', 0xc1));
    port.receive(b"!");
    assert_eq!(edges.0.load(Ordering::SeqCst), 2);
    put(&mut port, 2, 0xc1);
    assert_eq!(get(&mut port, 2), 0xcc);
    put(&mut port, 1, 0);
    // Polling, by RTS alone.
    put(&mut port, 4, 2);
    assert_eq!((get(&mut port, 5) & 1, get(&mut port, 0), get(&mut port, 5) & 1), (1, b'!', 0));
}

#[test]
fn a_full_input_is_refused_and_asked_for_again_once() {
    let (mut port, _) = port(usize::MAX);
    put(&mut port, 4, 2);
    assert_eq!(port.receive(&[7; 2000]), INPUT_CAPACITY);
    assert_eq!(port.receive(&[7; 1]), 0);
    for _ in 0..INPUT_CAPACITY {
        get(&mut port, 0);
    }
    assert_eq!(port.line.wanted, 1);
}

proptest! {
    #[test]
    fn nothing_a_guest_does_breaks_it(accesses in prop::collection::vec((any::<bool>(), 0u64..8, any::<u8>(), 0usize..4), 0..200)) {
        let (mut port, _) = port(50);
        for (write, offset, value, width) in accesses {
            let width = (1 << width).min(8 - usize::try_from(offset).unwrap());
            if write {
                prop_assert_eq!(port.write(offset, &vec![value; width]), Effect::None);
            } else {
                port.read(offset, &mut vec![0; width]);
            }
            prop_assert!(port.receive(&[value]) <= 1);
            prop_assert!(port.input.len() <= INPUT_CAPACITY);
        }
        // After all that an ordinary driver still gets through.
        put(&mut port, 3, 0);
        put(&mut port, 4, 0);
        let sent = port.line.sent.len();
        put(&mut port, 0, b'x');
        prop_assert_eq!(port.line.sent.len(), sent + 1);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64),
    Write(u64, u8),
    Receive(usize),
    Drain,
}

/// What the guest and the host saw of it.
fn take(port: &mut Serial<Recorder>, edges: &Edges, step: &Step) -> (u8, u32, Vec<u8>, u32, usize) {
    let mut count = 0;
    let byte = match step {
        Step::Read(offset) => get(port, *offset),
        Step::Write(offset, value) => {
            put(port, *offset, *value);
            0
        }
        Step::Receive(len) => {
            let bytes: Vec<u8> = (0..=255).cycle().take(*len).collect();
            count = port.receive(&bytes);
            0
        }
        Step::Drain => {
            port.line.room += 1;
            port.drained();
            0
        }
    };
    let line = &mut port.line;
    (byte, edges.0.swap(0, Ordering::SeqCst), line.sent.clone(), std::mem::take(&mut line.wanted), count)
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![any::<u8>(), 0u8..4, Just(0x12), Just(0x83)];
    let step = prop_oneof![
        4 => (0u64..8).prop_map(Step::Read),
        6 => (0u64..8, value).prop_map(|(offset, value)| Step::Write(offset, value)),
        2 => prop_oneof![0usize..20, 500usize..1500].prop_map(Step::Receive),
        1 => Just(Step::Drain),
    ];
    prop::collection::vec(step, 0..most)
}

proptest! {
    #[test]
    fn goes_on_where_the_saved_one_was(before in steps(40), after in steps(80)) {
        let (mut saved, saved_edges) = port(3);
        for step in &before {
            take(&mut saved, &saved_edges, step);
        }
        let (mut restored, restored_edges) = port(saved.line.room);
        restored.line.sent.clone_from(&saved.line.sent);
        carry(&saved, &mut restored).unwrap();
        // Until a random step asks for all that waits.
        let rest = [Step::Write(3, 0), Step::Write(4, 2)].into_iter();
        let rest = rest.chain(std::iter::repeat_n(Step::Read(0), INPUT_CAPACITY));
        for step in after.into_iter().chain(rest) {
            let (expected, found) =
                (take(&mut saved, &saved_edges, &step), take(&mut restored, &restored_edges, &step));
            prop_assert_eq!(expected, found, "{:?}", step);
        }
    }
}

#[test]
fn a_guest_that_waited_for_the_transmitter_is_told_when_the_machine_goes_on() {
    let (mut saved, _) = port(1);
    put(&mut saved, 1, 2);
    put(&mut saved, 0, b'a');
    assert_eq!((get(&mut saved, 5), get(&mut saved, 2)), (0, 1));
    let (mut restored, edges) = port(9);
    carry(&saved, &mut restored).unwrap();
    assert_eq!(edges.0.load(Ordering::SeqCst), 0, "to restore is no interrupt");
    restored.drained();
    assert_eq!((edges.0.load(Ordering::SeqCst), get(&mut restored, 2)), (1, 2));
}

#[test]
fn damaged_state_is_refused() {
    let (mut saved, _) = port(1);
    saved.receive(b"some input");
    refuses_damage(
        &saved,
        || port(1).0,
        |port| {
            for offset in 0..8 {
                get(port, offset);
            }
        },
    );
    saved.input.resize(INPUT_CAPACITY + 1, 0);
    let refused = carry(&saved, &mut port(1).0).unwrap_err().to_string();
    assert!(refused.ends_with("it has a list of 1025, and 1024 is the most"), "{refused}");
    saved.input.clear();
    saved.registers.interrupt_enable = 0x10;
    assert!(carry(&saved, &mut port(1).0).is_err());
}
