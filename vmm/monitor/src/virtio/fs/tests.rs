//! The file system device under a fake driver, over a server that the test plays.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nelly_disk::{ReadBuffer, WriteBuffer};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::locks::AGAIN;
use super::request::{IN_HEADER, OUT_HEADER};
use super::*;
use crate::state::Sections;
use crate::virtio::spec::{descriptor as flag, feature};
use crate::virtio::testing::{Bench, MIB, Part, Used};

const FORGET: u32 = 2;
const READ: u32 = 15;
const WRITE: u32 = 16;
const SETLK: u32 = 32;
const SETLKW: u32 = 33;
/// Of this server alone: gives the lock back.
const UNLOCK: u32 = 7000;

const REQUESTS: usize = spec::REQUESTS;

/// READ answers with as many bytes as the first word after the header says, WRITE with the sum of
/// the bytes that follow it. There is one lock.
#[derive(Default)]
struct Played {
    locked: AtomicBool,
    resets: AtomicUsize,
    /// Opcodes, in order.
    asked: Mutex<Vec<u32>>,
}

fn word(request: &dyn WriteBuffer, at: usize) -> u32 {
    let mut bytes = [0; 4];
    if request.size() >= at + 4 {
        request.copy_out(at, &mut bytes);
    }
    u32::from_le_bytes(bytes)
}

impl FileServer for Played {
    fn handle(&self, request: &dyn WriteBuffer, reply: &mut dyn ReadBuffer) -> usize {
        assert!(request.size() >= IN_HEADER, "the device has looked");
        let opcode = word(request, 4);
        self.asked.lock().unwrap().push(opcode);
        let (error, payload) = match opcode {
            FORGET => return 0,
            READ => {
                let wanted = usize::try_from(word(request, IN_HEADER)).unwrap();
                (0, vec![7; wanted.min(reply.size() - OUT_HEADER)])
            }
            WRITE => {
                let mut bytes = vec![0; request.size() - IN_HEADER];
                request.copy_out(IN_HEADER, &mut bytes);
                let sum = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
                (0, sum.to_le_bytes()[..4.min(reply.size() - OUT_HEADER)].to_vec())
            }
            SETLK if self.locked.swap(true, Ordering::SeqCst) => (-11, Vec::new()),
            SETLK => (0, Vec::new()),
            UNLOCK => {
                self.locked.store(false, Ordering::SeqCst);
                (0, Vec::new())
            }
            SETLKW => unreachable!("nobody is to wait in the server"),
            _ => (-38, Vec::new()),
        };
        let len = OUT_HEADER + payload.len();
        let mut answer = u32::try_from(len).unwrap().to_le_bytes().to_vec();
        answer.extend(i32::to_le_bytes(error));
        answer.extend(u64::from(word(request, 8)).to_le_bytes());
        answer.extend(payload);
        reply.copy_in(0, &answer);
        len
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

fn device() -> (FileSystem, Arc<Played>) {
    let server = Arc::new(Played::default());
    (FileSystem::new(server.clone(), "work", false), server)
}

/// A request with this opcode and number, and what follows its header.
fn request(opcode: u32, unique: u32, rest: &[u8]) -> Vec<u8> {
    let len = u32::try_from(IN_HEADER + rest.len()).unwrap();
    let mut bytes = [len, opcode, unique, 0].map(u32::to_le_bytes).concat();
    bytes.resize(IN_HEADER, 0);
    bytes.extend(rest);
    bytes
}

fn ask(bench: &mut Bench, parts: &[Part]) -> Used {
    bench.queues[REQUESTS].add(parts);
    bench.kick(REQUESTS);
    bench.queues[REQUESTS].used().expect("an answer")
}

/// The error and the number in an answer's header.
fn header(used: &Used) -> (i32, u64) {
    let error = i32::from_le_bytes(used.data[4..8].try_into().unwrap());
    (error, u64::from_le_bytes(used.data[8..16].try_into().unwrap()))
}

#[test]
fn says_what_it_is() {
    let (device, _server) = device();
    let mut config = [0xff; 48];
    config.fill(0);
    device.read_config(0, &mut config);
    assert_eq!((device.id(), device.features()), (26, 0));
    assert_eq!(&config[..5], b"work\0");
    assert!(config[5..36].iter().all(|&byte| byte == 0));
    assert_eq!((&config[36..40], &config[40..]), (&1u32.to_le_bytes()[..], &[0; 8][..]));
    assert_eq!(device.queue_sizes(), [64, 512]);
    let whole = "t".repeat(36);
    let (long, mut tag) = (FileSystem::new(Arc::new(Played::default()), &whole, true), [0; 36]);
    long.read_config(0, &mut tag);
    assert_eq!(&tag, whole.as_bytes(), "a tag of 36 bytes has no zero behind it");
}

#[test]
fn the_used_length_is_what_was_written_and_nothing_lies_beyond() {
    let (mut device, _server) = device();
    let mut bench = Bench::new(&mut device, 64, None);
    for (asked, room, given) in [(0, 16, 0), (5, 64, 5), (5000, 6000, 5000), (5000, 100, 84)] {
        let head = request(READ, 9, &u32::to_le_bytes(asked));
        let parts = [
            Part::Read(head[..7].to_vec()),
            Part::Read(head[7..].to_vec()),
            Part::Write(9),
            Part::Write(room - 9),
        ];
        let used = ask(&mut bench, &parts);
        assert_eq!((used.len, header(&used)), (16 + given, (0, 9)), "{asked} in {room}");
        let (answer, rest) = used.data.split_at(usize::try_from(used.len).unwrap());
        assert!(answer[16..].iter().all(|&byte| byte == 7) && rest.iter().all(|&byte| byte == 0xa5));
    }
    let mut bytes = request(WRITE, 1, &[1; 1000]);
    let tail = bytes.split_off(100);
    bench.queues[REQUESTS].add_indirect(&[Part::Read(bytes), Part::Read(tail), Part::Write(20)]);
    bench.kick(REQUESTS);
    let used = bench.queues[REQUESTS].used().unwrap();
    assert_eq!((used.len, &used.data[16..]), (20, &1000u32.to_le_bytes()[..]));
    assert_eq!(bench.interrupt.faults(), 0);
}

#[test]
fn what_has_no_answer_comes_back_empty_on_either_queue() {
    let (mut device, server) = device();
    let mut bench = Bench::new(&mut device, 64, None);
    for queue in [spec::HIPRIO, REQUESTS] {
        bench.queues[queue].add(&[Part::Read(request(FORGET, 1, &[0; 8]))]);
        bench.kick(queue);
        assert_eq!(bench.queues[queue].used().unwrap().len, 0);
    }
    assert_eq!((bench.interrupt.faults(), &server.asked.lock().unwrap()[..]), (0, &[FORGET; 2][..]));
}

#[test]
fn a_request_without_header_or_room_is_a_fault_that_is_counted_and_a_reset_mends_it() {
    let whole = request(READ, 1, &[0; 4]);
    let cases: [(&[Part], &str); 5] = [
        (&[Part::Read(whole[..39].to_vec()), Part::Write(64)], "chain_too_short"),
        (&[Part::Write(64)], "chain_too_short"),
        (&[Part::Read(whole.clone()), Part::Write(15)], "protocol"),
        (&[Part::Read(whole.clone())], "protocol"),
        (&[Part::Read(request(FORGET, 1, &[])), Part::Write(1)], "protocol"),
    ];
    for (parts, kind) in cases {
        let (mut device, server) = device();
        let mut bench = Bench::new(&mut device, 64, None);
        bench.queues[REQUESTS].add(parts);
        bench.kick(REQUESTS);
        assert!(bench.interrupt.needs_reset(), "{parts:?}");
        assert_eq!((bench.interrupt.faults(), bench.interrupt.tally().faults()[0].kind), (1, kind));
        assert!(server.asked.lock().unwrap().is_empty(), "the server sees nothing of it");
        bench.kick(REQUESTS);
        assert_eq!(bench.interrupt.faults(), 1, "a parked worker hears nothing");
        drop(bench);
        device.reset();
        assert_eq!(server.resets.load(Ordering::SeqCst), 1);
        let mut bench = Bench::new(&mut device, 64, None);
        let used = ask(&mut bench, &[Part::Read(whole.clone()), Part::Write(64)]);
        assert_eq!(header(&used), (0, 1));
    }
}

#[test]
fn a_wait_for_a_lock_holds_up_nobody_and_ends_with_the_unlock() {
    let (mut device, _server) = device();
    let mut bench = Bench::new(&mut device, 64, None);
    let lock = |unique| [Part::Read(request(SETLKW, unique, &[0; 48])), Part::Write(16)];
    let plain = |opcode, unique| [Part::Read(request(opcode, unique, &[])), Part::Write(16)];
    assert_eq!(header(&ask(&mut bench, &lock(1))), (0, 1), "a free lock is had at once");
    bench.queues[REQUESTS].add(&lock(2));
    bench.queues[REQUESTS].add(&lock(3));
    bench.queues[REQUESTS].add(&plain(READ, 4));
    bench.kick(REQUESTS);
    assert_eq!(header(&bench.queues[REQUESTS].used().unwrap()), (0, 4), "others go past");
    assert_eq!(bench.queues[REQUESTS].used(), None);
    // The plain form is told at once.
    assert_eq!(header(&ask(&mut bench, &plain(SETLK, 5))), (-11, 5));
    assert_eq!(header(&ask(&mut bench, &plain(UNLOCK, 6))), (0, 6));
    let next = |bench: &mut Bench| loop {
        if let Some(used) = bench.queues[REQUESTS].used() {
            return header(&used);
        }
        bench.wait(Duration::from_secs(60));
    };
    assert_eq!(next(&mut bench), (0, 2), "the first that waits has it next");
    assert_eq!(header(&ask(&mut bench, &plain(UNLOCK, 7))), (0, 7));
    assert_eq!(next(&mut bench), (0, 3));
    assert!(!bench.is_ready(AGAIN * 3), "nothing ticks when nobody waits");
}

#[test]
fn a_wait_for_a_lock_survives_a_pause_and_ends_with_a_reset() {
    let (mut device, server) = device();
    let mut bench = Bench::new(&mut device, 64, None);
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;
    server.locked.store(true, Ordering::SeqCst);
    bench.queues[REQUESTS].add(&[Part::Read(request(SETLKW, 8, &[0; 48])), Part::Write(16)]);
    bench.kick(REQUESTS);
    let returned = bench.stop();
    device.reclaim(returned.state);
    server.locked.store(false, Ordering::SeqCst);
    bench.resume(&mut device, features, returned.queues);
    let used = loop {
        if let Some(used) = bench.queues[REQUESTS].used() {
            break used;
        }
        bench.wait(Duration::from_secs(60));
    };
    assert_eq!(header(&used), (0, 8));
    // The lock is had now: the next one waits, until the driver resets the device.
    bench.queues[REQUESTS].add(&[Part::Read(request(SETLKW, 9, &[0; 48])), Part::Write(16)]);
    bench.kick(REQUESTS);
    device.reclaim(bench.stop().state);
    device.reset();
    server.locked.store(false, Ordering::SeqCst);
    let mut bench = Bench::new(&mut device, 64, None);
    assert!(!bench.is_ready(AGAIN * 3), "what waited is forgotten");
    assert_eq!(bench.queues[REQUESTS].used(), None);
    bench.queues[spec::HIPRIO].add(&[Part::Read(request(SETLKW, 1, &[0; 48])), Part::Write(16)]);
    bench.kick(spec::HIPRIO);
    assert_eq!(bench.queues[spec::HIPRIO].used().map(|used| header(&used)), Some((0, 1)));
    bench.queues[spec::HIPRIO].add(&[Part::Read(request(SETLKW, 2, &[0; 48])), Part::Write(16)]);
    bench.kick(spec::HIPRIO);
    assert!(bench.interrupt.needs_reset(), "no wait on the queue of FORGET");
}

#[test]
fn its_state_is_what_the_driver_was_shown() {
    let saved = |device: &FileSystem| {
        let mut state = Sections::default();
        device.save("fs", &mut state);
        state
    };
    let (mut first, _server) = device();
    let mut state = saved(&first);
    first.restore("fs", &mut state).unwrap();
    let server = || Arc::new(Played::default());
    let mut other = FileSystem::new(server(), "other", false);
    assert!(other.restore("fs", &mut saved(&first)).unwrap_err().to_string().contains("\"work\""));
    let mut fixed = FileSystem::new(server(), "work", true);
    assert!(fixed.restore("fs", &mut saved(&first)).unwrap_err().to_string().contains("read-only"));
}

proptest! {
    /// Whatever a driver writes into its rings, the device answers, waits or asks for a reset, and
    /// never says that it wrote more than there was room for.
    #[test]
    fn a_hostile_driver_breaks_its_own_device_alone(
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20), 16),
        small in prop::collection::vec(any::<bool>(), 16),
        bytes in prop::collection::vec(any::<u8>(), 256),
        opcode in 0u32..60,
        heads in prop::collection::vec(0u16..20, 1..8),
        index in any::<Option<u16>>(),
    ) {
        let (mut device, _server) = device();
        let mut bench = Bench::new(&mut device, 16, None);
        let base = u64::try_from(MIB).unwrap() * 12;
        bench.memory.write_slice(&bytes, GuestAddress(base)).unwrap();
        bench.memory.write_obj(opcode.to_le(), GuestAddress(base + 4)).unwrap();
        for (n, ((address, len, flags, next), small)) in (0..).zip(descriptors.into_iter().zip(small)) {
            // Half of them lie in memory: else nothing gets past the first check.
            let (address, len) =
                if small { (base + address % 64, len % 200) } else { (address, len) };
            bench.queues[REQUESTS].descriptor(n, address, len, flags & !flag::INDIRECT, next);
        }
        for head in heads {
            bench.queues[REQUESTS].offer(head);
        }
        if let Some(index) = index {
            bench.queues[REQUESTS].set_available(index);
        }
        bench.kick(REQUESTS);
        let returned = bench.stop();
        prop_assert_eq!(returned.queues.len(), 2);
    }
}
