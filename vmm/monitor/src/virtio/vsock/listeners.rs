//! Ports of the host that the holder of the machine takes connections on, each with the channel
//! that they go over.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::connection::Key;
use super::control::{pair, send_accepted};
use crate::sys::{self, Interest};
use crate::virtio::device::Registrar;

/// The key of a listener's registration has this bit, and not that of a connection's.
const KEY_BIT: u32 = 1 << 30;

#[derive(Debug)]
struct Listener {
    channel: OwnedFd,
    /// Names it to the poller: a port may be listened on again before an event of the last time is
    /// seen.
    id: u32,
    registered: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    by_port: HashMap<u32, Listener>,
    next: u32,
    /// Some are not registered yet.
    fresh: bool,
    /// Channels to take off the poller and close.
    buried: Vec<OwnedFd>,
}

impl Listeners {
    /// Listens on `port`, instead of whoever did.
    pub(super) fn open(&mut self, port: u32, channel: OwnedFd) {
        // A channel that cannot be made non-blocking could stop the device: better none.
        if sys::set_nonblocking(&channel).is_err() {
            return;
        }
        self.close(port);
        self.next = (self.next + 1) & (KEY_BIT - 1);
        self.by_port.insert(port, Listener { channel, id: self.next, registered: false });
        self.fresh = true;
    }

    pub(super) fn close(&mut self, port: u32) {
        if let Some(listener) = self.by_port.remove(&port)
            && listener.registered
        {
            self.buried.push(listener.channel);
        }
    }

    /// The other end of the channel that is registered as `key` was closed, or somebody wrote on
    /// it, which is not its use.
    pub(super) fn ready(&mut self, key: u32) {
        let id = key & (KEY_BIT - 1);
        let Some((port, listener)) = self.by_port.iter().find(|(_, listener)| listener.id == id) else {
            return;
        };
        let port = *port;
        let mut buffer = [0; 64];
        let over = match rustix::io::retry_on_intr(|| rustix::io::read(&listener.channel, &mut buffer)) {
            Ok(0) => true,
            Ok(_) | Err(rustix::io::Errno::AGAIN) => false,
            Err(_) => true,
        };
        if over {
            self.close(port);
        }
    }

    /// Hands a stream to whoever listens on the host's port of `key`; our end of it. `None`:
    /// nobody, or nobody with room.
    pub(super) fn hand_over(&mut self, key: Key) -> Option<UnixStream> {
        let listener = self.by_port.get(&key.host)?;
        let (near, far) = pair().ok()?;
        match send_accepted(&listener.channel, &far, key.guest, key.host) {
            Ok(()) => Some(near),
            Err(error) => {
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
                ) {
                    self.close(key.host);
                }
                None
            }
        }
    }

    /// Whether anybody listens on `port`.
    pub(super) fn contains(&self, port: u32) -> bool {
        self.by_port.contains_key(&port)
    }

    /// Brings the poller's registrations to what is wanted now.
    pub(super) fn sync(&mut self, registrar: &mut Registrar<'_>) {
        for channel in self.buried.drain(..) {
            // Closing takes it off the poller unless somebody else holds it, too.
            let _ = registrar.remove(channel.as_fd());
        }
        if std::mem::take(&mut self.fresh) {
            self.by_port.retain(|_, listener| {
                // A poller that takes no more is a reason not to listen.
                listener.registered = listener.registered
                    || registrar.add(listener.channel.as_fd(), listener.id | KEY_BIT, Interest::READ).is_ok();
                listener.registered
            });
        }
    }

    /// The poller forgets everything: the worker is about to stop.
    pub(super) fn suspend(&mut self, registrar: &mut Registrar<'_>) {
        for listener in self.by_port.values_mut() {
            if std::mem::take(&mut listener.registered) {
                let _ = registrar.remove(listener.channel.as_fd());
            }
        }
        for channel in self.buried.drain(..) {
            let _ = registrar.remove(channel.as_fd());
        }
        self.fresh = true;
    }
}
