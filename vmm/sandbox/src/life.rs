//! The life of one container in the foreground: what reaches it from outside, and its exit.
//!
//! A guest that stopped answering must not keep whoever runs it: what is asked of the guest is
//! asked beside the wait for a wish to end, never before it. Nothing here knows a machine: a life
//! that was left says with which exit, and its caller ends the machine.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use nelly_image::Config;
use nelly_protocol::messages::WaitResponse;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use crate::agent::{Agent, AgentError, ProcessId};
use crate::state::outcome::{self, Exit};

/// How long an agent may take to say that it passed on a signal that asks for an end. One that
/// takes longer has stopped answering, and the machine is ended within a second of the wish.
const ANSWER: Duration = Duration::from_millis(900);

// A machine whose guest does not answer is given up within a second.
const _: () = assert!(ANSWER.as_millis() < 1000);

/// How long a program may go on after its terminal hung up.
pub const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// A signal of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(u8);

impl Signal {
    /// The terminal hung up.
    pub const HUP: Self = Self(1);
    /// Ctrl-C.
    pub const INT: Self = Self(2);
    /// Ctrl-\.
    pub const QUIT: Self = Self(3);
    /// An end that no process can refuse.
    pub const KILL: Self = Self(9);
    /// For the program's own use.
    pub const USR1: Self = Self(10);
    /// For the program's own use.
    pub const USR2: Self = Self(12);
    /// An end, in order.
    pub const TERM: Self = Self(15);

    /// By its number, 1 to 64.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (1..=64).contains(&number).then_some(Self(number))
    }

    /// What an image asks to be stopped with; SIGTERM, if it asks for nothing or for what is none.
    #[must_use]
    pub fn stops(image: &Config) -> Self {
        image.stop_signal().as_deref().and_then(|text| text.parse().ok()).unwrap_or(Self::TERM)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The exit code of what it ended.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        128 + self.0
    }
}

/// Names of the signals 1 to 31, in order.
const SIGNAL_NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A text that is no signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no signal: use a name such as TERM or SIGTERM, RTMIN+N, or a number from 1 to 64")]
pub struct SignalError(String);

impl std::str::FromStr for Signal {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Self, SignalError> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        let real_time = |offset: &str, least: u8| offset.parse::<u8>().ok()?.checked_add(least);
        let number = match SIGNAL_NAMES.iter().position(|known| *known == name) {
            Some(index) => u8::try_from(index + 1).ok(),
            None => match (name, name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
                ("RTMIN", ..) => Some(34),
                ("RTMAX", ..) => Some(64),
                (_, Some(offset), _) => real_time(offset, 34),
                (_, _, Some(offset)) => {
                    offset.parse::<u8>().ok().and_then(|offset| 64_u8.checked_sub(offset))
                }
                _ => text.parse().ok(),
            },
        };
        number.and_then(Self::new).ok_or_else(|| SignalError(text.to_owned()))
    }
}

/// What reaches a process from outside while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessRequest {
    /// A signal for the process.
    Signal(Signal),
    /// The terminal hung up: SIGHUP for the process, and after [`HANG_UP_GRACE`] the end.
    HangUp,
    /// The terminal's new size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// End now; the exit is 128 + this signal.
    Kill(Signal),
}

/// A moment at which a life is left, and the exit it then has.
#[derive(Clone, Copy, Debug)]
struct End {
    at: Instant,
    exit: Exit,
}

/// Whoever runs a container: its requests, and the end of its patience. One value for a whole life,
/// from before the machine's start.
#[derive(Debug)]
pub struct Outside {
    requests: UnboundedReceiver<ProcessRequest>,
    /// Nobody asks any more.
    closed: bool,
    limit: Option<End>,
    hung_up: Option<End>,
}

impl Outside {
    /// With what comes through `requests`, and a limit of time that begins now.
    #[must_use]
    pub fn new(requests: UnboundedReceiver<ProcessRequest>, limit: Option<Duration>) -> Self {
        let exit = Exit { code: outcome::TIMED_OUT, reason: "timeout" };
        let limit = limit.map(|limit| End { at: Instant::now() + limit, exit });
        Self { requests, closed: false, limit, hung_up: None }
    }

    /// What has not come yet, for another who takes it over.
    #[must_use]
    pub fn into_requests(self) -> UnboundedReceiver<ProcessRequest> {
        self.requests
    }

    /// Does `work` that no process runs beside: whatever asks for an end, ends it. `work` is
    /// dropped then.
    ///
    /// # Errors
    /// The end was asked for, or time was over.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Exit> {
        let mut work = pin!(work);
        loop {
            let ends = self.ends(None);
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                exit = at(ends) => return Err(exit),
                request = self.next() => match request {
                    ProcessRequest::Signal(signal) | ProcessRequest::Kill(signal) => return Err(by(signal, "killed")),
                    ProcessRequest::HangUp => return Err(by(Signal::HUP, "hung_up")),
                    ProcessRequest::Resize { .. } => {}
                },
            }
        }
    }

    /// Waits for a process's end, and passes on what comes for it meanwhile. The machine may live
    /// on: where the exit is not the process's own ([`Ended::Left`]) it is the caller's to end.
    ///
    /// # Errors
    /// The agent's connection broke, which is how a machine that ends looks from here.
    pub async fn attend(&mut self, agent: &Agent, id: ProcessId<'_>) -> Result<Ended, AgentError> {
        let mut wait = pin!(agent.wait(id));
        let mut waiting = Waiting::default();
        let mut sending = None;
        // Until when an asked-for end must have been passed on.
        let mut unanswered: Option<End> = None;
        loop {
            if sending.is_none() {
                sending = waiting.take().map(|word| Box::pin(send(agent, id, word)));
            }
            let ends = self.ends(unanswered);
            let sent = async {
                match &mut sending {
                    Some(sending) => sending.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                done = &mut wait => return Ok(Ended::Exited(exit_of(&done?))),
                exit = at(ends) => return Ok(Ended::Left(exit)),
                request = self.next() => {
                    let asks = match request {
                        ProcessRequest::Kill(signal) => return Ok(Ended::Left(by(signal, "killed"))),
                        ProcessRequest::HangUp => {
                            let end = End { at: Instant::now() + HANG_UP_GRACE, exit: by(Signal::HUP, "hung_up") };
                            self.hung_up.get_or_insert(end);
                            waiting.add(Instruction::Signal(Signal::HUP));
                            Some(by(Signal::HUP, "hung_up"))
                        }
                        ProcessRequest::Signal(signal) => {
                            waiting.add(Instruction::Signal(signal));
                            (signal == Signal::TERM).then(|| by(signal, "killed"))
                        }
                        ProcessRequest::Resize { rows, columns } => {
                            waiting.add(Instruction::Resize { rows, columns });
                            None
                        }
                    };
                    if let Some(exit) = asks {
                        unanswered.get_or_insert(End { at: Instant::now() + ANSWER, exit });
                    }
                }
                () = sent => {
                    sending = None;
                    if !waiting.asks_for_the_end() {
                        unanswered = None;
                    }
                }
            }
        }
    }

    /// The next request; waits for ever after the last.
    async fn next(&mut self) -> ProcessRequest {
        if !self.closed {
            match self.requests.recv().await {
                Some(request) => return request,
                None => self.closed = true,
            }
        }
        std::future::pending().await
    }

    /// The first of the moments at which this ends.
    fn ends(&self, unanswered: Option<End>) -> Option<End> {
        [self.limit, self.hung_up, unanswered].into_iter().flatten().min_by_key(|end| end.at)
    }
}

/// How a process's life was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The process ended.
    Exited(Exit),
    /// It may still run: its time was over, or somebody wanted the end.
    Left(Exit),
}

async fn at(end: Option<End>) -> Exit {
    match end {
        Some(end) => {
            sleep_until(end.at).await;
            end.exit
        }
        None => std::future::pending().await,
    }
}

fn by(signal: Signal, reason: &'static str) -> Exit {
    Exit { code: signal.exit_code(), reason }
}

/// How a process ended, as the agent tells it.
#[must_use]
pub fn exit_of(done: &WaitResponse) -> Exit {
    let reason = match (done.oom_killed, done.signal) {
        (true, _) => "oom_killed",
        (false, 0) => "exited",
        (false, _) => "signaled",
    };
    // As wait(2) has it: the low byte.
    let [code, ..] = done.exit_code.to_le_bytes();
    Exit { code, reason }
}

/// What a process can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    Signal(Signal),
    Resize { rows: u16, columns: u16 },
}

/// Passes one word on. A process that has just ended cannot be told: its exit is on the way.
async fn send(agent: &Agent, id: ProcessId<'_>, word: Instruction) {
    let _told = match word {
        Instruction::Signal(signal) => agent.signal(id, signal.number().into()).await,
        Instruction::Resize { rows, columns } => agent.resize(id, rows, columns).await,
    };
}

/// What waits to be passed on, in order, each once: as with a process's own pending signals, a
/// second of a kind says nothing new, and the latest size counts.
#[derive(Debug, Default)]
struct Waiting(VecDeque<Instruction>);

impl Waiting {
    fn add(&mut self, word: Instruction) {
        if let Instruction::Resize { .. } = word {
            self.0.retain(|other| !matches!(other, Instruction::Resize { .. }));
        }
        if !self.0.contains(&word) {
            self.0.push_back(word);
        }
    }

    fn take(&mut self) -> Option<Instruction> {
        self.0.pop_front()
    }

    fn asks_for_the_end(&self) -> bool {
        self.0.iter().any(|word| matches!(word, Instruction::Signal(Signal::TERM | Signal::HUP)))
    }
}

#[cfg(test)]
pub(crate) mod stages;
#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
