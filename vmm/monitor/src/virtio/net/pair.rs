//! A pair of queues: frames of the guest, frames to the guest.

use std::collections::VecDeque;

use super::backend::{Backend, Received, Sent};
use super::counters::{NetworkView, Way};
use super::header::{Flaw, Header, Offloads};
use super::spec::{ETHERNET, FRAME_MAX, header};
use crate::memory::Memory;
use crate::virtio::device::DeviceFault;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Chain, Queue, QueueFault, Segment, TURN_BYTES, Writer};

/// Frames of a turn, one way: then other queues have theirs.
const BUDGET: usize = 256;
/// Frames after which the driver hears of them.
const SIGNAL_EVERY: usize = 64;
/// Bytes of a header, as the lengths of chains are counted.
const HEADER: u32 = 12;
const _: () = assert!(HEADER as usize == header::BYTES);
/// Most pieces of memory that a frame is put into at once: one system call takes 1024.
const PIECES_MAX: usize = 1000;

/// What both ways of a pair need.
pub(super) struct Around<'a> {
    pub(super) memory: &'a Memory,
    pub(super) interrupt: &'a Interrupt,
    pub(super) view: &'a NetworkView,
    /// What the driver may leave to the peer.
    pub(super) sends: Offloads,
    /// What the peer may leave to the driver.
    pub(super) takes: Offloads,
    /// A frame may fill several buffers.
    pub(super) mergeable: bool,
}

/// How a turn ended.
#[derive(Debug)]
pub(super) enum Turn {
    /// Nothing is left to do.
    Done,
    /// More may wait.
    More,
    /// The peer has no room.
    Full,
    /// The driver has no buffers.
    Starved,
    /// The peer is gone.
    Gone(std::io::Error),
}

/// Frames to the guest. Buffers are taken from the queue before there is a frame for them, and go
/// back to it when the worker stops.
pub(super) struct ReceiveQueue {
    pub(super) queue: Queue,
    held: VecDeque<Chain>,
    /// Writable bytes and segments of what is held.
    bytes: u64,
    pieces: usize,
    /// Scratch: the segments of what is held, if `is_listed`.
    segments: Vec<Segment>,
    is_listed: bool,
}

impl ReceiveQueue {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue, held: VecDeque::new(), bytes: 0, pieces: 0, segments: Vec::new(), is_listed: false }
    }

    /// The queue as if nothing was taken from it.
    pub(super) fn into_queue(mut self) -> Queue {
        while let Some(chain) = self.held.pop_back() {
            self.queue.unpop(chain);
        }
        self.queue
    }

    /// Takes buffers until the longest frame fits, or one without merging.
    fn fill(&mut self, memory: &Memory, mergeable: bool) -> Result<(), DeviceFault> {
        let wanted = u64::from(HEADER + FRAME_MAX);
        while if mergeable { self.bytes < wanted && self.pieces < PIECES_MAX } else { self.held.is_empty() } {
            let Some(chain) = self.queue.pop(memory)? else { return Ok(()) };
            let (bytes, pieces) = (chain.writable_len(), chain.writable().len());
            // Any of them may be the first of a frame.
            let fault = match () {
                () if bytes < HEADER => Some(QueueFault::Short { wanted: HEADER.into() }),
                () if pieces > PIECES_MAX => Some(QueueFault::TooLong { head: chain.head() }),
                () => None,
            };
            if fault.is_none() && self.pieces + pieces > PIECES_MAX {
                self.queue.unpop(chain);
                return Ok(());
            }
            self.bytes += u64::from(bytes);
            self.pieces += pieces;
            self.held.push_back(chain);
            self.is_listed = false;
            if let Some(fault) = fault {
                return Err(fault.into());
            }
        }
        Ok(())
    }

    /// Takes what the peer has.
    pub(super) fn turn(
        &mut self,
        pair: usize,
        backend: &mut dyn Backend,
        around: &Around<'_>,
    ) -> Result<Turn, DeviceFault> {
        let turn = self.receive(pair, backend, around);
        // What came before a fault came.
        self.queue.signal(around.memory, around.interrupt)?;
        turn
    }

    fn receive(
        &mut self,
        pair: usize,
        backend: &mut dyn Backend,
        around: &Around<'_>,
    ) -> Result<Turn, DeviceFault> {
        let Around { memory, view, .. } = *around;
        self.queue.disable_notifications(memory)?;
        for count in 1..=BUDGET {
            self.fill(memory, around.mergeable)?;
            if self.held.is_empty() {
                // One that came in this moment is for the next turn.
                let came = self.queue.enable_notifications(memory)?;
                return Ok(if came { Turn::More } else { Turn::Starved });
            }
            if !self.is_listed {
                self.segments.clear();
                self.segments.extend(self.held.iter().flat_map(Chain::writable));
                self.is_listed = true;
            }
            let mut space = Writer::over(memory, &self.segments);
            space.skip(HEADER);
            match backend.receive(pair, &mut space)? {
                Received::Frame(header, len) => match header.checked(len, around.takes) {
                    Ok(header) => self.deliver(header, len, memory, view)?,
                    Err(_flaw) => view.bad(Way::In),
                },
                Received::Word => {}
                Received::Bad => view.bad(Way::In),
                Received::TooLong => view.lost(Way::In),
                Received::Nothing => return Ok(Turn::Done),
                Received::Gone(error) => return Ok(Turn::Gone(error)),
            }
            if count % SIGNAL_EVERY == 0 {
                self.queue.signal(memory, around.interrupt)?;
            }
        }
        Ok(Turn::More)
    }

    /// Gives the driver the buffers that a frame of `len` bytes fills behind its header.
    fn deliver(
        &mut self,
        header: Header,
        len: u32,
        memory: &Memory,
        view: &NetworkView,
    ) -> Result<(), DeviceFault> {
        let mut left = HEADER + len;
        let mut buffers = 0u16;
        for chain in &self.held {
            buffers += 1;
            left = left.saturating_sub(chain.writable_len());
            if left == 0 {
                break;
            }
        }
        Writer::over(memory, &self.segments).write_all(&header.to_bytes(buffers))?;
        let mut left = HEADER + len;
        for _ in 0..buffers {
            let Some(chain) = self.held.pop_front() else { break };
            let written = left.min(chain.writable_len());
            left -= written;
            self.bytes -= u64::from(chain.writable_len());
            self.pieces -= chain.writable().len();
            self.queue.push_used(memory, &chain, written)?;
        }
        self.is_listed = false;
        view.passed(Way::In, len);
        Ok(())
    }
}

/// Frames of the guest.
pub(super) struct TransmitQueue {
    pub(super) queue: Queue,
}

impl TransmitQueue {
    /// Passes on what the guest has sent.
    pub(super) fn turn(
        &mut self,
        pair: usize,
        backend: Option<&mut (dyn Backend + 'static)>,
        around: &Around<'_>,
    ) -> Result<Turn, DeviceFault> {
        let turn = self.transmit(pair, backend, around);
        // What was done before a fault was done.
        self.queue.signal(around.memory, around.interrupt)?;
        turn
    }

    fn transmit(
        &mut self,
        pair: usize,
        mut backend: Option<&mut (dyn Backend + 'static)>,
        around: &Around<'_>,
    ) -> Result<Turn, DeviceFault> {
        let Around { memory, view, .. } = *around;
        self.queue.disable_notifications(memory)?;
        let mut bytes = 0;
        for count in 1..=BUDGET {
            let Some(chain) = self.queue.pop(memory)? else {
                // One that came in this moment is for the next turn.
                let came = self.queue.enable_notifications(memory)?;
                return Ok(if came { Turn::More } else { Turn::Done });
            };
            let len = chain.readable_len().saturating_sub(HEADER);
            match send(pair, &chain, len, backend.as_deref_mut(), around)? {
                Ok(Sent::Taken) => view.passed(Way::Out, len),
                Ok(Sent::Refused) => view.lost(Way::Out),
                Ok(Sent::Full) => {
                    self.queue.unpop(chain);
                    return Ok(Turn::Full);
                }
                Ok(Sent::Gone(error)) => {
                    // It is dropped with those that come after it.
                    self.queue.unpop(chain);
                    return Ok(Turn::Gone(error));
                }
                Err(_flaw) => view.bad(Way::Out),
            }
            self.queue.push_used(memory, &chain, 0)?;
            bytes += u64::from(len);
            if bytes >= TURN_BYTES {
                break;
            }
            if count % SIGNAL_EVERY == 0 {
                self.queue.signal(memory, around.interrupt)?;
            }
        }
        Ok(Turn::More)
    }
}

/// Sends one frame of `len` bytes, if it is one.
fn send(
    pair: usize,
    chain: &Chain,
    len: u32,
    backend: Option<&mut (dyn Backend + 'static)>,
    around: &Around<'_>,
) -> Result<Result<Sent, Flaw>, DeviceFault> {
    if !(ETHERNET..=FRAME_MAX).contains(&len) {
        return Ok(Err(Flaw::Length));
    }
    let mut reader = chain.reader(around.memory);
    let mut bytes = [0; header::BYTES];
    reader.read_exact(&mut bytes)?;
    let header = match Header::parse(&bytes).checked(len, around.sends) {
        Ok(header) => header,
        Err(flaw) => return Ok(Err(flaw)),
    };
    let Some(backend) = backend else { return Ok(Ok(Sent::Refused)) };
    Ok(Ok(backend.send(pair, &header, &mut reader)?))
}
