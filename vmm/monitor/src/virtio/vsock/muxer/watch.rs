//! What the poller watches, and whose turn it is to speak.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Muxer;
use super::slot::Host;
use crate::sys::Interest;
use crate::virtio::device::Registrar;
use crate::virtio::vsock::KEY_DOOR;
use crate::virtio::vsock::table::Handle;

/// Time limits are kept to this.
const TICK: Duration = Duration::from_secs(1);

impl Muxer {
    /// Something about this entry changed: it gets a turn if it has something to say, and
    /// [`Self::sync`] looks at it.
    pub(super) fn touch(&mut self, handle: Handle) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        if !slot.touched {
            slot.touched = true;
            self.touched.push(handle);
        }
        if !slot.queued && slot.due() {
            slot.queued = true;
            self.turns.push_back(handle);
            // Turns of connections that are gone go when they come up, or here when a guest that
            // gives no room piles them up.
            if self.turns.len() > 2 * self.table.len() + 64 {
                let table = &self.table;
                self.turns.retain(|handle| table.get(*handle).is_some());
            }
        }
    }

    /// Brings the poller's registrations to what is wanted now. `true`: a connection was lost doing
    /// so, and there is a RST to serve.
    pub(in crate::virtio::vsock) fn sync(&mut self, registrar: &mut Registrar<'_>) -> io::Result<bool> {
        let resets = self.resets.len();
        while let Some(handle) = self.touched.pop() {
            self.sync_one(handle, registrar);
        }
        for stream in self.buried.drain(..) {
            // Closing takes it off the poller in any case.
            let _ = registrar.remove(stream.as_fd());
        }
        self.listeners.sync(registrar);
        if let Some(door) = &mut self.door
            && door.registered == door.closed
        {
            if door.closed {
                registrar.remove(door.listener().as_fd())?;
            } else {
                registrar.add(door.listener().as_fd(), KEY_DOOR, Interest::READ)?;
            }
            door.registered = !door.closed;
        }
        if !self.ticking && self.needs_ticks() {
            self.timer.set(Some(TICK))?;
            self.ticking = true;
        }
        let connections = self.table.len() - self.greetings;
        self.inbox.counters.connections.store(connections, Ordering::Relaxed);
        Ok(self.resets.len() > resets)
    }

    fn sync_one(&mut self, handle: Handle, registrar: &mut Registrar<'_>) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        slot.touched = false;
        let waits = matches!(slot.host, Host::Greeting(_) | Host::Ringing(_));
        self.waiting |= waits;
        if slot.key.is_none() && slot.backlog.is_empty() && !waits {
            return self.remove(handle);
        }
        if matches!(slot.host, Host::Stream(_)) && slot.protocol.ended() && slot.protocol.refuses() {
            let host = std::mem::replace(&mut slot.host, Host::Gone);
            let registered = slot.registered.take();
            return self.bury(host, registered);
        }
        let (wanted, registered) = (slot.wanted(), slot.registered);
        if wanted == registered {
            return;
        }
        let Some(stream) = slot.stream() else {
            slot.registered = None;
            return;
        };
        let result = match (registered, wanted) {
            (None, Some(interest)) => registrar.add(stream.as_fd(), handle.key(), interest),
            (Some(_), Some(interest)) => registrar.modify(stream.as_fd(), handle.key(), interest),
            (_, None) => registrar.remove(stream.as_fd()),
        };
        match result {
            Ok(()) => slot.registered = wanted,
            Err(_) => self.lose(handle, io::ErrorKind::QuotaExceeded),
        }
    }

    /// The poller forgets everything: the worker is about to stop.
    pub(in crate::virtio::vsock) fn suspend(&mut self, registrar: &mut Registrar<'_>) {
        for handle in self.table.handles() {
            let Some(slot) = self.table.get_mut(handle) else { continue };
            if slot.registered.take().is_some()
                && let Some(stream) = slot.stream()
            {
                let _ = registrar.remove(stream.as_fd());
            }
        }
        for stream in self.buried.drain(..) {
            let _ = registrar.remove(stream.as_fd());
        }
        self.listeners.suspend(registrar);
        if let Some(door) = &mut self.door
            && std::mem::take(&mut door.registered)
        {
            let _ = registrar.remove(door.listener().as_fd());
        }
    }
}
