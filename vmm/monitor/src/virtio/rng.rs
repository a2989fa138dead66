//! The entropy device (virtio 1.2, 5.4): the host's generator for the guest's.

use std::any::Any;
use std::os::fd::AsFd;

use super::device::{ActivateError, Activation, Device, DeviceFault, Registrar, Returned, Worker};
use super::interrupt::Interrupt;
use super::queue::{Chain, Queue, Served};
use super::spec::id;
use crate::memory::Memory;
use crate::state::{Sections, StateError, Stateful};
use crate::sys::{self, Interest, at_most};

/// Most bytes a request gets: the specification lets a device give fewer than there is room for,
/// and a guest that asks for a gigabyte shall not keep the loop.
const REQUEST_MAX: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl Device for Rng {
    fn id(&self) -> u32 {
        id::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queue = activation.take_queue(0)?;
        let Activation { features: _, memory, queues: _, interrupt } = activation;
        Ok(Box::new(RngWorker { queue, memory, interrupt }))
    }

    fn reclaim(&mut self, _state: Box<dyn Any + Send>) {}
}

/// Nothing is remembered.
impl Stateful for Rng {
    fn save(&self, name: &str, state: &mut Sections) {
        state.put_fields(name, 1, |_| {});
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        state.take_fields(name, 1, |_| Ok(()))
    }
}

struct RngWorker {
    queue: Queue,
    memory: Memory,
    interrupt: Interrupt,
}

impl Worker for RngWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        registrar.add(self.queue.doorbell().as_fd(), 0, Interest::READ)?;
        Ok(self.queue.doorbell().notify()?)
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        // A descriptor that was never added is not there any more: what was wanted.
        let _ = registrar.remove(self.queue.doorbell().as_fd());
    }

    fn ready(
        &mut self,
        _key: u32,
        _ready: Interest,
        _registrar: &mut Registrar<'_>,
    ) -> Result<(), DeviceFault> {
        let Self { queue, memory, interrupt } = self;
        queue.serve(memory, interrupt, |chain| fill(memory, chain).map(Served::from))
    }

    fn quiesce(self: Box<Self>) -> Returned {
        Returned { state: Box::new(()), queues: vec![Some(self.queue)] }
    }
}

fn fill(memory: &Memory, chain: &Chain) -> Result<u32, DeviceFault> {
    let mut buffer = [0u8; REQUEST_MAX];
    let mut writer = chain.writer(memory);
    let len = at_most(writer.left(), REQUEST_MAX);
    sys::random(&mut buffer[..len])?;
    writer.write_all(&buffer[..len])?;
    Ok(writer.written())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, Part};

    #[test]
    fn fills_what_is_asked_for_up_to_a_page() {
        let mut bench = Bench::new(&mut Rng, 64, None);
        for (room, given) in [(1, 1), (64, 64), (4096, 4096), (10_000, 4096)] {
            bench.queues[0].add(&[Part::Write(room / 2), Part::Write(room - room / 2)]);
            bench.kick(0);
            let used = bench.queues[0].used().unwrap();
            assert_eq!(used.len, given);
            let given = usize::try_from(given).unwrap();
            assert!(
                used.data[given..].iter().all(|&byte| byte == 0xa5),
                "nothing beyond the length is written"
            );
            assert!(room < 64 || used.data[..given].iter().any(|&byte| byte != 0xa5));
        }
        assert_eq!(bench.line.take(), 1, "used_event stays 0: only the first completion passes it");
    }

    #[test]
    fn a_request_without_room_comes_back_empty() {
        let mut bench = Bench::new(&mut Rng, 64, None);
        bench.queues[0].add(&[Part::Read(vec![1, 2, 3])]);
        bench.kick(0);
        assert_eq!(bench.queues[0].used().unwrap().len, 0);
        assert_eq!(bench.interrupt.faults(), 0);
    }

    #[test]
    fn a_broken_chain_parks_the_worker_and_a_restart_works() {
        let mut rng = Rng;
        let mut bench = Bench::new(&mut rng, 64, None);
        bench.queues[0].offer(64);
        bench.kick(0);
        assert!(bench.interrupt.needs_reset());
        assert_eq!((bench.interrupt.faults(), bench.line.take()), (1, 1));
        assert_eq!(
            bench.interrupt.tally().faults()[0].first,
            "the driver broke a queue: descriptor 64 of 64"
        );
        bench.kick(0);
        assert_eq!(bench.interrupt.faults(), 1, "a parked worker hears nothing");
        drop(bench);
        fills_what_is_asked_for_up_to_a_page();
    }

    #[test]
    fn goes_on_where_it_was_after_a_pause() {
        let mut rng = Rng;
        let mut bench = Bench::new(&mut rng, 4, None);
        for _ in 0..10 {
            bench.queues[0].add(&[Part::Write(16)]);
            let returned = bench.stop();
            rng.reclaim(returned.state);
            bench.resume(&mut rng, 0, returned.queues);
            assert_eq!(bench.queues[0].used().unwrap().len, 16, "what came during the pause is served");
        }
    }
}
