//! A vCPU on KVM.

#![allow(
    unsafe_code,
    reason = "KVM_RUN fills a page shared with the kernel, and the signal mask has no wrapper"
)]

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use kvm_ioctls::VcpuFd;
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

use super::super::{HvError, Kicker, Vcpu, VcpuExit};
use super::exit::{Decoded, RunPage};
use super::inner::{Inner, failed, lend, uninterrupted};
use super::kick::Receiver;
use super::own::{self, Processor};
use crate::arch::BootState;
use crate::state::Sections;
use crate::timeline::{GuestCounter, Moment};

const KVMIO: u8 = 0xae;

/// A vCPU, on its thread. Fields are dropped in order: kicks end first, then the page and
/// descriptor (a duplicate of which the machine keeps for its own end), then (perhaps) the machine.
#[derive(Debug)]
pub struct KvmVcpu {
    kick: Receiver,
    run: RunPage,
    fd: VcpuFd,
    machine: Arc<Inner>,
    /// When it was made: one end of the span over which the counter's speed is measured.
    made: Moment,
    /// What it has of its architecture.
    own: Processor,
}

/// KVM's form of KVM_SET_SIGNAL_MASK with the mask behind it.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

impl KvmVcpu {
    pub(super) fn new(machine: &Arc<Inner>, index: u32, count: u32) -> Result<Self, HvError> {
        if index >= count || count > 255 {
            return Err(HvError::Unsupported { what: "this number of vCPUs" });
        }
        let mut fd =
            uninterrupted(|| machine.fd.create_vcpu(index.into())).map_err(failed("KVM_CREATE_VCPU"))?;
        let run = RunPage { page: NonNull::from(fd.get_kvm_run()), len: machine.fd.run_size() };
        let kick = Receiver::new(run.immediate_exit())?;
        let own = Processor::new(&fd, machine, index, count)?;
        let vcpu =
            Self { kick, run, fd, machine: Arc::clone(machine), made: Moment::now(own::host_counter), own };
        vcpu.set_signal_mask()?;
        Ok(vcpu)
    }

    /// KVM_RUN blocks what this thread blocks, but for the kick.
    fn set_signal_mask(&self) -> Result<(), HvError> {
        const SET_SIGNAL_MASK: rustix::ioctl::Opcode = opcode::write::<u32>(KVMIO, 0x8b);
        let mask = SignalMask { len: 8, set: self.kick.mask().to_ne_bytes() };
        // SAFETY: the opcode (whose size is that of the header, as KVM defines it) reads the header
        // and `len` bytes behind it.
        unsafe { ioctl(lend(&self.fd), Setter::<SET_SIGNAL_MASK, _>::new(mask)) }
            .map_err(|error| HvError::Call { call: "KVM_SET_SIGNAL_MASK", source: error.into() })
    }

    /// One KVM_RUN.
    fn enter(&self) -> Result<(), Errno> {
        // SAFETY: the opcode takes no argument; the kernel writes to the shared page, of which no
        // reference lives (`&self` of the callers is exclusive).
        unsafe { ioctl(lend(&self.fd), NoArg::<{ opcode::none(KVMIO, 0x80) }>::new()) }
    }

    fn fault<'a>(&self, text: &str) -> VcpuExit<'a> {
        match Processor::place(&self.fd) {
            Some(place) => VcpuExit::Fault(format!("{text} at {place:#x}")),
            None => VcpuExit::Fault(text.to_owned()),
        }
    }

    /// What KVM_RUN's refusal means to the guest; a host failure otherwise.
    fn refused<'a>(&self, errno: Errno) -> Result<VcpuExit<'a>, HvError> {
        match errno {
            Errno::FAULT => Ok(self.fault("the guest used memory that the host cannot provide")),
            errno => Err(HvError::Call { call: "KVM_RUN", source: io::Error::from(errno) }),
        }
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        // Not to be had: then the machine's end is slow.
        if let Ok(fd) = lend(&self.fd).try_clone_to_owned() {
            self.machine.ended.lock().unwrap_or_else(PoisonError::into_inner).push(fd);
        }
    }
}

impl Vcpu for KvmVcpu {
    fn load(&mut self, state: &BootState) -> Result<(), HvError> {
        self.own.load(&self.fd, state)
    }

    fn run(&mut self) -> Result<VcpuExit<'_>, HvError> {
        loop {
            if self.kick.is_pending() {
                self.kick.take();
                return Ok(VcpuExit::Kicked);
            }
            match self.enter() {
                Ok(()) => {}
                Err(Errno::INTR) => {
                    self.kick.take();
                    return Ok(VcpuExit::Kicked);
                }
                // A waiting processor got its start-up message.
                Err(Errno::AGAIN) => continue,
                Err(errno) => return self.refused(errno),
            }
            // SAFETY: the page is mapped while `self` lives, which the value borrows exclusively:
            // no KVM_RUN, no second value.
            match unsafe { self.run.exit() } {
                Decoded::VcpuExit(exit) => {
                    if let Some(exit) = self.machine.serve(exit)? {
                        return Ok(exit);
                    }
                }
                Decoded::Own(exit) => self.machine.serve_own(exit),
                Decoded::Again => {}
                Decoded::Fault(text) => return Ok(self.fault(&text)),
            }
        }
    }

    fn complete_pending(&mut self) -> Result<VcpuExit<'_>, HvError> {
        loop {
            self.kick.set_immediate_exit(1);
            let result = self.enter();
            self.kick.set_immediate_exit(0);
            match result {
                Err(Errno::INTR | Errno::AGAIN) => return Ok(VcpuExit::Kicked),
                Err(errno) => return self.refused(errno),
                Ok(()) => {}
            }
            // SAFETY: as in `run`.
            match unsafe { self.run.exit() } {
                Decoded::VcpuExit(exit) => {
                    if let Some(exit) = self.machine.serve(exit)? {
                        return Ok(exit);
                    }
                }
                Decoded::Own(exit) => self.machine.serve_own(exit),
                Decoded::Again => return Ok(VcpuExit::Kicked),
                Decoded::Fault(text) => return Ok(self.fault(&text)),
            }
        }
    }

    fn save(&mut self) -> Result<Sections, HvError> {
        self.own.save(&self.fd, &self.machine)
    }

    fn restore(&mut self, state: Sections) -> Result<(), HvError> {
        self.own.restore(&self.fd, &self.machine, state)
    }

    fn counter(&mut self) -> Option<GuestCounter> {
        self.made.counter(self.own.counter_khz(), own::host_counter, || Processor::counter(&self.fd))
    }

    fn sleeps_for_good(&mut self) -> bool {
        Processor::sleeps_for_good(&self.fd)
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kick.kicker()
    }
}
