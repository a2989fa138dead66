//! The network device (virtio 1.2, 5.1) between a guest and one peer: a socket or a tap of the
//! host. Frames go straight between guest memory and the peer's descriptor where its framing
//! allows.
//!
//! Neither side is believed. What the guest sends with a header that lies is dropped and counted,
//! and so is what its peer sends; a broken ring is a fault of the device. A peer that is slow holds
//! up its link and nothing else, and one that is gone takes the link down.
//!
//! `header` and `control` are pure; `backend` has one file for each kind of peer; `pair` moves
//! frames between a pair of queues and a back end; `worker` puts it on its loop.

mod backend;
mod control;
mod counters;
pub mod header;
mod pair;
pub mod spec;
#[cfg(test)]
pub(crate) mod tests;
mod worker;

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;

pub use counters::{FrameCounts, NetworkView};

use self::header::Offloads;
use self::worker::{NetworkWorker, Rest};
use super::device::{ActivateError, Activation, Device, Placement, Worker, read_bytes};
use super::spec::id;
use crate::config::NetworkConfig;
use crate::state::fields::plain;
use crate::state::{Sections, StateError, Stateful};

/// The device.
pub struct Network {
    name: String,
    mac: [u8; 6],
    mtu: u16,
    queue_sizes: Vec<u16>,
    features: u64,
    /// Features of the rings that the peer does not know of.
    withheld: u64,
    view: NetworkView,
    /// `None` while a worker has it.
    rest: Option<Rest>,
}

impl Network {
    /// A device of this config, whose link has these descriptors, and what it looks like from
    /// outside.
    ///
    /// # Errors
    /// A descriptor is of another kind than the link.
    pub fn new(config: &NetworkConfig, descriptors: Vec<OwnedFd>) -> io::Result<(Self, NetworkView)> {
        let mtu = config.mtu.get();
        let pairs = usize::from(config.queues.get());
        let backend = backend::open(&config.link, mtu, pairs, descriptors)?;
        let carries = backend.as_ref().map_or(Offloads::NONE, |backend| backend.carries());
        // No CTRL_RX: a device without it passes on all that its peer sends, which this one does
        // anyway. With it, a driver says at each change of its addresses, three times while its
        // interface goes up, what nobody heeds, and spins until that is answered.
        let mut features = spec::feature::MTU
            | spec::feature::MAC
            | spec::feature::MRG_RXBUF
            | spec::feature::STATUS
            | spec::feature::CTRL_VQ
            | carries.host_features()
            | carries.guest_features();
        if pairs > 1 {
            features |= spec::feature::MQ;
        }
        if carries != Offloads::NONE {
            features |= spec::feature::CTRL_GUEST_OFFLOADS;
        }
        let withheld = backend.as_ref().map_or(0, |backend| backend.lacks());
        let features = features & !withheld;
        let mut queue_sizes = vec![spec::QUEUE_SIZE; 2 * pairs];
        queue_sizes.push(spec::CONTROL_QUEUE_SIZE);
        let is_up = backend.is_some();
        let view = NetworkView::new(is_up);
        let device = Self {
            name: config.id.as_str().to_owned(),
            mac: config.mac.bytes(),
            mtu,
            queue_sizes,
            features,
            withheld,
            view: view.clone(),
            rest: Some(Rest { backend, pairs: 1, takes: None, told_up: is_up }),
        };
        Ok((device, view))
    }

    /// Pairs of queues.
    fn pairs(&self) -> u16 {
        crate::sys::fits(self.queue_sizes.len() / 2, "there are at most eight pairs")
    }

    /// The configuration space (5.1.4): address, status, pairs of queues, MTU.
    fn config(&self) -> [u8; 12] {
        let [a, b, c, d, e, f] = self.mac;
        let status = if self.view.is_up() { spec::STATUS_LINK_UP } else { 0 };
        let [[g, h], [i, j], [k, l]] = [status, self.pairs(), self.mtu].map(u16::to_le_bytes);
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

impl Device for Network {
    fn id(&self) -> u32 {
        id::NET
    }

    fn name(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn withheld(&self) -> u64 {
        self.withheld
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    /// Large frames are copied by the system, which would hold up consoles and streams.
    fn placement(&self) -> Placement {
        Placement::OwnThread
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(NetworkWorker::new(activation, &mut self.rest, self.view.clone())?))
    }

    fn reclaim(&mut self, state: Box<dyn Any + Send>) {
        if let Ok(rest) = state.downcast::<Rest>() {
            self.rest = Some(*rest);
        }
    }

    fn reset(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.pairs = 1;
            rest.takes = None;
            // A driver that starts anew reads what it is.
            rest.told_up = self.view.is_up();
        }
    }
}

/// What the driver was shown and what it has set. The peer stays behind: a restored device has the
/// one of its config, which is told what the driver takes, and a link that is not as it was is told
/// the driver.
impl Stateful for Network {
    /// # Panics
    /// A worker has the link.
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { name: id, mac, mtu, queue_sizes: _, features: _, withheld: _, view: _, rest } = self;
        let Rest { backend: _, pairs, takes, told_up } =
            rest.as_ref().expect("a device has no worker when it says its state");
        state.put_fields(name, 1, |fields| {
            fields.put_text(id);
            fields.put(mac);
            fields.put(mtu);
            fields.put(&self.pairs());
            fields.put(pairs);
            fields.put(&takes.map(Offloads::guest_features));
            fields.put(told_up);
        });
    }

    /// # Panics
    /// As [`Network::save`].
    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let (pairs, takes, told_up) = state.take_fields(name, 1, |fields| {
            let (id, here) = (fields.get_text(TEXT_MAX)?, plain(&self.name));
            if id != here {
                return Err(fields.unfit(format!("it is that of the network {id:?}, and here is {here:?}")));
            }
            fields.expect("address", &self.mac)?;
            fields.expect("MTU", &self.mtu)?;
            fields.expect("number of pairs of queues", &self.pairs())?;
            let pairs: u16 = fields.get()?;
            if !(1..=self.pairs()).contains(&pairs) {
                return Err(fields.unfit(format!("it has {pairs} pairs of queues in use")));
            }
            let takes: Option<u64> = fields.get()?;
            if takes.is_some_and(|takes| takes & !self.features != 0) {
                return Err(fields.unfit("its driver takes what no peer leaves to it here"));
            }
            Ok((pairs, takes.map(Offloads::of_guest), fields.get()?))
        })?;
        let rest = self.rest.as_mut().expect("a device has no worker when its state comes back");
        (rest.pairs, rest.takes, rest.told_up) = (pairs, takes, told_up);
        Ok(())
    }
}

/// Most bytes of a name that is read.
const TEXT_MAX: usize = 1024;
