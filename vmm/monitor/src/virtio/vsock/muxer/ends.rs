//! Ends of connections, whoever brings them.

use std::io;

use super::Muxer;
use super::slot::Host;
use crate::sys::Interest;
use crate::virtio::vsock::backlog::Backlog;
use crate::virtio::vsock::packet::{Header, Op};
use crate::virtio::vsock::table::Handle;

impl Muxer {
    /// Answers RST to a packet, unless it is one.
    pub(super) fn answer_reset(&mut self, header: &Header) {
        if header.op != Op::Rst.raw() {
            self.resets.push_back(header.reset());
        }
    }

    /// Answers RST and forgets the connection.
    pub(super) fn abort(&mut self, handle: Handle, header: &Header) {
        self.answer_reset(header);
        self.retire(handle, io::ErrorKind::ConnectionRefused);
    }

    /// The protocol is done with a connection; what was received from the guest is still delivered.
    pub(super) fn retire(&mut self, handle: Handle, why: io::ErrorKind) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        if let Some(key) = slot.key.take() {
            self.table.unbind(key);
        }
        let Some(slot) = self.table.get_mut(handle) else { return };
        if matches!(slot.host, Host::Stream(_)) && !slot.backlog.is_empty() {
            return self.touch(handle);
        }
        if matches!(slot.host, Host::Ringing(_))
            && let Host::Ringing(ringing) = std::mem::replace(&mut slot.host, Host::Gone)
        {
            ringing.fail(why);
        }
        self.remove(handle);
    }

    /// Forgets an entry and closes what it holds.
    pub(super) fn remove(&mut self, handle: Handle) {
        let Some(slot) = self.table.remove(handle) else { return };
        if let Some(key) = slot.key {
            self.table.unbind(key);
        }
        self.dialled -= usize::from(slot.dialled);
        self.joined -= usize::from(slot.joined);
        self.bury(slot.host, slot.registered);
    }

    pub(super) fn bury(&mut self, host: Host, registered: Option<Interest>) {
        let stream = match host {
            Host::Greeting(greeting) => {
                self.greetings -= 1;
                Some(greeting.stream)
            }
            Host::Stream(stream) => Some(stream),
            Host::Ringing(_) | Host::Power | Host::Gone => None,
        };
        if registered.is_some() {
            self.buried.extend(stream);
        }
        // A descriptor or a place is free: whoever waits for one may come.
        if let Some(door) = &mut self.door {
            door.closed = false;
        }
    }

    /// The connection cannot go on: the poller takes no more, or others need its place.
    pub(super) fn lose(&mut self, handle: Handle, why: io::ErrorKind) {
        if let Some(slot) = self.table.get_mut(handle) {
            slot.backlog = Backlog::default();
            if let Some(key) = slot.key {
                self.resets.push_back(slot.protocol.header(self.cid, key, Op::Rst, 0, 0));
            }
        }
        self.retire(handle, why);
    }
}
