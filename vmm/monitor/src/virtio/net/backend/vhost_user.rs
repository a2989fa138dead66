//! Another process that serves the queues in guest memory itself (vhost-user): it has the memory by
//! its files, the driver's doorbells, and what interrupts the driver. No frame passes through here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Backend, Offer, Received, Sent, Server};
use crate::memory::{KernelQueue, Memory};
use crate::sys::vhost_user::{Channel, PROTOCOL_FEATURES, REGIONS_MAX, Request, protocol};
use crate::virtio::net::header::{Header, Offloads};
use crate::virtio::net::spec::feature;
use crate::virtio::queue::{QueueFault, Reader, Writer};
use crate::virtio::spec::feature as ring;

/// Features of the rings, which the other side must know of to walk them.
const RINGS: u64 = ring::VERSION_1 | ring::EVENT_IDX | ring::INDIRECT_DESC;
/// What it does not know of is not offered to the driver.
const ITS_OWN: u64 = RINGS | feature::MRG_RXBUF;
/// Where the other side is told that this process has guest address 0: nowhere. Rings are named by
/// such addresses, which it looks up in the table of the memory; it need not know real ones.
const HERE: u64 = 1 << 45;
/// How far the addresses of one table are from those of the next: DPDK keeps the memory that it has
/// if a table has the same addresses, and a machine that starts again has other memory.
const STEP: u64 = 2 << 20;
/// Tables so far, of this whole process.
static TABLES: AtomicU64 = AtomicU64::new(0);

/// See the module.
pub(in crate::virtio::net) struct VhostUser {
    channel: Channel,
    /// Duplicates, one for each pair of queues: a poller knows a descriptor once.
    sockets: Vec<OwnedFd>,
    /// What the other side has.
    features: u64,
    /// Where it was told that guest address 0 is.
    here: u64,
    /// The pairs that it serves.
    serves: Vec<Option<Served>>,
    /// It has been told of the memory.
    has_memory: bool,
    /// Why nothing is asked of it any more.
    failed: Option<String>,
    /// See [`Backend::is_astray`].
    astray: bool,
}

/// A pair of queues that the other side serves.
struct Served {
    memory: Memory,
    /// The used rings, guest physical.
    used: [u64; 2],
}

impl VhostUser {
    /// Agrees with the other side of this socket on what the two can do. `None`: it was lost while
    /// this machine ran before it started again, so there is no link, as before.
    ///
    /// # Errors
    /// It does not answer in time, breaks the protocol, or lacks what is needed.
    pub(in crate::virtio::net) fn new(socket: OwnedFd, mtu: u16, pairs: usize) -> io::Result<Option<Self>> {
        let (channel, was_used) = Channel::new(socket)?;
        match Self::agree(channel, was_used, mtu, pairs) {
            Err(_) if was_used => Ok(None),
            agreed => agreed.map(Some),
        }
    }

    fn agree(mut channel: Channel, was_used: bool, mtu: u16, pairs: usize) -> io::Result<Self> {
        if !was_used {
            channel.tell(Request::SetOwner, &[], &[])?;
        }
        let lacks = |what: String| io::Error::new(io::ErrorKind::Unsupported, what);
        let features = u64::from_ne_bytes(channel.ask(Request::GetFeatures, &[])?);
        if features & ring::VERSION_1 == 0 {
            return Err(lacks("it serves only queues from before virtio 1.0".to_owned()));
        }
        let mut several = false;
        if features & PROTOCOL_FEATURES != 0 {
            let has = u64::from_ne_bytes(channel.ask(Request::GetProtocolFeatures, &[])?);
            let has = has & (protocol::MQ | protocol::REPLY_ACK | protocol::MTU);
            channel.tell(Request::SetProtocolFeatures, &has.to_ne_bytes(), &[])?;
            if has & protocol::REPLY_ACK != 0 {
                channel.acknowledged();
            }
            if has & protocol::MTU != 0 {
                channel.tell(Request::NetSetMtu, &u64::from(mtu).to_ne_bytes(), &[])?;
            }
            several = has & protocol::MQ != 0 && features & feature::MQ != 0;
        }
        if pairs > 1 {
            let most = match several {
                true => u64::from_ne_bytes(channel.ask(Request::GetQueueNum, &[])?),
                false => 1,
            };
            if most < pairs as u64 {
                return Err(lacks(format!("it serves {most} pairs of queues at most, not {pairs}")));
            }
        }
        let sockets = (0..pairs).map(|_| channel.as_fd().try_clone_to_owned());
        let sockets = sockets.collect::<io::Result<_>>()?;
        let serves = (0..pairs).map(|_| None).collect();
        Ok(Self {
            channel,
            sockets,
            features,
            here: HERE,
            serves,
            has_memory: false,
            failed: None,
            astray: false,
        })
    }

    /// What came of an exchange; after one that failed there are no more, and the other side hears
    /// so.
    fn noted<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            self.failed = Some(error.to_string());
            self.astray |= self.has_memory && error.kind() != io::ErrorKind::UnexpectedEof;
            self.channel.close();
        }
        result
    }

    fn start(
        &mut self,
        pair: usize,
        memory: &Memory,
        features: u64,
        queues: &[KernelQueue<'_>; 2],
    ) -> io::Result<()> {
        if self.serves.iter().all(Option::is_none) {
            let features = features & self.features | self.features & PROTOCOL_FEATURES;
            self.channel.tell(Request::SetFeatures, &features.to_ne_bytes(), &[])?;
            self.tell_memory(memory)?;
        }
        for queue in queues {
            let n = usize::from(queue.size);
            let rings = [(queue.descriptors, 16 * n), (queue.available, 6 + 2 * n), (queue.used, 6 + 8 * n)];
            for (ring, len) in rings {
                // The other side maps each region by itself: a ring that lies in two of them would
                // lead it behind the first.
                memory.get_slice(GuestAddress(ring), len).map_err(io::Error::other)?;
            }
        }
        let numbers = [0, 1].map(|way| crate::sys::fits::<_, u32>(2 * pair + way, "there are eight pairs"));
        for (number, queue) in numbers.into_iter().zip(queues) {
            set_up(&mut self.channel, number, queue, self.here)?;
        }
        // From here on it is taken back, whatever comes of the rest.
        self.serves[pair] = Some(Served { memory: memory.clone(), used: [queues[0].used, queues[1].used] });
        if self.features & PROTOCOL_FEATURES != 0 {
            for number in numbers {
                self.channel.tell(Request::SetVringEnable, &state(number, 1), &[])?;
            }
        }
        Ok(())
    }

    fn tell_memory(&mut self, memory: &Memory) -> io::Result<()> {
        self.here = HERE + STEP * (TABLES.fetch_add(1, Ordering::Relaxed) % (1 << 20));
        let (mut words, mut files) = (Vec::new(), Vec::new());
        for region in memory.iter() {
            let guest = region.start_addr().0;
            let file = region.file_offset().ok_or_else(|| {
                io::Error::new(io::ErrorKind::Unsupported, "guest memory is this process's alone")
            })?;
            words.extend(
                [guest, region.len(), self.here + guest, file.start()].map(u64::to_ne_bytes).concat(),
            );
            files.push(file.file().as_fd());
        }
        let count = u32::try_from(files.len()).ok().filter(|_| files.len() <= REGIONS_MAX);
        let count = count.ok_or(io::ErrorKind::InvalidInput)?;
        let head = [count, 0].map(u32::to_ne_bytes).concat();
        self.has_memory = true;
        self.channel.tell(Request::SetMemTable, &[head, words].concat(), &files)
    }

    /// Has the other side stop, and hears that it has.
    fn stop(&mut self, pair: usize) -> io::Result<()> {
        for way in 0..2 {
            let number = crate::sys::fits(2 * pair + way, "there are eight pairs");
            let answer: [u8; 8] = self.channel.ask(Request::GetVringBase, &state(number, 0))?;
            // How far it has read is between it and the driver: what it has not given back, it has
            // not done.
            if answer[..4] != number.to_ne_bytes() {
                let text = format!("it says where another queue than {number} stands");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(())
    }
}

/// A queue and a number.
fn state(queue: u32, number: u32) -> Vec<u8> {
    [queue, number].map(u32::to_ne_bytes).concat()
}

/// Tells of one queue; with the last word it starts.
fn set_up(channel: &mut Channel, number: u32, queue: &KernelQueue<'_>, here: u64) -> io::Result<()> {
    let KernelQueue { size, descriptors, available, used, next, kick, call, broken } = *queue;
    channel.tell(Request::SetVringNum, &state(number, size.into()), &[])?;
    channel.tell(Request::SetVringBase, &state(number, next.into()), &[])?;
    // Without a log of pages that were written.
    let rings = [descriptors, used, available].map(|guest| (here + guest).to_ne_bytes()).concat();
    channel.tell(Request::SetVringAddr, &[state(number, 0), rings, vec![0; 8]].concat(), &[])?;
    let bells =
        [(Request::SetVringErr, broken), (Request::SetVringCall, call), (Request::SetVringKick, kick)];
    for (request, file) in bells {
        channel.tell(request, &u64::from(number).to_ne_bytes(), &[file])?;
    }
    Ok(())
}

impl Backend for VhostUser {
    fn carries(&self) -> Offloads {
        let has = |bits: u64| self.features & bits == bits;
        let checksum = has(feature::CSUM | feature::GUEST_CSUM);
        Offloads {
            checksum,
            tso4: checksum && has(feature::HOST_TSO4 | feature::GUEST_TSO4),
            tso6: checksum && has(feature::HOST_TSO6 | feature::GUEST_TSO6),
            uso: checksum && has(feature::HOST_USO | feature::GUEST_USO4 | feature::GUEST_USO6),
        }
    }

    fn lacks(&self) -> u64 {
        // It hears of what the driver takes before it has queues, and not again.
        !self.features & ITS_OWN | feature::CTRL_GUEST_OFFLOADS
    }

    fn descriptor(&self, pair: usize) -> BorrowedFd<'_> {
        self.sockets[pair].as_fd()
    }

    fn tell(&mut self, _guest: Offloads) -> Sent {
        match &self.failed {
            None => Sent::Taken,
            Some(failed) => Sent::Gone(io::Error::other(failed.clone())),
        }
    }

    fn use_pairs(&mut self, _pairs: usize) -> io::Result<()> {
        Ok(())
    }

    fn begin(&mut self) {
        self.channel.begin();
    }

    fn server(&self) -> Server {
        Server::Peer
    }

    fn is_astray(&self) -> bool {
        self.astray
    }

    fn offer(&mut self, pair: usize, offer: &Offer<'_>) -> io::Result<bool> {
        let Offer { memory, features, queues, used, broken } = *offer;
        let [Some(receive), Some(transmit)] = queues.map(|queue| queue.for_kernel(used, broken)) else {
            return self.noted(Err(io::Error::other("requests of its queues are not done yet")));
        };
        let started = self.start(pair, memory, features, &[receive, transmit]);
        self.noted(started).map(|()| true)
    }

    fn take_back(&mut self, pair: usize) -> io::Result<[u16; 2]> {
        let served = self.serves.get_mut(pair).and_then(Option::take);
        let Some(Served { memory, used }) = served else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if self.failed.is_none() {
            // The link is down after an error: the next that asks hears it.
            let stopped = self.stop(pair);
            let _ = self.noted(stopped);
        }
        let index = |ring: u64| {
            let index = memory.load::<u16>(GuestAddress(ring + 2), Ordering::Acquire);
            index.map(u16::from_le).map_err(io::Error::other)
        };
        Ok([index(used[0])?, index(used[1])?])
    }

    fn send(&mut self, _: usize, _: &Header, _: &mut Reader<'_>) -> Result<Sent, QueueFault> {
        Ok(Sent::Refused)
    }

    fn flush(&mut self) -> Sent {
        Sent::Taken
    }

    fn receive(&mut self, _pair: usize, _space: &mut Writer<'_>) -> Result<Received, QueueFault> {
        Ok(Received::Nothing)
    }
}
