//! virtio-vsock (virtio 1.2, section 5.10) in user space: every guest connection is a Unix stream
//! on the host.
//!
//! Ways in: a client of the Unix socket says `CONNECT port` and is answered `OK port` once the
//! guest accepted; the holder of the machine calls [`VsockControl::connect`], or gives a socket of
//! its own to [`VsockControl::join`]. Ways out: what the guest dials goes to a channel
//! given to [`VsockControl::listen`], or to the Unix socket beside the first one, `PATH_port`; one
//! port may be the monitor's own ([`PowerWord`]), for one connection each time the guest's driver
//! starts. What the guest dials takes half of the connections at most, what the holder joins a
//! quarter, and silence keeps no place where places are short.
//!
//! `packet` `connection` `backlog` `table` are pure; `muxer` puts them together with descriptors;
//! `worker` puts it on the queues.

mod backlog;
mod connection;
mod control;
mod door;
#[cfg(any(test, feature = "testing"))]
mod fuzz;
mod listeners;
mod muxer;
mod packet;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::any::Any;
use std::io;
use std::path::PathBuf;

pub use control::{CONNECT_TIMEOUT, ConnectReply, JoinReply, PREFIX_MOST, VsockControl, receive_accepted};

#[cfg(any(test, feature = "testing"))]
pub use fuzz::fuzz_packets;

use self::control::Inbox;
use self::door::Door;
use self::muxer::Muxer;
use self::worker::{Rest, VsockWorker};
use crate::config::VsockConfig;
use crate::state::{Sections, StateError, Stateful};
use crate::virtio::device::{ActivateError, Activation, Device, Worker, read_bytes};

/// The device id (5.10.1).
const ID: u32 = 19;
/// VIRTIO_VSOCK_F_STREAM (5.10.3).
const FEATURE_STREAM: u64 = 1;
/// Packets to the guest, packets of the guest, events.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Keys of registrations; connections have theirs from their handles.
const KEY_RX: u32 = 0;
const KEY_TX: u32 = 1;
const KEY_EVENT: u32 = 2;
const KEY_BELL: u32 = 3;
const KEY_TICK: u32 = 4;
const KEY_DOOR: u32 = 5;

/// What the guest's agent says last, one byte on the power port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerWord {
    /// `o`: it is done.
    Off,
    /// `r`: it wants to start again.
    Reboot,
    /// `p`: it failed.
    Panic,
}

/// Told of a [`PowerWord`], on the device's thread: must not block.
pub type PowerSink = Box<dyn Fn(PowerWord) + Send>;

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The socket for `CONNECT` lines.
    #[error("cannot listen on the Unix socket {path}", path = path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A descriptor of the device's own.
    #[error("cannot make the descriptors of the socket device")]
    Descriptors(#[source] io::Error),
}

/// The socket device as the transport sees it.
pub struct Vsock {
    cid: u64,
    /// `None` while a worker has it.
    rest: Option<Rest>,
}

impl Vsock {
    /// A device and the handle on it. `power` is told what comes on `config.power_port`, and is of
    /// no use without one. The socket of `config.unix_socket` exists when this returns and is
    /// removed with the device.
    pub fn new(config: &VsockConfig, power: Option<PowerSink>) -> Result<(Self, VsockControl), VsockError> {
        let door = match &config.unix_socket {
            None => None,
            Some(path) => Some(
                Door::new(path.clone())
                    .map_err(|source| VsockError::Listen { path: path.clone(), source })?,
            ),
        };
        let cid = u64::from(config.cid.get());
        let (inbox, control) = Inbox::new().map_err(VsockError::Descriptors)?;
        let muxer =
            Muxer::new(cid, door, config.power_port.zip(power), inbox).map_err(VsockError::Descriptors)?;
        Ok((Self { cid, rest: Some(Rest { muxer, reset_due: false }) }, control))
    }
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // guest_cid, and nothing else (5.10.4).
        read_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(VsockWorker::new(activation, &mut self.rest)?))
    }

    fn reclaim(&mut self, state: Box<dyn Any + Send>) {
        if let Ok(rest) = state.downcast::<Rest>() {
            self.rest = Some(*rest);
        }
    }

    fn reset(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.muxer.reset();
            // A driver that starts anew has no connections to be told about.
            rest.reset_due = false;
        }
    }
}

/// Connections stay behind: what is restored has none, and tells its driver so as soon as it runs
/// (5.10.6.7). Who listens on the host is the configuration's.
impl Stateful for Vsock {
    /// # Panics
    /// A worker has the connections.
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { cid, rest } = self;
        let Rest { muxer, reset_due: _ } =
            rest.as_ref().expect("a device has no worker when it says its state");
        state.put_fields(name, 1, |fields| {
            fields.put(cid);
            fields.put(&muxer.power_taken());
            fields.put(&muxer.next_port());
        });
    }

    /// # Panics
    /// As [`Vsock::save`].
    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let rest = self.rest.as_mut().expect("a device has no worker when its state comes back");
        let (power_taken, next_port) = state.take_fields(name, 1, |fields| {
            fields.expect("context id", &self.cid)?;
            Ok((fields.get()?, fields.get()?))
        })?;
        rest.muxer.set_power_taken(power_taken);
        rest.muxer.set_next_port(next_port);
        rest.reset_due = true;
        Ok(())
    }
}
