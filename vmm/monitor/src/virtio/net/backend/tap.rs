//! A tap of the host: a descriptor for each pair of queues, the device's own header before each
//! frame. Where there is a descriptor of vhost-net for the pair, too, the host's kernel is offered
//! its queues, and frames pass this process by.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Backend, Offer, Received, Sent, closed, refused, unread};
use crate::memory::KernelNet;
use crate::sys::tap::{TapOffloads, is_deleted, prepare, set_offloads, use_queue};
use crate::sys::{fits, set_nonblocking};
use crate::virtio::net::header::{Header, Offloads};
use crate::virtio::net::spec::feature::MRG_RXBUF;
use crate::virtio::net::spec::header::BYTES;
use crate::virtio::queue::{QueueFault, Reader, Writer};
use crate::virtio::spec::feature as ring;

/// What the rings and the length of the header depend on.
const KERNEL_FEATURES: u64 = MRG_RXBUF | ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC;

/// See the module.
pub(in crate::virtio::net) struct Tap {
    queues: Vec<Queue>,
    /// For each pair of queues, or none.
    kernel: Vec<KernelNet>,
    carries: Offloads,
}

struct Queue {
    file: OwnedFd,
    /// The interface gives it frames.
    is_used: bool,
}

impl Tap {
    /// A tap with these queues, at least one, and what vhost-net has for them.
    pub(in crate::virtio::net) fn new(files: Vec<OwnedFd>, kernel: Vec<OwnedFd>) -> io::Result<Self> {
        let kernel = kernel.into_iter().map(KernelNet::new).collect::<io::Result<Vec<_>>>()?;
        let mut queues = Vec::new();
        for file in files {
            let is_used = prepare(file.as_fd(), fits(BYTES, "a header has twelve bytes"))?;
            set_nonblocking(&file)?;
            queues.push(Queue { file, is_used });
        }
        let Some(Queue { file, .. }) = queues.first() else { return Err(io::ErrorKind::NotFound.into()) };
        // Segments of UDP are younger than the others: a kernel is asked, and none is on its way
        // before there is a driver.
        let of = |offloads| set_offloads(file.as_fd(), tap_offloads(offloads));
        let carries = match of(Offloads::ALL) {
            Ok(()) => Offloads::ALL,
            Err(_) => Offloads { uso: false, ..Offloads::ALL },
        };
        of(Offloads::NONE)?;
        Ok(Self { queues, kernel, carries })
    }
}

fn tap_offloads(offloads: Offloads) -> TapOffloads {
    let Offloads { checksum, tso4, tso6, uso } = offloads;
    TapOffloads { checksum, tso4, tso6, uso }
}

impl Backend for Tap {
    fn carries(&self) -> Offloads {
        self.carries
    }

    fn descriptor(&self, pair: usize) -> BorrowedFd<'_> {
        self.queues[pair].file.as_fd()
    }

    fn tell(&mut self, guest: Offloads) -> Sent {
        match set_offloads(self.descriptor(0), tap_offloads(guest)) {
            Ok(()) => Sent::Taken,
            // The interface may have been deleted.
            Err(error) => Sent::Gone(error),
        }
    }

    fn use_pairs(&mut self, pairs: usize) -> io::Result<()> {
        // Those that are wanted first: an interface with no queue in use has no carrier.
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let wanted = index < pairs;
            if queue.is_used != wanted {
                use_queue(queue.file.as_fd(), wanted)?;
                queue.is_used = wanted;
            }
        }
        Ok(())
    }

    fn offer(&mut self, pair: usize, offer: &Offer<'_>) -> io::Result<bool> {
        let Offer { memory, features, queues, used, broken } = *offer;
        let Some(kernel) = self.kernel.get_mut(pair) else { return Ok(false) };
        let [Some(receive), Some(transmit)] = queues.map(|queue| queue.for_kernel(used, broken)) else {
            return Ok(false);
        };
        // The rest is between the driver and the tap.
        let features = features & KERNEL_FEATURES;
        let tap = self.queues[pair].file.as_fd();
        // What it refuses is served here.
        Ok(kernel.start(memory, features, [receive, transmit], tap).is_ok())
    }

    fn take_back(&mut self, pair: usize) -> io::Result<[u16; 2]> {
        let kernel = self.kernel.get_mut(pair).and_then(KernelNet::stop);
        kernel.ok_or_else(|| io::Error::other("vhost-net does not say how far it has served the queues"))
    }

    fn send(&mut self, pair: usize, header: &Header, frame: &mut Reader<'_>) -> Result<Sent, QueueFault> {
        let (file, left) = (self.descriptor(pair), frame.left());
        let head = header.to_bytes(0);
        let sent = frame.transfer(left, |pieces| {
            if pieces.bytes() != fits::<_, usize>(left, "usize has at least 32 bits") {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let sent = pieces.write_behind(&head, file)?;
            Ok(sent.saturating_sub(head.len()))
        })?;
        Ok(match sent {
            Ok(_) => Sent::Taken,
            Err(error) if is_deleted(&error) => Sent::Gone(error),
            Err(error) => refused(error),
        })
    }

    fn flush(&mut self) -> Sent {
        Sent::Taken
    }

    fn receive(&mut self, pair: usize, space: &mut Writer<'_>) -> Result<Received, QueueFault> {
        let (mut head, mut tail, mut read) = ([0; BYTES], [0; 1], 0);
        let (file, room) = (self.descriptor(pair), space.left());
        let result = space.transfer(room, |pieces| {
            read = pieces.read_between(&mut head, &mut tail, file)?;
            Ok(read.saturating_sub(BYTES).min(pieces.bytes()))
        })?;
        if let Err(error) = result {
            return Ok(unread(error));
        }
        if read == 0 {
            return Ok(Received::Gone(closed()));
        }
        let Some(bytes) = read.checked_sub(BYTES) else { return Ok(Received::Bad) };
        let bytes = fits(bytes, "no frame has 2^32 bytes");
        if bytes > room {
            return Ok(Received::TooLong);
        }
        Ok(Received::Frame(Header::parse(&head), bytes))
    }
}
