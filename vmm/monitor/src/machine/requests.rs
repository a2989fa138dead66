//! The holder of a machine, as the loop sees it: requests come in, answers go out on sockets of their own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use super::assemble::Assembled;
use super::files::Files;
use super::lifecycle::{Ending, Input, Unfit};
use super::outcome::{Event, Outcome, State};
use super::server::Loop;
use super::wire::{self, Answer, Port, Received, Receiver, Reply, Request};
use crate::config::{FileSource, OnReset};
use crate::hv::Vm;
use crate::sys;
use crate::timeline::GuestCounter;
use crate::virtio::mem::BadSize;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the machine has no socket device")]
    NoVsock,
    #[error("the {0:?} of this machine is not a stream")]
    NoStream(Port),
    #[error("the machine has no memory device")]
    NoMemoryDevice,
    #[error("the machine starts with {0} bytes of memory and cannot have less")]
    TooLittle(u64),
    #[error(transparent)]
    Size(#[from] BadSize),
    #[error("the machine was started already")]
    Started,
    #[error("the machine ended before it came to rest")]
    Ending,
    #[error("the request lacks a descriptor")]
    Descriptor,
    #[error("the guest did not accept on port {port}")]
    Connect {
        port: u32,
        #[source]
        source: io::Error,
    },
    #[error("the host failed")]
    Host(#[from] io::Error),
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// Whoever is at the other end of the control connection.
pub(super) struct Holder {
    control: OwnedFd,
    receiver: Receiver,
    done: OwnedFd,
    watchers: Vec<OwnedFd>,
    pausers: Vec<Reply>,
    /// Who waits for the guest's counter.
    counter_readers: Vec<Reply>,
    /// Kept where a machine may start again: its new socket device gets them too.
    listeners: Vec<(u32, OwnedFd)>,
    keep_listeners: bool,
    /// What the guest shall have, likewise.
    memory_bytes: Option<u64>,
}

impl Holder {
    pub(super) fn new(control: OwnedFd, receiver: Receiver, done: OwnedFd, on_reset: OnReset) -> Self {
        Self {
            control,
            receiver,
            done,
            watchers: Vec::new(),
            pausers: Vec::new(),
            counter_readers: Vec::new(),
            listeners: Vec::new(),
            keep_listeners: on_reset == OnReset::Reboot,
            memory_bytes: None,
        }
    }

    /// The control connection, for the poller.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// The next request that is there; `None` when none is. An error means that the holder is gone, or talks nonsense.
    pub(super) fn next(&mut self) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
        match self.receiver.receive(self.control.as_fd())? {
            Received::Frame(request, descriptors) => Ok(Some((request, descriptors))),
            Received::Nothing => Ok(None),
            Received::End => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Tells everybody who wants to know. A watcher that does not read is dropped: the loop waits for nobody.
    pub(super) fn tell(&mut self, event: &Event) {
        self.watchers.retain(|watcher| wire::send(watcher.as_fd(), event, &[]).is_ok());
    }

    /// The last word.
    pub(super) fn end(mut self, outcome: &Outcome) {
        self.tell(&Event::Ended(outcome.clone()));
        // A holder that is gone does not care.
        drop(wire::send(self.done.as_fd(), outcome, &[]));
    }

    pub(super) fn paused(&mut self) {
        self.pausers.drain(..).for_each(Reply::done);
    }

    pub(super) fn not_paused(&mut self) {
        self.pausers.drain(..).for_each(|reply| reply.failed(&Refusal::Ending));
    }

    /// vCPU 0 has read the guest's counter.
    pub(super) fn counter_read(&mut self, counter: Option<GuestCounter>) {
        let answer = Answer::GuestCounter(counter);
        self.counter_readers.drain(..).for_each(|reply| reply.answer(&answer, None));
    }

    /// Gives the devices of a machine that starts again what those of the one before were asked for: listeners and memory.
    pub(super) fn reconnect<V>(&mut self, machine: &Assembled<V>) {
        if let Some(bytes) = self.memory_bytes {
            // It was taken once, and the machine is the same.
            drop(request_memory(bytes, machine));
        }
        let Some(vsock) = &machine.vsock else { return };
        for (port, channel) in &self.listeners {
            if let Ok(channel) = channel.try_clone() {
                vsock.listen(*port, channel);
            }
        }
    }

    /// Carries out one request.
    pub(super) fn carry_out<V: Vm>(
        &mut self,
        (request, descriptors): (Request, Vec<OwnedFd>),
        run: &mut Loop<V>,
    ) {
        let mut descriptors = descriptors.into_iter();
        // Without a socket for the answer there is nobody to answer.
        let Some(reply) = descriptors.next().map(Reply::new) else { return };
        let extra = descriptors.next();
        if let Err((reply, refusal)) = self.try_carry_out(request, reply, extra, run) {
            reply.failed(&refusal);
        }
    }

    fn try_carry_out<V: Vm>(
        &mut self,
        request: Request,
        reply: Reply,
        extra: Option<OwnedFd>,
        run: &mut Loop<V>,
    ) -> Result<(), (Reply, Refusal)> {
        match request {
            Request::Start { .. } => return Err((reply, Refusal::Started)),
            Request::Pause | Request::Resume => return self.pause_or_resume(&request, reply, run),
            Request::Stop | Request::Kill => {
                reply.done();
                let ending = if request == Request::Stop { Ending::Stop } else { Ending::Kill };
                run.end(ending, Some(self));
            }
            Request::State => reply.answer(&Answer::State(run.life.state()), None),
            Request::Counters => reply.answer(&Answer::Counters(run.exits()), None),
            Request::GuestCounter => {
                let state = run.life.state();
                if state != State::Running {
                    return Err((reply, Unfit(state).into()));
                }
                self.counter_readers.push(reply);
                run.machine.shared.counter_wanted.store(true, Ordering::Release);
                run.kick();
            }
            Request::Events => {
                let Some(watcher) = extra else { return Err((reply, Refusal::Descriptor)) };
                if let Err(error) = sys::set_nonblocking(&watcher) {
                    return Err((reply, error.into()));
                }
                self.watchers.push(watcher);
                reply.done();
            }
            Request::Attach { port } => match attach(port, run) {
                Ok(stream) => reply.answer(&Answer::Done, Some(stream)),
                Err(refusal) => return Err((reply, refusal)),
            },
            Request::VsockConnect { port } => {
                let Some(vsock) = &run.machine.vsock else { return Err((reply, Refusal::NoVsock)) };
                vsock.connect(
                    port,
                    Box::new(move |result| match result {
                        Ok(stream) => reply.answer(&Answer::Done, Some(stream.into())),
                        Err(source) => reply.failed(&Refusal::Connect { port, source }),
                    }),
                );
            }
            Request::VsockListen { port } => {
                let Some(vsock) = &run.machine.vsock else { return Err((reply, Refusal::NoVsock)) };
                let Some(channel) = extra else { return Err((reply, Refusal::Descriptor)) };
                if self.keep_listeners {
                    self.listeners.retain(|(other, _)| *other != port);
                    match channel.try_clone() {
                        Ok(second) => self.listeners.push((port, second)),
                        Err(error) => return Err((reply, error.into())),
                    }
                }
                vsock.listen(port, channel);
                reply.done();
            }
            Request::Memory { bytes } => {
                if let Err(refusal) = request_memory(bytes, &run.machine) {
                    return Err((reply, refusal));
                }
                self.memory_bytes = Some(bytes);
                reply.done();
            }
            Request::AttachDisk { mut disk } => {
                let files = Files::Sent(extra.into_iter().collect());
                if let FileSource::Fd(number) = &mut disk.source {
                    *number = 0;
                }
                match run.machine.attach(&disk, &files) {
                    Ok(()) => reply.done(),
                    Err(error) => reply.failed(&error),
                }
            }
        }
        Ok(())
    }

    fn pause_or_resume<V: Vm>(
        &mut self,
        request: &Request,
        reply: Reply,
        run: &mut Loop<V>,
    ) -> Result<(), (Reply, Refusal)> {
        let state = run.life.state();
        let fits = match request {
            Request::Pause => matches!(state, State::Running | State::Pausing | State::Paused),
            _ => matches!(state, State::Running | State::Paused),
        };
        if !fits {
            return Err((reply, Unfit(state).into()));
        }
        if *request == Request::Pause {
            self.pausers.push(reply);
            run.step(Input::Pause, Some(self));
        } else {
            run.step(Input::Resume, Some(self));
            reply.done();
        }
        Ok(())
    }
}

/// Asks the guest to have `bytes` of memory in all.
fn request_memory<V>(bytes: u64, machine: &Assembled<V>) -> Result<(), Refusal> {
    let Some(control) = &machine.memory else { return Err(Refusal::NoMemoryDevice) };
    let boot = machine.ram.size();
    Ok(control.request(bytes.checked_sub(boot).ok_or(Refusal::TooLittle(boot))?)?)
}

/// A stream to one of the machine's consoles.
fn attach<V: Vm>(port: Port, run: &mut Loop<V>) -> Result<OwnedFd, Refusal> {
    use super::assemble::{SLOT_CONSOLE, SLOT_SERIAL};
    let slot = match port {
        Port::Serial => SLOT_SERIAL,
        Port::Console => SLOT_CONSOLE,
    };
    let pump = run.machine.pumps.iter_mut().find(|pump| pump.slot() == slot);
    let pump = pump.ok_or(Refusal::NoStream(port))?;
    let (ours, theirs) = sys::stream_pair()?;
    if !pump.attach(&run.poller, ours)? {
        return Err(Refusal::NoStream(port));
    }
    pump.turn(&run.poller);
    Ok(theirs)
}
