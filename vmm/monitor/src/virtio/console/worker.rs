//! The console's worker: what waits for what.
//!
//! Input is watched only while the guest has room for it, output only while it is full; so a
//! level-triggered poller never spins. Where the host has no memory for a call, a stream may be
//! ready all the while, and the call is made again after a moment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::{Ends, Idle, Progress};
use crate::memory::Memory;
use crate::sys::{Interest, Timer, lacks_memory};
use crate::virtio::device::{DeviceFault, Registrar, Returned, Worker};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Chain, Queue};

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;
const AGAIN: u32 = 4;

/// After how long a call is made again for which the host had no memory.
const A_MOMENT: Duration = Duration::from_millis(20);

/// Chains of one direction that one event moves at most: the loop has other devices.
const ROUND: u32 = 64;

pub(super) struct ConsoleWorker {
    receive: Queue,
    transmit: Queue,
    memory: Memory,
    interrupt: Interrupt,
    input: Option<Stream>,
    output: Option<Stream>,
    /// The chain that output was too full for.
    waiting: Option<Chain>,
    progress: Progress,
    /// Ticks while something is to be tried again. It is there before, for then there may be no
    /// memory for it.
    timer: Timer,
}

/// A descriptor and whether the poller has it.
struct Stream {
    fd: OwnedFd,
    watched: bool,
    /// A regular file: always ready, and nothing a poller takes.
    always: bool,
    /// Not found to be something else: sending to a peer that is gone raises no signal, writing
    /// does.
    socket: bool,
}

impl Stream {
    fn new(fd: OwnedFd) -> Self {
        Self { fd, watched: false, always: false, socket: true }
    }

    /// Has the poller tell when it is ready. Where that cannot be, the timer ticks.
    fn watch(
        &mut self,
        key: u32,
        interest: Interest,
        timer: &Timer,
        registrar: &mut Registrar<'_>,
    ) -> io::Result<()> {
        if !self.watched && !self.always {
            match registrar.add(self.fd.as_fd(), key, interest) {
                Ok(()) => self.watched = true,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.always = true,
                // The system has no memory for it, or lets this user watch no more.
                Err(error) if lacks_memory(&error) || error.kind() == io::ErrorKind::StorageFull => {}
                Err(error) => return Err(error),
            }
        }
        if self.watched { Ok(()) } else { timer.set(Some(A_MOMENT)) }
    }

    fn ignore(&mut self, registrar: &mut Registrar<'_>) {
        if std::mem::take(&mut self.watched) {
            // It was added, and it is open.
            let _ = registrar.remove(self.fd.as_fd());
        }
    }
}

/// What became of a chain that was offered to a stream.
enum Moved {
    /// This many bytes; it is done.
    All(u32),
    /// The stream takes or has nothing now.
    Blocked,
    /// The host has no memory for it now; the stream may be ready.
    Starved,
    /// The stream is at its end.
    Ended,
}

impl ConsoleWorker {
    pub(super) fn new(
        idle: Idle,
        receive: Queue,
        transmit: Queue,
        memory: Memory,
        interrupt: Interrupt,
        timer: Timer,
    ) -> Self {
        let Idle { ends: Ends { input, output }, progress } = idle;
        Self {
            receive,
            transmit,
            memory,
            interrupt,
            input: input.map(Stream::new),
            output: output.map(Stream::new),
            waiting: None,
            progress,
            timer,
        }
    }

    /// Moves input into the guest's buffers, as far as both reach; what arrived is published as one
    /// batch.
    fn receive(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let received = self.receive_round(registrar);
        self.receive.signal(&self.memory, &self.interrupt)?;
        // The round is full and both sides may have more; without input nobody needs to look.
        if received? && self.input.is_some() { Ok(self.receive.doorbell().notify()?) } else { Ok(()) }
    }

    /// Whether more may wait.
    fn receive_round(&mut self, registrar: &mut Registrar<'_>) -> Result<bool, DeviceFault> {
        self.receive.disable_notifications(&self.memory)?;
        for _ in 0..ROUND {
            let Some(input) = &mut self.input else { break };
            let Some(chain) = self.receive.pop(&self.memory)? else {
                input.ignore(registrar);
                if self.receive.enable_notifications(&self.memory)? {
                    continue;
                }
                return Ok(false);
            };
            match read(input, &self.memory, &chain)? {
                Moved::All(bytes) => self.receive.push_used(&self.memory, &chain, bytes)?,
                Moved::Blocked => {
                    self.receive.unpop(chain);
                    input.watch(INPUT, Interest::READ, &self.timer, registrar)?;
                    return Ok(false);
                }
                Moved::Starved => {
                    self.receive.unpop(chain);
                    input.ignore(registrar);
                    self.timer.set(Some(A_MOMENT))?;
                    return Ok(false);
                }
                Moved::Ended => {
                    self.receive.unpop(chain);
                    input.ignore(registrar);
                    self.input = None;
                }
            }
        }
        Ok(true)
    }

    /// Moves the guest's output on, as far as the stream takes it; what was taken is published as
    /// one batch.
    fn transmit(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        let transmitted = self.transmit_round(registrar);
        self.transmit.signal(&self.memory, &self.interrupt)?;
        if transmitted? { Ok(self.transmit.doorbell().notify()?) } else { Ok(()) }
    }

    /// Whether more may wait.
    fn transmit_round(&mut self, registrar: &mut Registrar<'_>) -> Result<bool, DeviceFault> {
        self.transmit.disable_notifications(&self.memory)?;
        for _ in 0..ROUND {
            let next = match self.waiting.take() {
                Some(chain) => Some(chain),
                None => self.transmit.pop(&self.memory)?,
            };
            let Some(chain) = next else {
                // The driver may wait for what it has sent, and ring for no more before it has it.
                self.transmit.signal(&self.memory, &self.interrupt)?;
                if self.transmit.enable_notifications(&self.memory)? {
                    continue;
                }
                return Ok(false);
            };
            let moved = match &mut self.output {
                Some(output) => write(output, &self.memory, &chain, &mut self.progress)?,
                None => Moved::All(0),
            };
            match moved {
                Moved::All(_) => {
                    self.progress = Progress::default();
                    self.transmit.push_used(&self.memory, &chain, 0)?;
                }
                Moved::Blocked => {
                    self.waiting = Some(chain);
                    if let Some(output) = &mut self.output {
                        output.watch(OUTPUT, Interest::WRITE, &self.timer, registrar)?;
                    }
                    return Ok(false);
                }
                Moved::Starved => {
                    self.waiting = Some(chain);
                    if let Some(output) = &mut self.output {
                        output.ignore(registrar);
                    }
                    self.timer.set(Some(A_MOMENT))?;
                    return Ok(false);
                }
                Moved::Ended => {
                    self.waiting = Some(chain);
                    if let Some(mut output) = self.output.take() {
                        output.ignore(registrar);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Fills a chain from the input once.
fn read(input: &Stream, memory: &Memory, chain: &Chain) -> Result<Moved, DeviceFault> {
    let mut writer = chain.writer(memory);
    let room = writer.left();
    if room == 0 {
        return Ok(Moved::All(0));
    }
    Ok(match writer.read_from(input.fd.as_fd(), room)? {
        Ok(0) => Moved::Ended,
        Ok(_) => Moved::All(writer.written()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Moved::Blocked,
        Err(error) if lacks_memory(&error) => Moved::Starved,
        // A terminal that hung up, a peer that reset: nothing will come any more.
        Err(_) => Moved::Ended,
    })
}

/// Passes on what a chain holds behind `progress`.
fn write(
    output: &mut Stream,
    memory: &Memory,
    chain: &Chain,
    progress: &mut Progress,
) -> Result<Moved, DeviceFault> {
    let mut reader = chain.reader(memory);
    reader.skip(progress.sent);
    while reader.left() > 0 {
        let left = reader.left();
        let sent = if output.socket {
            reader.send_to(output.fd.as_fd(), left)?
        } else {
            reader.write_to(output.fd.as_fd(), left)?
        };
        match sent {
            Err(error) if output.socket && Errno::from_io_error(&error) == Some(Errno::NOTSOCK) => {
                output.socket = false;
            }
            Ok(0) => return Ok(Moved::Ended),
            Ok(_) => progress.sent = chain.readable_len() - reader.left(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Moved::Blocked),
            Err(error) if lacks_memory(&error) => return Ok(Moved::Starved),
            // The reader is gone, the file system full: a console loses output rather than stop the
            // guest.
            Err(_) => return Ok(Moved::Ended),
        }
    }
    Ok(Moved::All(progress.sent))
}

impl Worker for ConsoleWorker {
    fn register(&mut self, registrar: &mut Registrar<'_>) -> Result<(), DeviceFault> {
        for (key, queue) in [(RECEIVE, &self.receive), (TRANSMIT, &self.transmit)] {
            registrar.add(queue.doorbell().as_fd(), key, Interest::READ)?;
            queue.doorbell().notify()?;
        }
        registrar.add(self.timer.as_fd(), AGAIN, Interest::READ)?;
        Ok(())
    }

    fn unregister(&mut self, registrar: &mut Registrar<'_>) {
        for queue in [&self.receive, &self.transmit] {
            // A descriptor that was never added is not there any more: what was wanted.
            let _ = registrar.remove(queue.doorbell().as_fd());
        }
        let _ = registrar.remove(self.timer.as_fd());
        for stream in [&mut self.input, &mut self.output].into_iter().flatten() {
            stream.ignore(registrar);
        }
    }

    fn ready(
        &mut self,
        key: u32,
        _ready: Interest,
        registrar: &mut Registrar<'_>,
    ) -> Result<(), DeviceFault> {
        match key {
            RECEIVE => {
                self.receive.doorbell().consume()?;
                self.receive(registrar)
            }
            INPUT => self.receive(registrar),
            TRANSMIT => {
                self.transmit.doorbell().consume()?;
                // What waits for the stream is not helped by more behind it.
                if self.waiting.is_some() && self.output.is_some() {
                    Ok(())
                } else {
                    self.transmit(registrar)
                }
            }
            OUTPUT => {
                if let Some(output) = &mut self.output {
                    output.ignore(registrar);
                }
                self.transmit(registrar)
            }
            AGAIN => {
                if self.timer.consume()? {
                    self.timer.set(None)?;
                    self.receive(registrar)?;
                    self.transmit(registrar)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn quiesce(self: Box<Self>) -> Returned {
        let Self {
            receive,
            mut transmit,
            memory: _,
            interrupt: _,
            input,
            output,
            waiting,
            progress,
            timer: _,
        } = *self;
        if let Some(chain) = waiting {
            transmit.unpop(chain);
        }
        let ends = Ends { input: input.map(|stream| stream.fd), output: output.map(|stream| stream.fd) };
        Returned { state: Box::new(Idle { ends, progress }), queues: vec![Some(receive), Some(transmit)] }
    }
}
