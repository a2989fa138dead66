//! What a device's frames go to and come from: one trait, and one file for each kind.

mod datagram;
mod stream;
mod tap;
mod vhost_user;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

pub(super) use datagram::Datagram;
pub(super) use stream::Stream;
pub(super) use tap::Tap;
pub(super) use vhost_user::VhostUser;

use super::header::{Header, Offloads};
use crate::config::NetworkLink;
use crate::memory::Memory;
use crate::sys::Notifier;
use crate::virtio::queue::{Queue, QueueFault, Reader, Writer};

/// What became of a frame of the guest.
#[derive(Debug)]
pub(super) enum Sent {
    /// It is on its way.
    Taken,
    /// The other side has no room: later, when the descriptor can be written.
    Full,
    /// It was not taken, and the next one may be.
    Refused,
    /// The other side is gone.
    Gone(io::Error),
}

/// What came for the guest.
#[derive(Debug)]
pub(super) enum Received {
    /// A frame of so many bytes, which stand in the guest's buffers; its header is as the peer said
    /// it.
    Frame(Header, u32),
    /// Nothing.
    Nothing,
    /// Something for this side only; there may be more.
    Word,
    /// A frame that was longer than the guest's buffers.
    TooLong,
    /// What is no frame.
    Bad,
    /// The other side is gone, or cannot be understood any more.
    Gone(io::Error),
}

/// A pair of queues that somebody else may serve in the worker's place.
pub(super) struct Offer<'a> {
    pub(super) memory: &'a Memory,
    /// What the driver has accepted.
    pub(super) features: u64,
    /// To the guest, and from it. No chain of them is held.
    pub(super) queues: [&'a Queue; 2],
    /// What is woken when the driver is to be interrupted.
    pub(super) used: &'a Notifier,
    /// What is woken when the rings are broken.
    pub(super) broken: &'a Notifier,
}

/// Who may serve a pair of queues in the worker's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// The host's kernel (vhost-net).
    Kernel,
    /// The process at the other end of the link (vhost-user).
    Peer,
}

/// The host's end of a device. No frame is waited for here.
pub(super) trait Backend: Send {
    /// What the two sides of it can leave to each other.
    fn carries(&self) -> Offloads;

    /// Features of the device or its rings that the driver is not to have with this one.
    fn lacks(&self) -> u64 {
        0
    }

    /// What tells when the peer of pair `pair` can be read or written.
    fn descriptor(&self, pair: usize) -> BorrowedFd<'_>;

    /// A driver is there that takes `guest`, or takes something else than before. `Full`: the peer
    /// hears of it by a later [`Backend::flush`].
    fn tell(&mut self, guest: Offloads) -> Sent;

    /// The first `pairs` pairs of queues are in use.
    ///
    /// # Errors
    /// The host refuses: then those from before are.
    fn use_pairs(&mut self, pairs: usize) -> io::Result<()>;

    /// Pairs are about to be offered or taken back, some or all of them: whoever is asked has one
    /// limit of time for all of that.
    fn begin(&mut self) {}

    /// Whom [`Backend::offer`] asks.
    fn server(&self) -> Server {
        Server::Kernel
    }

    /// Offers a pair of queues to the host's kernel, or to another process. `true`: it serves them
    /// until [`Backend::take_back`]. `false`: as before.
    ///
    /// # Errors
    /// The peer, who alone can serve them, does not: it is gone.
    fn offer(&mut self, _pair: usize, _offer: &Offer<'_>) -> io::Result<bool> {
        Ok(false)
    }

    /// Takes back a pair that was offered and taken: the next entries of its queues.
    ///
    /// # Errors
    /// It does not say where it stands.
    fn take_back(&mut self, _pair: usize) -> io::Result<[u16; 2]> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whoever served a pair was told to stop, and has not said that it has: it may write to the
    /// guest's memory still.
    fn is_astray(&self) -> bool {
        false
    }

    /// Passes on a frame of the guest: all that `frame` has. What is not taken was not read.
    fn send(&mut self, pair: usize, header: &Header, frame: &mut Reader<'_>) -> Result<Sent, QueueFault>;

    /// Passes on what waits of earlier frames.
    fn flush(&mut self) -> Sent;

    /// Takes the next frame into `space`, which holds no more than that.
    fn receive(&mut self, pair: usize, space: &mut Writer<'_>) -> Result<Received, QueueFault>;
}

/// Makes the back end of a link that has these descriptors; none for no link. A tap of `pairs`
/// pairs of queues has that many, and behind them as many of vhost-net, or none.
///
/// # Errors
/// A descriptor is of another kind.
pub(super) fn open(
    link: &NetworkLink,
    mtu: u16,
    pairs: usize,
    mut descriptors: Vec<OwnedFd>,
) -> io::Result<Option<Box<dyn Backend>>> {
    let mut one = || descriptors.pop().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    Ok(match link {
        NetworkLink::None => None,
        NetworkLink::Datagram(link) => Some(Box::new(Datagram::new(one()?, link.header.then_some(mtu))?)),
        NetworkLink::Stream(_) => Some(Box::new(Stream::new(one()?)?)),
        NetworkLink::VhostUser(_) => {
            VhostUser::new(one()?, mtu, pairs)?.map(|peer| Box::new(peer) as Box<dyn Backend>)
        }
        NetworkLink::Tap(_) => {
            let kernel = descriptors.split_off(pairs.min(descriptors.len()));
            Some(Box::new(Tap::new(descriptors, kernel)?))
        }
    })
}

/// What became of a frame, from the error of the call that should have taken it.
fn refused(error: io::Error) -> Sent {
    match error.kind() {
        io::ErrorKind::WouldBlock => Sent::Full,
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotConnected => Sent::Gone(error),
        // Too long for the peer, too many pieces, no memory, an interface that is down.
        _ => Sent::Refused,
    }
}

/// What a read that failed says of the link.
fn unread(error: io::Error) -> Received {
    match error.kind() {
        io::ErrorKind::WouldBlock => Received::Nothing,
        _ => Received::Gone(error),
    }
}

/// The error of a peer that closed its end.
pub(super) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other side of the link has closed it")
}
