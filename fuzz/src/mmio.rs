//! A driver made of arbitrary register accesses and memory writes against a virtio-mmio transport
//! with a device of any kind behind it.

use nelly_vmm::bus::{BusDevice, Effect};
use nelly_vmm::virtio::testing::OneSlot;
use vm_memory::{Bytes as _, GuestAddress};

use super::{Bytes, devices};

const MEMORY: usize = 64 << 10;
/// Accesses of one input.
const STEPS: usize = 400;

/// The first byte chooses the device. Carries out accesses of eight bytes each: a kind (bit 0
/// write, bits 1 and 2 the width, all set: memory), a register in words, a value, and the place in
/// memory that is written instead.
///
/// # Panics
/// When the transport or the device does.
pub fn run(data: &[u8]) {
    let _ = interrupts(data);
}

/// As [`run`]; whether the device interrupted its driver.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn interrupts(data: &[u8]) -> bool {
    let OneSlot { memory, mmio: mut transport, line, mut workers } = OneSlot::new(3, MEMORY);
    let mut input = Bytes(data);
    let [choice] = input.take();
    transport.0.attach(devices::device(choice)).expect("an empty slot");
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let [kind, register, a, b, c, d, low, high] = input.take();
        let (write, value) = (kind & 1 != 0, [a, b, c, d, a, b, c, d]);
        let mut width = 1 << (kind >> 1 & 3);
        if kind >> 3 == 31 {
            let at = u64::from(u16::from_le_bytes([low, high])) & 0xfff8;
            memory.write_slice(&value, GuestAddress(at)).expect("inside memory");
            continue;
        }
        // Most accesses are of the width that counts.
        if kind & 0x80 == 0 {
            width = 4;
        }
        let offset = (u64::from(register) << 2) + u64::from(low & 3) * u64::from(kind & 0x80 != 0);
        if write {
            if transport.write(offset, &value[..width]) == Effect::Again {
                workers.turn();
                assert_eq!(transport.write(offset, &value[..width]), Effect::None, "the worker is home");
            }
        } else {
            let mut answer = [0; 8];
            transport.read(offset, &mut answer[..width]);
        }
        workers.turn();
    }
    // What a hostile driver left behind must not keep a sound one from the device.
    let _ = transport.write(0x70, &[0; 4]);
    workers.turn();
    let mut status = [0xff; 4];
    transport.read(0x70, &mut status);
    assert_eq!(status, [0; 4], "a reset puts the device back");
    line.take() > 0
}

/// A driver that starts each device and gives each of its queues a buffer to read and one to write,
/// then resets it.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let write = |register: u8, value: u32| {
        let [a, b, c, d] = value.to_le_bytes();
        [5, register / 4, a, b, c, d, 0, 0]
    };
    let read = |register: u8| [4, register / 4, 0, 0, 0, 0, 0, 0];
    let poke = |at: u32, value: u32| {
        let ([a, b, c, d], [low, high, ..]) = (value.to_le_bytes(), at.to_le_bytes());
        [0xf8, 0, a, b, c, d, low, high]
    };
    let begin = [
        read(0),
        read(4),
        read(8),
        write(0x70, 0),
        write(0x70, 1),
        write(0x70, 3),
        write(0x14, 0),
        read(0x10),
        write(0x14, 1),
        read(0x10),
        write(0x24, 1),
        write(0x20, 1),
        write(0x70, 11),
        read(0x70),
    ]
    .concat();
    // A queue of 8 in a page of its own: descriptors, the available ring, the used ring.
    let queue = |index: u32| {
        let page = index * 0x1000;
        [
            write(0x30, index),
            read(0x34),
            write(0x38, 8),
            write(0x80, page),
            write(0x84, 0),
            write(0x90, page + 0x100),
            write(0x94, 0),
            write(0xa0, page + 0x200),
            write(0xa4, 0),
            write(0x44, 1),
        ]
        .concat()
    };
    // Memory is written eight bytes at a time, the value twice: 0x1000 bytes at 0x1000 are a
    // descriptor good enough. The flags of the second say that it is the device's to write.
    let ask = |index: u32| {
        let page = index * 0x1000;
        [
            poke(page, 0x8000),
            poke(page + 8, 0x0001_0001),
            poke(page + 0x10, 0x9000),
            poke(page + 0x18, 0x0000_0002),
            poke(page + 0x100, 0x0001_0000),
            write(0x50, index),
            read(0x60),
            write(0x64, 1),
        ]
        .concat()
    };
    let mut seeds = vec![[&[0][..], &begin, &queue(0)].concat()];
    // As many queues as each has; the entropy device takes what is to be written first.
    for (kind, queues) in (0..).zip([1, 1, 2, 1, 3, 3, 2, 5]) {
        let mut seed = [&[kind][..], &begin].concat();
        (0..queues).for_each(|index| seed.extend(queue(index)));
        seed.extend(write(0x70, 15));
        seed.extend([read(0x40), read(0x0c * 4)].concat());
        (0..queues).for_each(|index| seed.extend(ask(index)));
        if kind == 0 {
            seed.extend([poke(0, 0x1000), poke(8, 0x0002_0010), poke(0x108, 0x0002_0000)].concat());
            seed.extend([poke(0x100, 0x0002_0000), write(0x50, 0), read(0x60), write(0x64, 1)].concat());
        }
        seed.extend(write(0x70, 0));
        seeds.push(seed);
    }
    seeds
}
