//! What can be seen of the device from outside while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use super::backend::Server;

/// Frames one way. Bytes are those of frames, without the headers before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Frames that were passed on.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were dropped because their sender broke the rules.
    pub bad: u64,
    /// Frames that were dropped because nobody could take them: the link is down, or the guest's
    /// buffers are too small.
    pub lost: u64,
}

#[derive(Debug, Default)]
struct Counter {
    frames: AtomicU64,
    bytes: AtomicU64,
    bad: AtomicU64,
    lost: AtomicU64,
}

impl Counter {
    fn read(&self) -> FrameCounts {
        let [frames, bytes, bad, lost] =
            [&self.frames, &self.bytes, &self.bad, &self.lost].map(|count| count.load(Ordering::Relaxed));
        FrameCounts { frames, bytes, bad, lost }
    }
}

/// One way that frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the guest.
    Out,
    /// To the guest.
    In,
}

#[derive(Debug, Default)]
struct Shared {
    out: Counter,
    into: Counter,
    is_up: AtomicBool,
    /// Pairs of queues in use; 0 without a driver.
    pairs: AtomicU16,
    /// Those of them that the host's kernel serves.
    kernel_pairs: AtomicU16,
    /// Those that the peer serves.
    peer_pairs: AtomicU16,
    /// Somebody else has served a pair, and does not tell what it has moved.
    was_given: AtomicBool,
    /// The peer may write to the guest's memory though it serves nothing.
    is_astray: AtomicBool,
}

/// Looks at a network device. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct NetworkView(Arc<Shared>);

impl NetworkView {
    pub(super) fn new(is_up: bool) -> Self {
        let view = Self::default();
        view.set_up(is_up);
        view
    }

    fn way(&self, way: Way) -> &Counter {
        match way {
            Way::Out => &self.0.out,
            Way::In => &self.0.into,
        }
    }

    pub(super) fn passed(&self, way: Way, bytes: u32) {
        self.way(way).frames.fetch_add(1, Ordering::Relaxed);
        self.way(way).bytes.fetch_add(bytes.into(), Ordering::Relaxed);
    }

    pub(super) fn bad(&self, way: Way) {
        self.way(way).bad.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lost(&self, way: Way) {
        self.way(way).lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_up(&self, is_up: bool) {
        self.0.is_up.store(is_up, Ordering::SeqCst);
    }

    pub(super) fn set_pairs(&self, pairs: u16) {
        self.0.pairs.store(pairs, Ordering::Relaxed);
    }

    /// So many pairs are served by somebody else.
    pub(super) fn set_given(&self, server: Option<Server>, pairs: u16) {
        self.0.was_given.fetch_or(pairs > 0, Ordering::Relaxed);
        let of = |who| if server == Some(who) { pairs } else { 0 };
        self.0.kernel_pairs.store(of(Server::Kernel), Ordering::Relaxed);
        self.0.peer_pairs.store(of(Server::Peer), Ordering::Relaxed);
    }

    /// Pairs of queues that the host's kernel serves (vhost-net). Their frames are not counted.
    #[must_use]
    pub fn kernel_pairs(&self) -> u16 {
        self.0.kernel_pairs.load(Ordering::Relaxed)
    }

    /// Pairs of queues that the peer serves itself (vhost-user). Their frames are not counted.
    #[must_use]
    pub fn peer_pairs(&self) -> u16 {
        self.0.peer_pairs.load(Ordering::Relaxed)
    }

    /// Whether [`NetworkView::sent`] and [`NetworkView::received`] have every frame: nobody else
    /// has served a pair since the machine started.
    #[must_use]
    pub fn counts_all(&self) -> bool {
        !self.0.was_given.load(Ordering::Relaxed)
    }

    pub(super) fn set_astray(&self) {
        self.0.is_astray.store(true, Ordering::SeqCst);
    }

    /// Whether a peer that served queues was told to stop and has not said that it has: it may
    /// write to the guest's memory, at any time, as long as this machine runs.
    #[must_use]
    pub fn is_astray(&self) -> bool {
        self.0.is_astray.load(Ordering::SeqCst)
    }

    /// Whether the link is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.is_up.load(Ordering::SeqCst)
    }

    /// Pairs of queues that the driver uses; 0 without a driver.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.0.pairs.load(Ordering::Relaxed)
    }

    /// Frames of the guest that passed here since the machine started, see
    /// [`NetworkView::counts_all`].
    #[must_use]
    pub fn sent(&self) -> FrameCounts {
        self.0.out.read()
    }

    /// Frames to the guest since then.
    #[must_use]
    pub fn received(&self) -> FrameCounts {
        self.0.into.read()
    }
}
