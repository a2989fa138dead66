//! Finds out that a guest has halted for good.
//!
//! A kernel that halts, or is to switch off and knows no way to (ours has no ACPI), says so on its
//! console, disables interrupts on every processor and halts. In the hypervisor that is a wait like
//! any other, which no exit tells of. So the words are the hint and the processors' state is the
//! proof: once the words went by, all vCPUs are called out of the guest together, now and then, and
//! when none of them can go on by itself nothing in this machine ever will. Words alone end
//! nothing, for any program of the guest's may write them; such a machine is looked at once a
//! second. One whose console never shows them (`loglevel=0`) is not looked at.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::assemble::SLOT_MACHINE;
use super::holder::Holder;
use super::lifecycle::Ending;
use super::mailbox::Cause;
use super::outcome::State;
use super::running::Loop;
use super::vcpu::Command;
use crate::hv::Vm;
use crate::sys::{Interest, Timer};
use crate::virtio::device::Registrar;

/// The timer's key in the loop's poller.
pub(super) const KEY_HALT: u32 = 4;
/// From the words to the first look: a kernel takes about as long to get there.
const FIRST: Duration = Duration::from_millis(5);
/// Each look comes twice as late as the one before, up to this.
const LONGEST: Duration = Duration::from_secs(1);

/// The looks at one machine.
#[derive(Debug, Default)]
pub(super) struct HaltWatch {
    /// When to look, and how long after the last time. None until the words went by.
    timer: Option<(Timer, Duration)>,
    /// Number of the last look.
    look: u64,
    /// vCPUs that answered it.
    answers: u32,
    /// Those of them that sleep for good.
    asleep: u32,
}

impl<V: Vm> Loop<V> {
    /// The guest's kernel says that it halts. What fails is tried again when the console says more.
    pub(super) fn expect_halt(&mut self) -> io::Result<()> {
        if self.halt.timer.is_none() {
            let timer = Timer::new()?;
            timer.set(Some(FIRST))?;
            self.poller.add(timer.as_fd(), Registrar::token(SLOT_MACHINE, KEY_HALT), Interest::READ)?;
            self.halt.timer = Some((timer, FIRST));
        }
        Ok(())
    }

    /// Calls all vCPUs out of the guest, unless they are out or on their way.
    pub(super) fn look_for_halt(&mut self) -> io::Result<()> {
        let Some((timer, period)) = &mut self.halt.timer else { return Ok(()) };
        timer.consume()?;
        *period = (*period * 2).min(LONGEST);
        timer.set(Some(*period))?;
        if self.life.state() == State::Running {
            self.halt.look += 1;
            (self.halt.answers, self.halt.asleep) = (0, 0);
            self.machine.shared.gate.set(Command::Look(self.halt.look));
            self.kick();
        }
        Ok(())
    }

    /// A vCPU is out. The last one decides whether all of them go on.
    pub(super) fn looked(&mut self, number: u64, sleeps: bool, holder: Option<&mut Holder>) {
        if number != self.halt.look {
            return;
        }
        self.halt.answers += 1;
        self.halt.asleep += u32::from(sleeps);
        // What began meanwhile, a pause or the end, has given the vCPUs another command.
        if self.halt.answers < self.cpus || self.life.state() != State::Running {
            return;
        }
        if self.halt.asleep == self.cpus {
            let power_off = self.machine.pumps.iter().any(|pump| pump.said().power_off);
            self.end(Ending::Guest(Cause::Halt { power_off }), holder);
        } else {
            self.machine.shared.gate.set(Command::Run);
        }
    }
}
