//! A guest's reports of free memory, compared with a list of pages: given back are those that a
//! report names whole, and nothing else changes.

use nelly_vmm::memory::{Backing, GuestRam};
use nelly_vmm::virtio::balloon::Balloon;
use nelly_vmm::virtio::device::Device;
use nelly_vmm::virtio::spec::feature;
use nelly_vmm::virtio::testing::Bench;
use vm_memory::{Bytes as _, GuestAddress};

use super::Bytes;

const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;
/// Behind the rings of five queues, 8 MiB each.
const FREE: u64 = 40 << 20;
const PAGES: usize = 64;
const F_PAGE_POISON: u64 = 1 << 4;
const F_REPORTING: u64 = 1 << 5;
const WRITE: u16 = 2;

/// Steps of eight bytes: what, a queue, where (in bytes, two), how many bytes (two), two for more.
///
/// # Panics
/// When a page is taken that was not reported, or one is kept that was.
pub fn run(data: &[u8]) {
    let _ = given(data);
}

/// As [`run`]; the pages that were given back.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn given(data: &[u8]) -> u64 {
    let mut input = Bytes(data);
    let [choice] = input.take();
    let features = feature::VERSION_1
        | if choice & 1 == 0 { F_REPORTING } else { 0 }
        | if choice & 2 == 0 { F_PAGE_POISON } else { 0 };
    let len = FREE + PAGE * PAGES as u64;
    // Two slots that touch in the middle of what is reported.
    let border = FREE + PAGE * (PAGES as u64 / 2);
    let ranges = [(0, border), (border, len - border)];
    let ram = GuestRam::laid_out(&ranges, None, Backing::Anonymous).expect("memory");
    let (mut device, view) = Balloon::new(ram.slots());
    let mut bench = Bench::over(ram.memory().clone(), &mut device, 32, Some(features));
    let mut model = Model { full: [false; PAGES], given: 0, poison: 0 };
    for _ in 0..500 {
        if input.is_empty() {
            break;
        }
        let [op, queue, a, b, c, d, e, f] = input.take();
        let number = |low, high| u64::from(u16::from_le_bytes([low, high]));
        match op & 7 {
            // A report of one piece or two.
            0..=3 => {
                let queue = usize::from(queue % 5);
                // Of 18 bits: all of what is reported, and beyond its end.
                let (first, bytes) =
                    (number(a, b) * 4 + u64::from(e & 3), 1 + number(c, d) * u64::from(1 + (f & 3)));
                let mut pieces = vec![(first, bytes)];
                pieces.extend((op & 1 == 1).then_some((PAGE * u64::from(f % 64), PAGE)));
                let sound = pieces.iter().all(|(first, bytes)| FREE + first + bytes <= len);
                let count = u16::try_from(pieces.len()).expect("two");
                for (index, (first, bytes)) in (0..).zip(&pieces) {
                    let more = u16::from(index + 1 < count);
                    let bytes = u32::try_from(*bytes).expect("three times 16 bits");
                    bench.queues[queue].descriptor(index, FREE + first, bytes, WRITE | more, index + 1);
                }
                bench.queues[queue].offer(0);
                bench.kick(queue);
                assert_eq!(
                    bench.interrupt.faults(),
                    u64::from(!sound),
                    "what is outside memory breaks the queue"
                );
                if !sound {
                    break;
                }
                if queue >= 2
                    && features & F_REPORTING != 0
                    && (features & F_PAGE_POISON == 0 || model.poison == 0)
                {
                    pieces.iter().for_each(|piece| model.report(*piece));
                }
            }
            4 => {
                let page = usize::from(a) % PAGES;
                let at = FREE + PAGE * page as u64;
                bench.memory.write_slice(&[7; PAGE_BYTES], GuestAddress(at)).expect("memory");
                model.full[page] = true;
            }
            5 => {
                model.poison = u32::from(a & 1);
                device.write_config(12, &model.poison.to_le_bytes());
                device.write_config(number(b, c), &[d; 8][..usize::from(e % 9)]);
                // Whatever else was written there must not change what the driver said.
                device.write_config(12, &model.poison.to_le_bytes());
            }
            6 => {
                let returned = bench.stop();
                device.reclaim(returned.state);
                bench.resume(&mut device, features, returned.queues);
            }
            _ => {
                let mut bytes = [0; 20];
                device.read_config(number(a, b), &mut bytes[..usize::from(c % 21)]);
            }
        }
        assert_eq!(view.counts().given_back, model.given * PAGE);
    }
    for (page, full) in model.full.iter().enumerate() {
        let mut bytes = [0; PAGE_BYTES];
        let at = FREE + PAGE * page as u64;
        bench.memory.read_slice(&mut bytes, GuestAddress(at)).expect("memory");
        assert!(bytes.iter().all(|&byte| byte == if *full { 7 } else { 0 }), "page {page}");
    }
    model.given
}

struct Model {
    /// What was written into and not given back.
    full: [bool; PAGES],
    given: u64,
    poison: u32,
}

impl Model {
    /// By single bytes, so that it rounds nothing.
    fn report(&mut self, (first, bytes): (u64, u64)) {
        for (page, full) in self.full.iter_mut().enumerate() {
            let start = PAGE * page as u64;
            if first <= start && start + PAGE <= first + bytes {
                *full = false;
                self.given += 1;
            }
        }
    }
}

/// Reports of whole pages and parts, over the border, into each queue, with and without a pattern
/// for free pages, a pause; and one outside memory.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let report = |queue: u8, first: u64, bytes: u64| {
        let ([a, b, ..], [c, d, ..]) = ((first / 4).to_le_bytes(), (bytes - 1).to_le_bytes());
        [0, queue, a, b, c, d, 0, 0]
    };
    let fill = |page: u8| [4, 0, page, 0, 0, 0, 0, 0];
    vec![
        [
            &[0][..],
            &fill(0),
            &fill(1),
            &fill(31),
            &fill(32),
            &report(0, 0, PAGE),
            &report(2, 4, 2 * PAGE),
            &report(3, 31 * PAGE, 2 * PAGE),
            &[6; 8],
            &report(4, 60 * PAGE, 4 * PAGE),
            &[5, 0, 1, 0, 0, 0, 0, 0],
            &report(4, 0, 4 * PAGE),
            &[7; 8],
        ]
        .concat(),
        [&[2][..], &[5, 0, 1, 4, 0, 9, 4, 0], &fill(9), &report(2, 9 * PAGE, 2 * PAGE)].concat(),
        [&[0][..], &report(2, 63 * PAGE, 2 * PAGE), &report(2, 0, PAGE)].concat(),
    ]
}
