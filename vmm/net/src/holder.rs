//! The end of the control channel ([`crate::control`]) that whoever holds a machine has: it asks,
//! and waits for the answer, but never for long.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSlice};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use crate::config::Publish;
use crate::control::{Answer, Call, MAX_MESSAGE, MAX_PORTS, Outcome, PAGE, Port, Request, Traffic};
use crate::shell::Bound;
use crate::sys::{QUIET, message_pair};

/// How long an answer may take, if nobody says another time.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why what was asked is not done, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// The network refuses.
    #[error("{0}")]
    Refused(String),
    /// It has ended.
    #[error("the process of the network has ended")]
    Gone,
    /// It does not answer.
    #[error("the process of the network does not answer within {0:?}")]
    Silent(Duration),
    /// What it answers is none.
    #[error("the process of the network does not answer what it was asked: {0}")]
    Garbled(String),
    /// The system refuses something.
    #[error("cannot talk to the process of the network")]
    System(#[from] std::io::Error),
}

/// The holder's end.
#[derive(Debug)]
pub struct Holder {
    file: OwnedFd,
    /// How long an answer may take.
    patience: Duration,
    /// The id of the last request; one at a time.
    last: Mutex<u64>,
}

impl Holder {
    /// A pair: this end, and the one that the network gets.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn pair() -> std::io::Result<(Self, OwnedFd)> {
        let (file, other) = message_pair()?;
        Ok((Self { file, patience: PATIENCE, last: Mutex::default() }, other))
    }

    /// Answers may take this long, in the place of [`PATIENCE`].
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Has the network serve a port, whose socket is closed here: only the network has it then.
    ///
    /// # Errors
    /// See [`HolderError`].
    pub fn add(&self, bound: Bound) -> Result<(), HolderError> {
        self.done(Call::Add(bound.publish), Some(bound.file))
    }

    /// Has the network close the socket of a port. Connections go on.
    ///
    /// # Errors
    /// See [`HolderError`].
    pub fn remove(&self, publish: Publish) -> Result<(), HolderError> {
        self.done(Call::Remove(publish), None)
    }

    /// The ports, and what was counted.
    ///
    /// # Errors
    /// See [`HolderError`].
    pub fn list(&self) -> Result<(Vec<Port>, Traffic), HolderError> {
        let (mut ports, mut from) = (Vec::new(), 0);
        let until = Instant::now() + self.patience;
        // It may lie about what follows.
        for _ in 0..=MAX_PORTS / PAGE {
            let page = match self.ask(Call::List(from), None, until)? {
                Outcome::Page(page) => page,
                other => return Err(unexpected(other)),
            };
            ports.extend(page.ports);
            match page.next {
                Some(next) if next > from => from = next,
                Some(_) => return Err(HolderError::Garbled("its list does not end".to_owned())),
                None => return Ok((ports, page.traffic)),
            }
        }
        Err(HolderError::Garbled("its list does not end".to_owned()))
    }

    fn done(&self, call: Call, socket: Option<OwnedFd>) -> Result<(), HolderError> {
        match self.ask(call, socket, Instant::now() + self.patience)? {
            Outcome::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&self, call: Call, socket: Option<OwnedFd>, until: Instant) -> Result<Outcome, HolderError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        self.say(&Request { id: *last, call }.to_bytes(), socket, until)?;
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        loop {
            self.wait(PollFlags::IN, until)?;
            let len = match recv(&self.file, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(HolderError::Gone),
                Ok((len, _)) => len,
                Err(error) => {
                    again(error)?;
                    continue;
                }
            };
            let answer = Answer::parse(&buffer[..len]).map_err(HolderError::Garbled)?;
            // Another is that of a request that was given up.
            if answer.id == *last {
                return Ok(answer.outcome);
            }
        }
    }

    fn say(&self, message: &[u8], socket: Option<OwnedFd>, until: Instant) -> Result<(), HolderError> {
        let sockets: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut goes = SendAncillaryBuffer::new(&mut space);
            if !sockets.is_empty() && !goes.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(HolderError::Garbled("there is no room for a descriptor".to_owned()));
            }
            let flags = QUIET | SendFlags::DONTWAIT;
            match sendmsg(&self.file, &[IoSlice::new(message)], &mut goes, flags) {
                Ok(_) => return Ok(()),
                Err(error) => again(error)?,
            }
            self.wait(PollFlags::OUT, until)?;
        }
    }

    fn wait(&self, what: PollFlags, until: Instant) -> Result<(), HolderError> {
        // Also where it says something all the time.
        let silent = || HolderError::Silent(self.patience);
        let left = until.checked_duration_since(Instant::now()).ok_or_else(silent)?;
        let left = Timespec::try_from(left).map_err(|_| silent())?;
        match poll(&mut [PollFd::new(&self.file, what)], Some(&left)) {
            Ok(0) => Err(silent()),
            Ok(_) => Ok(()),
            Err(error) => again(error),
        }
    }
}

/// Whether an error means that it is tried again.
fn again(error: Errno) -> Result<(), HolderError> {
    match error {
        Errno::AGAIN | Errno::INTR => Ok(()),
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Err(HolderError::Gone),
        error => Err(HolderError::System(error.into())),
    }
}

fn unexpected(outcome: Outcome) -> HolderError {
    match outcome {
        Outcome::Refused(why) => HolderError::Refused(why),
        other => HolderError::Garbled(format!("{other:?}").chars().take(80).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Page;
    use rustix::net::send;

    /// What answers in the place of the network, each request by these messages.
    fn answers(other: OwnedFd, with: impl Fn(Request) -> Vec<Vec<u8>> + Send + 'static) {
        std::thread::spawn(move || {
            let mut buffer = vec![0; MAX_MESSAGE];
            while let Ok((len @ 1.., _)) = recv(&other, &mut *buffer, RecvFlags::empty()) {
                for message in with(Request::parse(&buffer[..len]).unwrap()) {
                    let _gone = send(&other, &message, QUIET);
                }
            }
        });
    }

    fn quick() -> (Holder, OwnedFd) {
        let (holder, other) = Holder::pair().unwrap();
        (holder.with_patience(Duration::from_millis(20)), other)
    }

    fn publish() -> Publish {
        "8080:80".parse().unwrap()
    }

    #[test]
    fn an_answer_of_another_request_is_passed_by() {
        let (holder, other) = Holder::pair().unwrap();
        answers(other, |request| {
            let late = Answer { id: request.id - 1, outcome: Outcome::Refused("late".to_owned()) };
            let own = Answer { id: request.id, outcome: Outcome::Done };
            vec![late.to_bytes(), own.to_bytes()]
        });
        holder.remove(publish()).unwrap();
        holder.remove(publish()).unwrap();
        assert!(matches!(holder.list(), Err(HolderError::Garbled(_))));
    }

    #[test]
    fn a_list_has_parts_and_an_end() {
        let (holder, other) = Holder::pair().unwrap();
        answers(other, |request| {
            let Call::List(from) = request.call else { panic!("a list") };
            let port = Port { publish: publish(), connections: from.into(), refused: 0 };
            let next = (from < 128).then_some(from + 64);
            let traffic = Traffic { denied: from.into(), ..Traffic::default() };
            let page = Page { ports: vec![port; PAGE], next, traffic };
            vec![Answer { id: request.id, outcome: Outcome::Page(page) }.to_bytes()]
        });
        let (ports, traffic) = holder.list().unwrap();
        assert_eq!((ports.len(), ports[191].connections, traffic.denied), (192, 128, 128));

        for step in [0, 1] {
            let (holder, other) = Holder::pair().unwrap();
            answers(other, move |request| {
                let Call::List(from) = request.call else { panic!("a list") };
                let page = Page { next: Some(from + step), ..Page::default() };
                vec![Answer { id: request.id, outcome: Outcome::Page(page) }.to_bytes()]
            });
            assert!(matches!(holder.list(), Err(HolderError::Garbled(_))));
        }
    }

    #[test]
    fn nonsense_and_an_end_are_told() {
        let (holder, other) = Holder::pair().unwrap();
        answers(other, |_| vec![vec![b'['; MAX_MESSAGE]]);
        assert!(matches!(holder.remove(publish()), Err(HolderError::Garbled(_))));
        let (holder, other) = Holder::pair().unwrap();
        drop(other);
        assert!(matches!(holder.remove(publish()), Err(HolderError::Gone)));
    }

    #[test]
    fn one_that_does_not_answer_is_given_up() {
        let (holder, _other) = quick();
        let error = holder.remove(publish()).unwrap_err();
        assert!(
            matches!(error, HolderError::Silent(_)) && error.to_string().ends_with("within 20ms"),
            "{error}"
        );
    }

    #[test]
    fn one_that_says_other_things_all_the_time_is_given_up() {
        let (holder, other) = quick();
        let flood = std::thread::spawn(move || {
            let other_request = Answer { id: u64::MAX, outcome: Outcome::Done }.to_bytes();
            while send(&other, &other_request, QUIET).is_ok() {}
        });
        assert!(matches!(holder.remove(publish()), Err(HolderError::Silent(_))));
        drop(holder);
        flood.join().unwrap();
    }

    #[test]
    fn one_that_takes_nothing_is_given_up() {
        let (holder, _other) = quick();
        // As many requests as fit, and one more: it waits for room no longer than for an answer.
        let request = Request { id: 0, call: Call::List(0) }.to_bytes();
        while send(&holder.file, &request, SendFlags::DONTWAIT).is_ok() {}
        assert!(matches!(holder.remove(publish()), Err(HolderError::Silent(_))));
    }
}
