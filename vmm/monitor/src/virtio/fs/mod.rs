//! The file system device (virtio 1.2, 5.11) over any [`FileServer`]. Requests and answers of FUSE
//! stay in guest memory: the server reads the one and writes the other there.
//!
//! Requests are answered one after the other on the device's own thread, in the order of their
//! queue. One that has to wait for a lock is put aside and tried again, so that it holds up nobody:
//! see [`locks`]. Between two events nothing else is in flight, so that a pause, a reset and the
//! machine's end wait for one turn: 20 ms, or as long as its last request takes.

mod locks;
mod request;
mod server;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nelly_disk::{ReadBuffer, WriteBuffer};

use self::locks::Locks;
use self::request::Answered;
pub use self::server::SharedTree;
use super::device::{ActivateError, Activation, Device, DeviceFault, Placement, Registrar, Returned, Worker};
use super::interrupt::Interrupt;
use super::queue::{Queue, TURN_BYTES};
use super::spec::id;
use crate::memory::Memory;
use crate::state::fields::plain;
use crate::state::{Sections, StateError, Stateful};
use crate::sys::Interest;

/// Limits and the configuration space (5.11.4).
pub mod spec {
    /// Bytes of the tag.
    pub const TAG_BYTES: usize = 36;
    /// Bytes of the configuration space: the tag, and the number of request queues.
    pub const CONFIG_BYTES: usize = 40;
    /// The queue of requests that go before others (FORGET).
    pub const HIPRIO: usize = 0;
    /// The queue of all others. One: its requests are answered one after the other anyhow.
    pub const REQUESTS: usize = 1;
    /// Requests that each queue holds. A Linux guest makes no request of more pages than this, less
    /// four, so a request of 1 MiB fits.
    pub const QUEUE_SIZES: [u16; 2] = [64, 512];
}

/// The longest that one turn takes, but for its last request: others of this thread wait for it.
const TURN_TIME: Duration = Duration::from_millis(20);

/// What answers the requests of a file system device, on the thread of its worker.
pub trait FileServer: Send + Sync {
    /// Answers one FUSE request, whose bytes are `request`, beginning with a whole
    /// `fuse_in_header`. Returns how many bytes were written to the beginning of `reply`; 0 for a
    /// request that has no answer. Waits for the host's file system, and for no lock.
    fn handle(&self, request: &dyn WriteBuffer, reply: &mut dyn ReadBuffer) -> usize;

    /// The driver has forgotten everything: so must the server.
    fn reset(&self);
}

/// The device.
pub struct FileSystem {
    server: Arc<dyn FileServer>,
    tag: String,
    read_only: bool,
    config: [u8; spec::CONFIG_BYTES],
    /// Requests that wait for locks, while there is no worker.
    locks: Locks,
}

impl FileSystem {
    /// A device with this tag, of which the first 36 bytes count. `read_only` says what the server
    /// enforces.
    #[must_use]
    pub fn new(server: Arc<dyn FileServer>, tag: &str, read_only: bool) -> Self {
        let mut config = [0; spec::CONFIG_BYTES];
        for (to, from) in config[..spec::TAG_BYTES].iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        config[spec::TAG_BYTES..].copy_from_slice(&1u32.to_le_bytes());
        Self { server, tag: tag.to_owned(), read_only, config, locks: Locks::default() }
    }
}

impl Device for FileSystem {
    fn id(&self) -> u32 {
        id::FILE_SYSTEM
    }

    fn name(&self) -> Option<String> {
        Some(self.tag.clone())
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &spec::QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::device::read_bytes(&self.config, offset, data);
    }

    fn placement(&self) -> Placement {
        Placement::OwnThread
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let queues = [activation.take_queue(spec::HIPRIO)?, activation.take_queue(spec::REQUESTS)?];
        let Activation { features: _, memory, queues: _, interrupt } = activation;
        let (server, locks) = (Arc::clone(&self.server), std::mem::take(&mut self.locks));
        Ok(Box::new(FileSystemWorker { server, queues, memory, interrupt, locks }))
    }

    fn reclaim(&mut self, state: Box<dyn Any + Send>) {
        if let Ok(locks) = state.downcast::<Locks>() {
            self.locks = *locks;
        }
    }

    fn reset(&mut self) {
        // Nobody waits for their answers any more.
        self.locks = Locks::default();
        self.server.reset();
    }
}

/// What the driver was shown. Which files of the host the guest has open cannot be written down, so
/// the machine refuses to be saved; this says the rest.
impl Stateful for FileSystem {
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { server: _, tag, read_only, config, locks: _ } = self;
        state.put_fields(name, 1, |fields| {
            fields.put_text(tag);
            fields.put(read_only);
            fields.put(config);
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        state.take_fields(name, 1, |fields| {
            let (tag, here) = (fields.get_text(TEXT_MAX)?, plain(&self.tag));
            if tag != here {
                let text = format!("it is that of the shared directory {tag:?}, and here is {here:?}");
                return Err(fields.unfit(text));
            }
            if fields.get::<bool>()? != self.read_only {
                return Err(fields.unfit("one of the two directories is read-only, and the other is not"));
            }
            if fields.get::<[u8; spec::CONFIG_BYTES]>()? != self.config {
                return Err(fields.unfit("the device has another configuration space than it had"));
            }
            Ok(())
        })
    }
}

/// Most bytes of a tag that is read.
const TEXT_MAX: usize = 1024;

/// What the time for another try comes under. The doorbells come under the numbers of their queues.
const KEY_AGAIN: u32 = 2;

struct FileSystemWorker {
    server: Arc<dyn FileServer>,
    queues: [Queue; 2],
    memory: Memory,
    interrupt: Interrupt,
    locks: Locks,
}

impl FileSystemWorker {
    /// Answers what waits in a queue.
    fn serve(&mut self, index: usize) -> Result<(), DeviceFault> {
        let Self { server, queues, memory, interrupt, locks } = self;
        let queue = &mut queues[index];
        queue.doorbell().consume()?;
        let served = turn(&**server, queue, memory, interrupt, (index == spec::REQUESTS).then_some(locks));
        // What was done before a fault was done.
        queue.signal(memory, interrupt)?;
        if served? { Ok(queue.doorbell().notify()?) } else { Ok(()) }
    }

    /// Tries the requests again that wait for locks.
    fn try_again(&mut self) -> Result<(), DeviceFault> {
        let Self { server, queues, memory, interrupt, locks } = self;
        let queue = &mut queues[spec::REQUESTS];
        let tried = locks.try_again(&mut |chain| {
            let answered = request::answer(&**server, memory, chain)?;
            if let Answered::With(written) = answered {
                queue.push_used(memory, chain, written)?;
            }
            Ok(answered == Answered::Later)
        });
        queue.signal(memory, interrupt)?;
        tried
    }
}

/// Answers at most one round of the ring and about [`TURN_BYTES`]; says whether more may wait.
/// Without `locks`, a request that has to wait for one is refused.
fn turn(
    server: &dyn FileServer,
    queue: &mut Queue,
    memory: &Memory,
    interrupt: &Interrupt,
    mut locks: Option<&mut Locks>,
) -> Result<bool, DeviceFault> {
    queue.disable_notifications(memory)?;
    let (mut moved, begun) = (0, Instant::now());
    for _ in 0..queue.size() {
        let Some(chain) = queue.pop(memory)? else {
            queue.signal(memory, interrupt)?;
            return Ok(queue.enable_notifications(memory)?);
        };
        let bytes = u64::from(chain.readable_len());
        match request::answer(server, memory, &chain)? {
            Answered::With(written) => {
                queue.push_used(memory, &chain, written)?;
                moved += bytes + u64::from(written);
                // Whoever reads or writes a file waits for each answer: none is held back.
                queue.signal(memory, interrupt)?;
            }
            Answered::Later => match &mut locks {
                Some(locks) => locks.wait(chain),
                None => return Err(DeviceFault::Protocol("a wait for a lock on the queue for FORGET")),
            },
        }
        // Some requests move nothing here and take long on the host.
        if moved >= TURN_BYTES || begun.elapsed() >= TURN_TIME {
            return Ok(true);
        }
    }
    Ok(true)
}

impl Worker for FileSystemWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        for (key, queue) in (0..).zip(&self.queues) {
            registrar.add(queue.doorbell().as_fd(), key, Interest::READ)?;
            queue.doorbell().notify()?;
        }
        self.locks.begin(registrar, KEY_AGAIN)
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        self.locks.end(registrar);
        for queue in &self.queues {
            // A descriptor that was never added is not there any more: what was wanted.
            let _ = registrar.remove(queue.doorbell().as_fd());
        }
    }

    fn ready(
        &mut self,
        key: u32,
        _ready: Interest,
        registrar: &mut Registrar<'_>,
    ) -> Result<(), DeviceFault> {
        match key {
            KEY_AGAIN => {
                self.locks.tick()?;
                self.try_again()?;
            }
            _ => self.serve(if key == 0 { spec::HIPRIO } else { spec::REQUESTS })?,
        }
        // An unlock may be among what was served.
        self.locks.settle(registrar, KEY_AGAIN)
    }

    fn quiesce(self: Box<Self>) -> Returned {
        let Self { server: _, queues, memory: _, interrupt: _, locks } = *self;
        Returned { state: Box::new(locks), queues: queues.into_iter().map(Some).collect() }
    }
}
