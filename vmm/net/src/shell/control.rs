//! What whoever holds the machine asks while the network runs: ports come and go, and what was
//! counted is told.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, IoSliceMut};
use rustix::net::{self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg};

use super::bind::Bound;
use super::listen::Listener;
use super::socket::internet;
use super::{CONTROL, Error, Shell};
use crate::config::Publish;
use crate::control::{Answer, Call, MAX_MESSAGE, MAX_PORTS, Outcome, Page, Request};
use crate::core::Time;
use crate::number::{index, len32};

/// Requests that are taken before others have their turn.
const TURN: usize = 16;
/// Descriptors that may come with a request; a second one is closed.
const MOST: usize = 2;

/// The holder's socket.
#[derive(Debug)]
pub(super) struct Control {
    file: OwnedFd,
    /// There may be something to read.
    pub(super) readable: bool,
    /// An answer that the socket did not take.
    unsaid: Option<Vec<u8>>,
}

/// A request, and the sockets that came with it.
type Heard = (Vec<u8>, Vec<OwnedFd>);

impl Control {
    /// The next request; `None`: the holder is gone, or has gone wrong.
    fn hear(&self) -> Result<Option<Heard>, Errno> {
        // One byte of slack, so that a longer message shows.
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut came = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = crate::sys::CLOSE_ON_EXEC | RecvFlags::DONTWAIT;
        let len = recvmsg(&self.file, &mut parts, &mut came, flags)?.bytes;
        let mut sockets = Vec::new();
        for message in came.drain() {
            if let RecvAncillaryMessage::ScmRights(all) = message {
                sockets.extend(all);
            }
        }
        buffer.truncate(len);
        Ok((len > 0).then_some((buffer, sockets)))
    }

    /// Says the answer that waits. `false`: it waits still, or the holder is gone.
    fn says(&mut self) -> Result<bool, Errno> {
        let Some(answer) = &self.unsaid else { return Ok(true) };
        match net::send(&self.file, answer, crate::sys::QUIET | SendFlags::DONTWAIT) {
            Ok(_) => self.unsaid = None,
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

impl Shell {
    /// Hears whoever holds the machine on a message socket ([`crate::control`]).
    ///
    /// # Errors
    /// The system cannot wait for it.
    pub fn obey(&mut self, file: OwnedFd) -> Result<(), Error> {
        self.poller.add(&file, CONTROL).map_err(|e| Error::System("wait for the holder", e))?;
        self.control = Some(Control { file, readable: true, unsaid: None });
        Ok(())
    }

    /// Takes some requests. A holder that is gone is none to wait for: the link tells of the
    /// machine's end.
    pub(super) fn take_requests(&mut self) {
        let Some(mut control) = self.control.take() else { return };
        for _ in 0..TURN {
            match control.says() {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => return,
            }
            if !control.readable {
                break;
            }
            match control.hear() {
                Ok(Some((message, sockets))) => control.unsaid = Some(self.answer(&message, sockets)),
                Err(Errno::AGAIN) => control.readable = false,
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
        self.control = Some(control);
    }

    /// Whether a request can be taken at once.
    pub(super) fn has_requests(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.readable && control.unsaid.is_none())
    }

    fn answer(&mut self, message: &[u8], sockets: Vec<OwnedFd>) -> Vec<u8> {
        let (id, outcome) = match Request::parse(message) {
            // It has no id that could be told.
            Err(why) => (0, Outcome::Refused(format!("this is no request: {why}"))),
            Ok(Request { id, call }) => {
                let done = |done: Result<(), String>| done.map_or_else(Outcome::Refused, |()| Outcome::Done);
                let outcome = match call {
                    Call::Add(publish) => done(self.add_port(publish, sockets)),
                    Call::Remove(publish) => done(self.remove_port(publish)),
                    Call::List(from) => Outcome::Page(Page {
                        traffic: self.net.counters().traffic(),
                        ..self.listeners.page(index(from))
                    }),
                };
                (id, outcome)
            }
        };
        Answer { id, outcome }.to_bytes()
    }

    fn add_port(&mut self, publish: Publish, sockets: Vec<OwnedFd>) -> Result<(), String> {
        let [file] = <[OwnedFd; 1]>::try_from(sockets)
            .map_err(|sockets| format!("{} sockets came with {publish}, not one", sockets.len()))?;
        let bound: Option<SocketAddr> = net::getsockname(&file).ok().and_then(internet);
        if bound != Some(publish.bind) {
            return Err(format!("the socket that came with {publish} is bound elsewhere"));
        }
        if let Some((_, other)) = self.listeners.find(&publish) {
            return Err(format!("{other} is published already"));
        }
        let place = self.listeners.add(Listener::new(Bound { file, publish }));
        let place = place.ok_or_else(|| format!("{MAX_PORTS} ports are published already"))?;
        if let Err(error) = self.poller.add(self.listeners[place].file(), super::token(place)) {
            drop(self.listeners.remove(place));
            return Err(format!("cannot wait for {publish}: {error}"));
        }
        Ok(())
    }

    fn remove_port(&mut self, publish: Publish) -> Result<(), String> {
        let place = match self.listeners.find(&publish) {
            Some((place, found)) if found == publish => place,
            Some((_, found)) => return Err(format!("it is {found} that is published")),
            None => return Err(format!("{publish} is not published")),
        };
        let now = self.now();
        for flow in self.listeners[place].flows() {
            self.net.broken(flow);
        }
        // Its peers are forgotten before others have its place.
        self.act(now);
        drop(self.listeners.remove(place));
        Ok(())
    }

    /// Hears those who call a published port and were not heard in their turn.
    pub(super) fn hear_callers(&mut self, now: Time) {
        for place in 0..self.listeners.places() {
            if self.listeners.has(place) && self.listeners[place].due().is_some_and(|time| time <= now) {
                self.listen(place);
            }
        }
    }

    /// Whether a token is that of a published port, and its place.
    pub(super) fn called(&self, token: u64) -> Option<usize> {
        let place = super::LISTENER.checked_sub(token)?;
        (place < len32(self.listeners.places()).into())
            .then(|| index(crate::number::fits(place, "it is below the number of ports")))
    }
}
