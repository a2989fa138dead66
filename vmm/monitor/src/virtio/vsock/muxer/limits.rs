//! Limits of time, and what a stop, a start and a reset of the driver mean for connections.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use super::Muxer;
use super::host::CLIENT_TIMEOUT;
use super::slot::Host;
use crate::virtio::vsock::backlog::Backlog;
use crate::virtio::vsock::packet::Op;
use crate::virtio::vsock::table::Handle;

/// With half of the guest's connections taken, one that the guest dialled and on which nothing was
/// said for so many ticks is reset: silence keeps nobody else out. With fewer, it may be silent for
/// ever.
const SILENT_TICKS: u8 = if cfg!(test) { 2 } else { 30 };

impl Muxer {
    /// Ends what took too long.
    pub(in crate::virtio::vsock) fn tick(&mut self, now: Instant) {
        let mut waiting = self.is_crowded();
        let crowded = waiting;
        for handle in self.table.handles() {
            let Some(slot) = self.table.get_mut(handle) else { continue };
            match &slot.host {
                Host::Stream(_) | Host::Gone if slot.dialled => {
                    slot.silent = if crowded { slot.silent.saturating_add(1) } else { 0 };
                    if slot.silent > SILENT_TICKS {
                        self.lose(handle, io::ErrorKind::TimedOut);
                    }
                }
                Host::Greeting(greeting) if greeting.deadline <= now => self.remove(handle),
                Host::Ringing(ringing) if ringing.deadline <= now => self.give_up(handle),
                Host::Greeting(_) | Host::Ringing(_) => waiting = true,
                Host::Stream(_) | Host::Power | Host::Gone => {}
            }
        }
        if let Some(door) = &mut self.door {
            door.closed = false;
        }
        if !waiting && self.timer.set(None).is_ok() {
            self.ticking = false;
        }
    }

    /// The guest did not answer in time.
    fn give_up(&mut self, handle: Handle) {
        if let Some(slot) = self.table.get_mut(handle)
            && slot.protocol.is_ringing()
            && let Some(key) = slot.key
        {
            // A guest that answers after all finds no connection.
            self.resets.push_back(slot.protocol.header(self.cid, key, Op::Rst, 0, 0));
        }
        self.retire(handle, io::ErrorKind::TimedOut);
    }

    /// So much of the guest's share is taken that silent connections must not stay for ever.
    pub(super) fn is_crowded(&self) -> bool {
        self.dialled > self.dialled_max / 2
    }

    pub(super) fn needs_ticks(&mut self) -> bool {
        std::mem::take(&mut self.waiting)
            || self.is_crowded()
            || self.door.as_ref().is_some_and(|door| door.closed)
    }

    /// A worker starts (again): time that passed while none ran does not count.
    pub(in crate::virtio::vsock) fn resume(&mut self) {
        let now = Instant::now();
        for handle in self.table.handles() {
            match self.table.get_mut(handle).map(|slot| &mut slot.host) {
                Some(Host::Greeting(greeting)) => greeting.deadline = now + CLIENT_TIMEOUT,
                Some(Host::Ringing(ringing)) => {
                    ringing.deadline = now.checked_add(ringing.timeout).unwrap_or(ringing.deadline);
                }
                _ => {}
            }
            self.touch(handle);
        }
        self.requests();
    }

    /// The driver was reset: its connections are no more. Listeners, the door and clients that have
    /// not finished their line stay.
    pub(in crate::virtio::vsock) fn reset(&mut self) {
        self.resets = VecDeque::new();
        for handle in self.table.handles() {
            let Some(slot) = self.table.get_mut(handle) else { continue };
            if matches!(slot.host, Host::Greeting(_)) {
                continue;
            }
            // What the streams still take of the guest's last words; no worker will bring more.
            slot.flush();
            slot.backlog = Backlog::default();
            self.retire(handle, io::ErrorKind::ConnectionReset);
        }
        self.turns.clear();
        if let Some(power) = &mut self.power {
            power.taken = false;
        }
    }
}
