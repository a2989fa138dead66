//! The plumbing between a guest's console and whatever reads it: both ways, bounded, and never
//! waiting for either side.
//!
//! Output that nobody takes fills a buffer, then the guest waits (a serial port holds its
//! transmitter, a virtio console its queue). What a guest sends regardless is counted and announced
//! in the output: nothing is lost silently.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::assemble::SLOT_SERIAL;
use super::inspection::ConsoleState;
use super::mailbox::Bell;
use super::output::Output;
use super::watched::{Kind, Watched};
use crate::devices::last_words::{LastWords, Said};
use crate::devices::serial::{INPUT_CAPACITY, Line, Serial};
use crate::state::{Sections, StateError, Stateful};
use crate::sys::{self, Interest, Poller, Timer, lacks_memory};
use crate::virtio::device::Registrar;

/// Output that waits before the guest is held back, and what is kept for a stream that nobody has
/// asked for yet.
const SOFT_LIMIT: usize = 64 << 10;
/// Output of a guest that does not let itself be held back, before it is dropped and counted.
const HARD_LIMIT: usize = 128 << 10;
/// Bytes moved at once.
const CHUNK: usize = 4096;
/// Times that one turn moves output, and input. What is left then has another turn, after the loop
/// has looked at everything else: a guest and a reader that never stop do not keep the loop for
/// themselves.
const ROUNDS: usize = 4;

const KEY_INPUT: u32 = 0;
const KEY_OUTPUT: u32 = 1;
const KEY_NEAR: u32 = 2;
const KEY_AGAIN: u32 = 3;

/// After how long a call is made again for which the host had no memory.
const A_MOMENT: Duration = Duration::from_millis(20);

/// The serial port's end of the line, on vCPU threads.
pub(super) struct SerialLine(Arc<LineState>);

/// What a line and its pump share.
pub(super) struct LineState {
    output: Mutex<VecDeque<u8>>,
    /// Bytes that found no room.
    lost: AtomicU64,
    /// The guest saw a transmitter that holds, or wrote against it.
    held: AtomicBool,
    bell: Arc<Bell>,
    /// There is something for the pump.
    news: AtomicBool,
}

impl LineState {
    fn new(bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            output: Mutex::default(),
            lost: AtomicU64::new(0),
            held: AtomicBool::new(false),
            bell,
            news: AtomicBool::new(false),
        })
    }

    fn output(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        if !self.news.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
    }
}

impl Line for SerialLine {
    fn ready(&self) -> bool {
        let ready = self.0.output().len() < SOFT_LIMIT;
        if !ready {
            self.0.held.store(true, Ordering::Release);
        }
        ready
    }

    fn transmit(&mut self, byte: u8) {
        let mut output = self.0.output();
        if output.len() < HARD_LIMIT {
            output.push_back(byte);
        } else {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        drop(output);
        self.0.tell();
    }

    fn input_wanted(&mut self) {
        self.0.tell();
    }
}

/// The guest's side of a pump.
enum Near {
    Serial {
        line: Arc<LineState>,
        port: Option<Arc<Mutex<Serial<SerialLine>>>>,
    },
    /// The other end of the socket pair that a virtio console speaks through.
    Console(Watched),
}

/// The reader's side of a pump.
enum Far {
    /// Nobody, ever.
    Nobody,
    /// Nobody yet.
    Waiting,
    Open {
        input: Option<Watched>,
        output: Option<Output>,
        stream: bool,
    },
}

/// What a reader typed that is meant for the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PumpEvent {
    Nothing,
    /// Ctrl-A, then x.
    Quit,
    /// It took no more of the output, and the machine is not to go on without it: see
    /// [`Pump::lost`].
    Lost,
}

/// Why a reader took no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It left.
    Gone,
    /// The host failed; a sentence.
    Failed(String),
}

/// One console.
pub(super) struct Pump {
    slot: u16,
    near: Near,
    far: Far,
    /// From the guest, for the reader.
    output: VecDeque<u8>,
    /// From the reader, for a virtio console.
    input: VecDeque<u8>,
    words: LastWords,
    /// Ctrl-A is a prefix; `true` after it was typed.
    escape: Option<bool>,
    /// Bytes of the guest so far, and those of them that were dropped.
    taken_bytes: u64,
    lost_bytes: u64,
    /// The machine is there for its reader.
    needs_reader: bool,
    lost: Option<Lost>,
    /// The host had no memory for a call: a descriptor may be ready, and is not waited for.
    starved: bool,
    /// Ticks while that is so. Most machines never make one.
    again: Option<Timer>,
}

impl Pump {
    /// The pump of the serial port, and the line for it.
    pub(super) fn serial(slot: u16, bell: Arc<Bell>) -> (Self, SerialLine) {
        let line = LineState::new(bell);
        (Self::new(slot, Near::Serial { line: line.clone(), port: None }), SerialLine(line))
    }

    /// The pump of a virtio console, and the descriptor for it.
    pub(super) fn console(slot: u16) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = sys::stream_pair()?;
        sys::set_nonblocking(&ours)?;
        sys::set_nonblocking(&theirs)?;
        Ok((Self::new(slot, Near::Console(Watched::new(ours, Kind::Socket))), theirs))
    }

    fn new(slot: u16, near: Near) -> Self {
        Self {
            slot,
            near,
            far: Far::Nobody,
            output: VecDeque::new(),
            input: VecDeque::new(),
            words: LastWords::default(),
            escape: None,
            taken_bytes: 0,
            lost_bytes: 0,
            needs_reader: false,
            lost: None,
            starved: false,
            again: None,
        }
    }

    /// Its slot in the poller.
    pub(super) fn slot(&self) -> u16 {
        self.slot
    }

    /// Names the port that input goes to.
    pub(super) fn set_port(&mut self, serial: &Arc<Mutex<Serial<SerialLine>>>) {
        if let Near::Serial { port, .. } = &mut self.near {
            *port = Some(serial.clone());
        }
    }

    /// The port is no more; what it said can still be read.
    pub(super) fn unplug(&mut self) {
        if let Near::Serial { port, .. } = &mut self.near {
            *port = None;
        }
    }

    /// Keeps the latest output for a stream to come.
    pub(super) fn wait_for_stream(&mut self) {
        self.far = Far::Waiting;
    }

    /// Connects the descriptors of a reader. With `escape`, Ctrl-A is a prefix for the monitor.
    pub(super) fn open(&mut self, input: Option<OwnedFd>, output: Option<OwnedFd>, escape: bool) {
        self.escape = escape.then_some(false);
        let input = input.map(|fd| Watched::independent(fd, OFlags::RDONLY));
        let output = output.map(|fd| Output::Descriptor(Watched::independent(fd, OFlags::WRONLY)));
        self.far = Far::Open { input, output, stream: false };
    }

    /// The machine is not to go on when output can no longer be written to the reader.
    pub(super) fn need_reader(&mut self) {
        self.needs_reader = true;
    }

    /// Why output could not be written to the reader that the machine needs.
    pub(super) fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// Output goes to a log, and there is no input.
    pub(super) fn log(&mut self, output: Output) {
        self.far = Far::Open { input: None, output: Some(output), stream: false };
    }

    /// Gives the far side to whoever holds the other end of `stream`, in place of who had it
    /// before. `false`: this console has no stream.
    pub(super) fn attach(&mut self, poller: &Poller, stream: OwnedFd) -> io::Result<bool> {
        match &self.far {
            Far::Waiting => {}
            Far::Open { stream: true, .. } => self.forget_far(poller),
            Far::Nobody | Far::Open { .. } => return Ok(false),
        }
        sys::set_nonblocking(&stream)?;
        let second = stream.try_clone()?;
        self.far = Far::Open {
            input: Some(Watched::new(stream, Kind::Socket)),
            output: Some(Output::Descriptor(Watched::new(second, Kind::Socket))),
            stream: true,
        };
        Ok(true)
    }

    /// Takes over the reader of a console that is no more, and what it has not read yet. A pump of
    /// the same kind in the same machine, off every poller.
    pub(super) fn adopt(&mut self, old: Self) {
        self.far = old.far;
        self.output = old.output;
        self.escape = old.escape;
        self.needs_reader = old.needs_reader;
        self.lost = old.lost;
        self.taken_bytes = old.taken_bytes;
        self.lost_bytes = old.lost_bytes;
    }

    /// What it shows of itself.
    pub(super) fn inspect(&self) -> ConsoleState {
        let (port, held) = match &self.near {
            Near::Serial { line, .. } => ("serial", line.output().len()),
            Near::Console(_) => ("console", 0),
        };
        ConsoleState {
            port: port.to_owned(),
            output_bytes: self.taken_bytes,
            lost_bytes: self.lost_bytes,
            waiting_output_bytes: (self.output.len() + held) as u64,
            waiting_input_bytes: self.input.len() as u64,
        }
    }

    /// Adds what was heard of a kernel's last words, to which the rest may still come.
    pub(super) fn save_words(&self, state: &mut Sections) {
        self.words.save(self.words_name(), state);
    }

    /// Takes it back.
    pub(super) fn restore_words(&mut self, state: &mut Sections) -> Result<(), StateError> {
        let name = self.words_name();
        self.words.restore(name, state)
    }

    fn words_name(&self) -> &'static str {
        if self.slot == SLOT_SERIAL { "words.serial" } else { "words.console" }
    }

    /// Which of a kernel's last words went by.
    pub(super) fn said(&self) -> Said {
        self.words.said()
    }

    /// Moves what can be moved, and waits (in the poller) for what cannot. Called when anything
    /// about this console was ready.
    pub(super) fn turn(&mut self, poller: &Poller) -> PumpEvent {
        if let Near::Serial { line, .. } = &self.near {
            line.news.store(false, Ordering::Release);
        }
        self.starved = false;
        self.move_output();
        let event = self.move_input();
        if !self.starved {
            self.waits_no_more(poller);
        }
        self.watch(poller);
        if self.lost.is_some() { PumpEvent::Lost } else { event }
    }

    /// Whether the bell rang for this console.
    pub(super) fn has_news(&self) -> bool {
        matches!(&self.near, Near::Serial { line, .. } if line.news.load(Ordering::Acquire))
    }

    /// The machine continues after a pause, perhaps in another process than the one that saved
    /// it. A guest that waits for a serial port whose output was full then finds one that has
    /// room, and is told.
    pub(super) fn resumed(&self) {
        if let Near::Serial { line, port: Some(port) } = &self.near
            && line.output().len() < SOFT_LIMIT
        {
            port.lock().unwrap_or_else(PoisonError::into_inner).drained();
        }
    }

    /// Delivers the rest of the output, waiting at most `patience` for the reader.
    pub(super) fn finish(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        loop {
            self.starved = false;
            self.move_output();
            let Far::Open { output: Some(output), .. } = &self.far else { return };
            let rest = until.saturating_duration_since(Instant::now());
            if self.output.is_empty() || rest.is_zero() {
                return;
            }
            if self.starved {
                std::thread::sleep(rest.min(A_MOMENT));
            } else {
                output.wait_writable(rest);
            }
        }
    }

    fn move_output(&mut self) {
        let mut more = true;
        for _ in 0..ROUNDS {
            // What waits for a reader may have kept more from being taken; what is kept for a
            // reader to come keeps nothing.
            let backlog = matches!(self.far, Far::Open { .. }) && !self.output.is_empty();
            let taken = self.take_output();
            let given = self.give_output();
            more = given && (taken || backlog);
            if !more {
                break;
            }
        }
        if more && let Near::Serial { line, .. } = &self.near {
            // The descriptor of a virtio console is looked at again as long as it is readable.
            line.tell();
        }
        if let Near::Serial { line, port } = &self.near
            && line.output().len() < SOFT_LIMIT
            && line.held.swap(false, Ordering::AcqRel)
            && let Some(port) = port
        {
            port.lock().unwrap_or_else(PoisonError::into_inner).drained();
        }
    }

    /// Takes what the guest sent; `true` if it was something.
    fn take_output(&mut self) -> bool {
        let before = self.output.len();
        if before >= SOFT_LIMIT && !matches!(self.far, Far::Nobody | Far::Waiting) {
            return false;
        }
        match &mut self.near {
            Near::Serial { line, .. } => {
                let mut sent = line.output();
                let lost = line.lost.swap(0, Ordering::Relaxed);
                self.taken_bytes += sent.len() as u64 + lost;
                self.lost_bytes += lost;
                self.output.append(&mut sent);
                drop(sent);
                if lost > 0 {
                    self.output
                        .extend(format!("\r\n[nelly: {lost} bytes of this console were lost]\r\n").bytes());
                }
            }
            Near::Console(socket) => {
                let mut chunk = [0; CHUNK];
                match rustix::io::read(&socket.fd, &mut chunk) {
                    Ok(count) => {
                        self.taken_bytes += count as u64;
                        self.output.extend(&chunk[..count]);
                    }
                    Err(error) => self.starved |= lacks_memory(&error.into()),
                }
            }
        }
        if self.output.len() == before {
            return false;
        }
        let (front, back) = self.output.as_slices();
        let skip_back = before.saturating_sub(front.len());
        if before < front.len() {
            self.words.feed(&front[before..]);
        }
        self.words.feed(&back[skip_back..]);
        true
    }

    /// Gives the reader what it takes; `false` when it takes no more now.
    fn give_output(&mut self) -> bool {
        match &mut self.far {
            Far::Nobody | Far::Open { output: None, .. } => self.output.clear(),
            Far::Waiting => {
                let excess = self.output.len().saturating_sub(SOFT_LIMIT);
                self.output.drain(..excess);
                return true;
            }
            Far::Open { output: slot @ Some(_), stream, .. } => {
                let Some(output) = slot else { return true };
                while !self.output.is_empty() {
                    match output.write(self.output.as_slices().0) {
                        Ok(count) => drop(self.output.drain(..count)),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                        Err(error) if lacks_memory(&error) => {
                            self.starved = true;
                            return false;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        // The reader is gone. A stream may be asked for again; anything else stays
                        // silent.
                        Err(_) if *stream => {
                            self.far = Far::Waiting;
                            return true;
                        }
                        Err(error) => {
                            *slot = None;
                            if self.needs_reader {
                                self.lost = Some(match error.kind() {
                                    io::ErrorKind::BrokenPipe => Lost::Gone,
                                    _ => Lost::Failed(format!("cannot write the guest's console: {error}")),
                                });
                            }
                            return true;
                        }
                    }
                }
            }
        }
        true
    }

    fn move_input(&mut self) -> PumpEvent {
        let mut event = PumpEvent::Nothing;
        // What is left is readable, and has another turn.
        for _ in 0..ROUNDS {
            self.flush_input();
            let room = self.input_room();
            let Far::Open { input: slot @ Some(_), stream, .. } = &mut self.far else { return event };
            let Some(input) = slot else { return event };
            if room == 0 {
                return event;
            }
            let mut chunk = [0; CHUNK];
            match input.read(&mut chunk[..room.min(CHUNK)]) {
                Ok(0) if *stream => {
                    self.far = Far::Waiting;
                    return event;
                }
                Ok(0) => *slot = None,
                Ok(count) => {
                    for byte in &chunk[..count] {
                        event = self.typed(*byte, event);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return event,
                Err(error) if lacks_memory(&error) => {
                    self.starved = true;
                    return event;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => *slot = None,
            }
        }
        self.flush_input();
        event
    }

    /// One byte from the reader: for the guest, unless it follows the prefix.
    fn typed(&mut self, byte: u8, event: PumpEvent) -> PumpEvent {
        const PREFIX: u8 = 0x01;
        match (self.escape, byte) {
            (Some(false), PREFIX) => self.escape = Some(true),
            (Some(true), b'x' | b'X') => {
                self.escape = Some(false);
                return PumpEvent::Quit;
            }
            (Some(true), _) => {
                self.escape = Some(false);
                // Typed twice the prefix is itself.
                if byte != PREFIX {
                    self.input.push_back(PREFIX);
                }
                self.input.push_back(byte);
            }
            _ => self.input.push_back(byte),
        }
        event
    }

    fn input_room(&self) -> usize {
        INPUT_CAPACITY.saturating_sub(self.input.len())
    }

    /// Passes on what was typed as far as the guest takes it.
    fn flush_input(&mut self) {
        if self.input.is_empty() {
            return;
        }
        let bytes = self.input.make_contiguous();
        let count = match &self.near {
            Near::Serial { port: Some(port), .. } => {
                port.lock().unwrap_or_else(PoisonError::into_inner).receive(bytes)
            }
            Near::Serial { port: None, .. } => bytes.len(),
            Near::Console(socket) => rustix::io::write(&socket.fd, bytes).unwrap_or_else(|error| {
                self.starved |= lacks_memory(&error.into());
                0
            }),
        };
        self.input.drain(..count);
    }

    /// Says to the poller what this console waits for now.
    fn watch(&mut self, poller: &Poller) {
        let idle = self.starved && self.waits_a_moment(poller);
        let token = |key| Registrar::token(self.slot, key);
        let (room, pending) = (!idle && self.input_room() > 0, !idle && !self.output.is_empty());
        if let Far::Open { input, output, .. } = &mut self.far {
            if let Some(input) = input {
                input.watch(poller, token(KEY_INPUT), Interest { readable: room, writable: false });
            }
            if let Some(output) = output {
                output.watch(poller, token(KEY_OUTPUT), Interest { readable: false, writable: pending });
            }
        }
        if let Near::Console(socket) = &mut self.near {
            let interest = Interest {
                readable: !idle && self.output.len() < SOFT_LIMIT,
                writable: !idle && !self.input.is_empty(),
            };
            socket.watch(poller, token(KEY_NEAR), interest);
        }
    }

    /// Has the poller tell in a moment. `false` where the host has no memory even for that; then
    /// everything is tried again at once.
    fn waits_a_moment(&mut self, poller: &Poller) -> bool {
        if self.again.is_none() {
            let token = Registrar::token(self.slot, KEY_AGAIN);
            let made = Timer::new().and_then(|timer| {
                poller.add(timer.as_fd(), token, Interest::READ)?;
                Ok(timer)
            });
            self.again = made.ok();
        }
        self.again.as_ref().is_some_and(|timer| timer.set(Some(A_MOMENT)).is_ok())
    }

    fn waits_no_more(&mut self, poller: &Poller) {
        if let Some(timer) = self.again.take() {
            // It was added, and it is open.
            drop(poller.remove(timer.as_fd()));
        }
    }

    /// Takes everything off the poller.
    pub(super) fn forget(&mut self, poller: &Poller) {
        self.forget_far(poller);
        self.waits_no_more(poller);
        if let Near::Console(socket) = &mut self.near {
            socket.forget(poller);
        }
    }

    fn forget_far(&mut self, poller: &Poller) {
        let Far::Open { input, output, .. } = &mut self.far else { return };
        if let Some(input) = input {
            input.forget(poller);
        }
        if let Some(output) = output {
            output.forget(poller);
        }
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
