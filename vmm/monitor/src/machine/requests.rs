//! What a holder asks of a running machine. Answers go out on sockets of their own.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use super::files::{Files, Handed};
use super::holder::{Holder, Refusal, request_memory};
use super::lifecycle::{Ending, Input, Unfit};
use super::outcome::State;
use super::running::Loop;
use super::snapshot::Snapshot;
use super::wire::{Answer, ControlRequest, NewDevice, Reply};
use crate::config::{DeviceName, DiskConfig};
use crate::hv::Vm;
use crate::sys;
use crate::virtio::blk::{BlockControl, GrowError};

impl Holder {
    /// Carries out one request.
    pub(super) fn carry_out<V: Vm>(
        &mut self,
        (request, descriptors): (ControlRequest, Vec<OwnedFd>),
        run: &mut Loop<V>,
    ) {
        let mut descriptors = descriptors.into_iter();
        // Without a socket for the answer there is nobody to answer: none was sent, or it found no
        // room here. Whoever asked sees its end.
        let Some(reply) = descriptors.next().map(Reply::new) else { return };
        if let Err((reply, refusal)) = self.try_carry_out(request, reply, descriptors, run) {
            reply.failed(&refusal);
        }
    }

    fn try_carry_out<V: Vm>(
        &mut self,
        request: ControlRequest,
        reply: Reply,
        mut descriptors: impl Iterator<Item = OwnedFd>,
        run: &mut Loop<V>,
    ) -> Result<(), (Reply, Refusal)> {
        match request {
            ControlRequest::Start { .. } => return Err((reply, Refusal::Started)),
            ControlRequest::Pause | ControlRequest::Resume => {
                return self.pause_or_resume(&request, reply, run);
            }
            ControlRequest::Save => return save(reply, descriptors, run),
            ControlRequest::Stop => {
                reply.done();
                run.end(Ending::Stop, Some(self));
            }
            ControlRequest::PowerButton => match run.machine.press_power_button() {
                Some(Ok(())) => reply.done(),
                Some(Err(error)) => return Err((reply, error.into())),
                None => reply.answer(&Answer::NoPowerButton, None),
            },
            ControlRequest::State => reply.answer(&Answer::State(run.life.state()), None),
            ControlRequest::Counters => reply.answer(&Answer::Counters(run.exits()), None),
            ControlRequest::Inspect => reply.answer(&Answer::Inspection(Box::new(run.inspect())), None),
            ControlRequest::InspectDevice { device } => {
                let Some(slot) = run.machine.slot_of(&device) else {
                    return Err((reply, Refusal::NoDevice(device)));
                };
                reply.answer(&Answer::Device(Box::new(run.machine.inspect_slot(slot))), None);
            }
            ControlRequest::GuestCounter => {
                let state = run.life.state();
                if state != State::Running {
                    return Err((reply, Unfit(state).into()));
                }
                self.counter_readers.push(reply);
                run.machine.shared.counter_wanted.store(true, Ordering::Release);
                run.kick();
            }
            ControlRequest::Events => {
                let Some(watcher) = descriptors.next() else { return Err((reply, Refusal::Descriptor)) };
                if let Err(error) = sys::set_nonblocking(&watcher) {
                    return Err((reply, error.into()));
                }
                self.watchers.push(watcher);
                reply.done();
            }
            ControlRequest::Stream { device } => match stream(device, run) {
                Ok(stream) => reply.answer(&Answer::Done, Some(stream)),
                Err(refusal) => return Err((reply, refusal)),
            },
            ControlRequest::VsockConnect { .. }
            | ControlRequest::VsockJoin { .. }
            | ControlRequest::VsockListen { .. } => {
                return self.reach_guest(request, reply, descriptors, run);
            }
            ControlRequest::Resize { device: device @ DeviceName::Disk(_), bytes } => {
                return change_disk(device, reply, run, move |disk| disk.grow(bytes));
            }
            ControlRequest::LimitDisk { disk, limits } => {
                let device = DeviceName::Disk(disk);
                return change_disk(device, reply, run, move |disk| disk.set_limits(limits));
            }
            ControlRequest::Resize { device, .. } if device != DeviceName::Memory => {
                return Err((reply, Refusal::Cannot(device, "keeps the size that it has")));
            }
            ControlRequest::Resize { device: _, bytes } => {
                if let Err(refusal) = request_memory(bytes, &run.machine) {
                    return Err((reply, refusal));
                }
                self.memory_bytes = Some(bytes);
                reply.done();
            }
            ControlRequest::Attach { device: NewDevice::Disk { disk, labels } } => {
                let files = Files::from(Handed { files: descriptors.collect(), labels });
                self.attach(disk, files, reply, run);
            }
            ControlRequest::Detach { device } => {
                // The ends of others are held by the machine itself.
                if !matches!(device, DeviceName::Disk(_) | DeviceName::Rng) {
                    return Err((reply, Refusal::Cannot(device, "stays for as long as the machine")));
                }
                let Some(slot) = run.machine.slot_of(&device) else {
                    return Err((reply, Refusal::NoDevice(device)));
                };
                run.machine.detach(slot);
                self.detaching.push((slot, device, reply));
                self.look_for_detached(&run.machine);
            }
        }
        Ok(())
    }

    /// Connects to a port of the guest, or listens on one of the host.
    fn reach_guest<V: Vm>(
        &mut self,
        request: ControlRequest,
        reply: Reply,
        mut descriptors: impl Iterator<Item = OwnedFd>,
        run: &mut Loop<V>,
    ) -> Result<(), (Reply, Refusal)> {
        let Some(vsock) = &run.machine.vsock else {
            return Err((reply, Refusal::NoDevice(DeviceName::Vsock)));
        };
        let port = match request {
            ControlRequest::VsockConnect { port } => {
                let answer = move |result: io::Result<UnixStream>| match result {
                    Ok(stream) => reply.answer(&Answer::Done, Some(stream.into())),
                    Err(source) => reply.failed(&Refusal::Connect { port, source }),
                };
                vsock.connect(port, Box::new(answer));
                return Ok(());
            }
            ControlRequest::VsockJoin { port, prefix } => {
                let Some(stream) = descriptors.next() else { return Err((reply, Refusal::Descriptor)) };
                let answer = move |result: io::Result<()>| match result {
                    Ok(()) => reply.done(),
                    Err(source) => reply.failed(&Refusal::Connect { port, source }),
                };
                vsock.join(port, prefix, stream, Box::new(answer));
                return Ok(());
            }
            ControlRequest::VsockListen { port } => port,
            other => unreachable!("{other:?} is no request for the socket device"),
        };
        let Some(channel) = descriptors.next() else { return Err((reply, Refusal::Descriptor)) };
        if self.may_start_again {
            self.listeners.retain(|(other, _)| *other != port);
            match channel.try_clone() {
                Ok(second) => self.listeners.push((port, second)),
                Err(error) => return Err((reply, error.into())),
            }
        }
        vsock.listen(port, channel);
        reply.done();
        Ok(())
    }

    /// Puts a disk, which consists of `files`, into an empty slot.
    fn attach<V: Vm>(&mut self, disk: DiskConfig, files: Files, reply: Reply, run: &mut Loop<V>) {
        self.look_for_detached(&run.machine);
        match run.machine.attach(&disk, &files) {
            Ok(()) => {
                if self.may_start_again {
                    self.attached.push((disk, files));
                }
                reply.done();
            }
            Err(error) => reply.failed(&error),
        }
    }

    fn pause_or_resume<V: Vm>(
        &mut self,
        request: &ControlRequest,
        reply: Reply,
        run: &mut Loop<V>,
    ) -> Result<(), (Reply, Refusal)> {
        let state = run.life.state();
        let fits = match request {
            ControlRequest::Pause => matches!(state, State::Running | State::Pausing | State::Paused),
            _ => matches!(state, State::Running | State::Paused),
        };
        if !fits {
            return Err((reply, Unfit(state).into()));
        }
        if run.saving.is_some() && *request == ControlRequest::Resume {
            return Err((reply, Refusal::Saving));
        }
        if *request == ControlRequest::Pause {
            self.pausers.push(reply);
            run.step(Input::Pause, Some(self));
        } else {
            run.step(Input::Resume, Some(self));
            reply.done();
        }
        Ok(())
    }
}

/// Changes a disk on the thread of its worker, which may block; the answer follows then.
fn change_disk<V: Vm>(
    device: DeviceName,
    reply: Reply,
    run: &Loop<V>,
    change: impl FnOnce(&BlockControl) -> Result<(), GrowError> + Send + 'static,
) -> Result<(), (Reply, Refusal)> {
    let Some(slot) = run.machine.slot_of(&device) else { return Err((reply, Refusal::NoDevice(device))) };
    let name = device.clone();
    // Whoever asked sees the end of its socket if the thread is not there any more.
    let _changed = run.machine.with_disk(slot, move |disk| match change(disk) {
        Ok(()) => reply.done(),
        Err(source) => reply.failed(&Refusal::Disk { device: name, source }),
    });
    Ok(())
}

/// Begins to save the machine to the next two descriptors.
fn save<V: Vm>(
    reply: Reply,
    mut descriptors: impl Iterator<Item = OwnedFd>,
    run: &mut Loop<V>,
) -> Result<(), (Reply, Refusal)> {
    match (descriptors.next(), descriptors.next()) {
        (Some(state), Some(memory)) => run.save(Snapshot { state, memory }, reply),
        _ => Err((reply, Refusal::Descriptor)),
    }
}

/// A stream to one of the machine's consoles.
fn stream<V: Vm>(device: DeviceName, run: &mut Loop<V>) -> Result<OwnedFd, Refusal> {
    use super::assemble::{SLOT_CONSOLE, SLOT_SERIAL};
    let no_stream = |device| Refusal::Cannot(device, "is not a stream");
    let slot = match device {
        DeviceName::Serial => SLOT_SERIAL,
        DeviceName::Console => SLOT_CONSOLE,
        other => return Err(no_stream(other)),
    };
    let pump = run.machine.pumps.iter_mut().find(|pump| pump.slot() == slot);
    let Some(pump) = pump else { return Err(Refusal::NoDevice(device)) };
    let (ours, theirs) = sys::stream_pair()?;
    if !pump.attach(&run.poller, ours)? {
        return Err(no_stream(device));
    }
    pump.turn(&run.poller);
    Ok(theirs)
}
