//! The muxer's host side: descriptors that are ready, requests of the handle, time limits, and packets to the guest.

use super::*;
use crate::virtio::device::Registrar;
use crate::virtio::vsock::KEY_DOOR;

impl Muxer {
    // ---- to the guest ----

    /// There may be something to say to the guest.
    pub(in super::super) fn has_word(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Puts one packet into `chain`: RSTs first, then the connections in turn, one packet each.
    pub(in super::super) fn serve(&mut self, chain: &Chain, memory: &Memory) -> Result<Served, QueueFault> {
        let room = chain.writable_len().saturating_sub(HEADER_SIZE);
        if chain.writable_len() < HEADER_SIZE {
            self.fault();
            return Ok(Served::Written(0));
        }
        if let Some(header) = self.resets.pop_front() {
            if self.resets.is_empty() {
                self.resets = VecDeque::new();
            }
            chain.writer(memory).write_all(&header.encode())?;
            return Ok(Served::Written(HEADER_SIZE));
        }
        while let Some(handle) = self.turns.pop_front() {
            let Some(slot) = self.table.get_mut(handle) else { continue };
            slot.queued = false;
            let said = if slot.due() { say(slot, self.cid, chain, room, memory)? } else { None };
            // Back to the end of the line if there is more, and a look at what to wait for.
            self.touch(handle);
            if let Some(len) = said {
                return Ok(Served::Written(len));
            }
            if room == 0 && self.table.get(handle).is_some_and(Slot::due) {
                // Only payload waits, and this chain has room for none.
                self.fault();
                return Ok(Served::Written(0));
            }
        }
        Ok(Served::Unused)
    }

    // ---- from the host ----

    /// The descriptor behind `handle` is ready.
    pub(in super::super) fn ready(&mut self, handle: Handle, ready: Interest) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        match (&slot.host, slot.registered) {
            (Host::Greeting(_), _) => self.read_line(handle),
            (Host::Stream(_), Some(Interest::NONE)) => slot.hang_up(),
            (Host::Stream(_), Some(watched)) => {
                if watched.writable && ready.writable {
                    slot.flush();
                }
                slot.readable |= watched.readable && ready.readable;
            }
            _ => {}
        }
        self.touch(handle);
    }

    /// A listener's channel is ready.
    pub(in super::super) fn channel_ready(&mut self, key: u32) {
        self.listeners.ready(key);
    }

    /// Clients wait at the door.
    pub(in super::super) fn accept(&mut self) {
        for _ in 0..ACCEPTS_AT_ONCE {
            let Some(door) = &mut self.door else { return };
            if self.greetings >= GREETINGS_MAX || self.table.is_full() {
                door.closed = true;
                return;
            }
            let stream = match door.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Out of descriptors or memory (or the client is gone): the next tick or the next close opens the door again.
                    door.closed = true;
                    return;
                }
            };
            let greeting = Greeting::new(stream, Instant::now() + CLIENT_TIMEOUT);
            let protocol = Connection::dial(window(self.table.len()));
            let slot = Slot::new(None, protocol, Host::Greeting(Box::new(greeting)));
            if let Ok(handle) = self.table.insert(slot) {
                self.greetings += 1;
                // Most clients write their line at once.
                self.read_line(handle);
                self.touch(handle);
            }
        }
    }

    fn read_line(&mut self, handle: Handle) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        let Host::Greeting(greeting) = &mut slot.host else { return };
        match greeting.read() {
            Line::Partial => {}
            Line::Bad => self.remove(handle),
            Line::Connect(guest) => {
                let Host::Greeting(greeting) = std::mem::replace(&mut slot.host, Host::Gone) else { return };
                let caller = Caller::Client(greeting.stream);
                slot.host = Host::Ringing(Box::new(Ringing::new(caller, CLIENT_TIMEOUT, Instant::now())));
                self.greetings -= 1;
                if let Some(door) = &mut self.door {
                    door.closed = false;
                }
                self.bind(handle, guest);
            }
        }
    }

    fn bind(&mut self, handle: Handle, guest: u32) {
        let key = Key { guest, host: self.table.host_port(guest) };
        self.table.bind(key, handle);
        if let Some(slot) = self.table.get_mut(handle) {
            slot.key = Some(key);
        }
        self.touch(handle);
    }

    /// Does what was asked for by the handle.
    pub(in super::super) fn requests(&mut self) {
        while let Some(request) = self.inbox.next() {
            match request {
                Request::Connect { port, timeout, reply } => self.dial(port, timeout, reply),
                Request::Listen { port, channel } => self.listeners.open(port, channel),
                Request::Unlisten { port } => self.listeners.close(port),
            }
        }
    }

    fn dial(&mut self, port: u32, timeout: Duration, reply: Reply) {
        if self.table.is_full() {
            return reply.send(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        let ringing = Ringing::new(Caller::Handle(reply), timeout, Instant::now());
        let protocol = Connection::dial(window(self.table.len()));
        let slot = Slot::new(None, protocol, Host::Ringing(Box::new(ringing)));
        if let Ok(handle) = self.table.insert(slot) {
            self.bind(handle, port);
        }
    }

    /// Ends what took too long.
    pub(in super::super) fn tick(&mut self, now: Instant) {
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

    // ---- registrations ----

    /// Something about this entry changed: it gets a turn if it has something to say, and [`Self::sync`] looks at it.
    pub(super) fn touch(&mut self, handle: Handle) {
        let Some(slot) = self.table.get_mut(handle) else { return };
        if !slot.touched {
            slot.touched = true;
            self.touched.push(handle);
        }
        if !slot.queued && slot.due() {
            slot.queued = true;
            self.turns.push_back(handle);
            // Turns of connections that are gone go when they come up, or here when a guest that gives no room piles them up.
            if self.turns.len() > 2 * self.table.len() + 64 {
                let table = &self.table;
                self.turns.retain(|handle| table.get(*handle).is_some());
            }
        }
    }

    /// Brings the poller's registrations to what is wanted now. `true`: a connection was lost doing so, and there is a RST to serve.
    pub(in super::super) fn sync(&mut self, registrar: &mut Registrar<'_>) -> io::Result<bool> {
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

    /// The connection cannot go on: the poller takes no more, or others need its place.
    fn lose(&mut self, handle: Handle, why: io::ErrorKind) {
        if let Some(slot) = self.table.get_mut(handle) {
            slot.backlog = Backlog::default();
            if let Some(key) = slot.key {
                self.resets.push_back(slot.protocol.header(self.cid, key, Op::Rst, 0, 0));
            }
        }
        self.retire(handle, why);
    }

    /// So much of the guest's share is taken that silent connections must not stay for ever.
    fn is_crowded(&self) -> bool {
        self.dialled > self.dialled_max / 2
    }

    fn needs_ticks(&mut self) -> bool {
        std::mem::take(&mut self.waiting)
            || self.is_crowded()
            || self.door.as_ref().is_some_and(|door| door.closed)
    }

    /// The poller forgets everything: the worker is about to stop.
    pub(in super::super) fn suspend(&mut self, registrar: &mut Registrar<'_>) {
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

    /// A worker starts (again): time that passed while none ran does not count.
    pub(in super::super) fn resume(&mut self) {
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

    /// The driver was reset: its connections are no more. Listeners, the door and clients that have not finished their line stay.
    pub(in super::super) fn reset(&mut self) {
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

/// Puts one packet of `slot` into `chain`, whose payload has `room`; `None` if there was nothing to say after all.
fn say(
    slot: &mut Slot,
    cid: u64,
    chain: &Chain,
    room: u32,
    memory: &Memory,
) -> Result<Option<u32>, QueueFault> {
    let Some(key) = slot.key else { return Ok(None) };
    let most = room.min(PAYLOAD_MAX).min(slot.protocol.may_send());
    if slot.readable
        && most > 0
        && !slot.protocol.is_urgent()
        && let Host::Stream(stream) = &slot.host
    {
        let mut writer = chain.writer(memory);
        writer.skip(HEADER_SIZE);
        match writer.read_from(stream.as_fd(), most)? {
            Ok(0) => {
                slot.readable = false;
                slot.protocol.host_ended();
            }
            Ok(count) => {
                let count = u32::try_from(count).expect("at most what was asked for");
                slot.silent = 0;
                // A short read emptied the stream.
                slot.readable = count == most;
                slot.protocol.sent(count);
                let header = slot.protocol.header(cid, key, Op::Rw, 0, count);
                chain.writer(memory).write_all(&header.encode())?;
                return Ok(Some(HEADER_SIZE + count));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => slot.readable = false,
            // The other end closed with bytes unread.
            Err(_) => slot.hang_up(),
        }
    }
    let Some((op, flags)) = slot.protocol.next() else { return Ok(None) };
    let header = slot.protocol.header(cid, key, op, flags, 0);
    chain.writer(memory).write_all(&header.encode())?;
    Ok(Some(HEADER_SIZE))
}
