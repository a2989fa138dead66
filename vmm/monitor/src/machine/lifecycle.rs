//! The life of a machine as a table: pure, so that every path through it is a test.
//!
//! The loop feeds what happened and carries out what it is told. It asks for nothing twice: each
//! answer comes as a new input.

use super::mailbox::Cause;
use super::outcome::{EndReason, State};
use crate::config::OnReset;
use crate::virtio::vsock::PowerWord;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Every vCPU exists, and the guest is to start.
    Assembled,
    /// The same of a machine that goes on from a saved one's pause.
    Restored,
    /// The holder asks for a pause.
    Pause,
    /// The holder lets it run on.
    Resume,
    /// Every vCPU is out of the guest with nothing pending.
    VcpusParked,
    /// No device has anything in flight.
    DevicesParked,
    /// The guest, the holder or the host ends it.
    End(Ending),
    /// Every vCPU thread has ended.
    VcpusEnded,
}

/// Why it is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// A vCPU stopped.
    Guest(Cause),
    /// The guest's agent said its word.
    Agent(PowerWord),
    /// `stop`, or the holder is gone.
    Stop,
    /// `kill`: nothing is flushed.
    Kill,
    /// The configured time is over.
    TimeLimit,
    /// Whoever read the console left.
    ReaderGone,
    /// The host failed.
    Host(String),
}

/// What the loop must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Command all vCPUs to run.
    RunVcpus,
    /// Command all vCPUs to park, and kick them.
    ParkVcpus,
    /// Command all vCPUs to end, and kick them.
    EndVcpus,
    /// Call all workers home.
    ParkDevices,
    /// Start all workers again.
    RunDevices,
    /// Answer those who wait for the pause.
    AnswerPause,
    /// Tell those who wait for the pause that the machine ends.
    RefusePause,
    /// vCPUs and devices are at rest for good: take the machine apart.
    TakeApart,
}

/// A request that does not fit the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine is {0:?}")]
pub(super) struct Unfit(pub(super) State);

/// The life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Life {
    state: State,
    /// vCPUs are parked, devices are being parked.
    vcpus_out: bool,
    ending: Option<Ending>,
    /// What was asked for after that.
    wish: Option<Ending>,
}

impl Life {
    pub(super) fn new() -> Self {
        Self { state: State::Starting, vcpus_out: false, ending: None, wish: None }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Why it ended, and what was asked for after that.
    pub(super) fn endings(self) -> (Option<Ending>, Option<Ending>) {
        (self.ending, self.wish)
    }

    /// One step.
    pub(super) fn step(&mut self, input: Input) -> Result<Vec<Action>, Unfit> {
        use State::{Ending as Ends, Paused, Pausing, Running, Starting};
        let (next, actions) = match (self.state, input) {
            (Starting, Input::Assembled) => (Running, vec![Action::RunVcpus]),
            (Starting, Input::Restored) => {
                self.vcpus_out = true;
                (Paused, vec![])
            }
            (Running, Input::Pause) => (Pausing, vec![Action::ParkVcpus]),
            // One that joins a pause under way is answered with it; one that comes late is answered
            // at once.
            (Pausing, Input::Pause) => (Pausing, vec![]),
            (Paused, Input::Pause) => (Paused, vec![Action::AnswerPause]),
            (Pausing, Input::VcpusParked) if !self.vcpus_out => {
                self.vcpus_out = true;
                (Pausing, vec![Action::ParkDevices])
            }
            (Pausing, Input::DevicesParked) if self.vcpus_out => (Paused, vec![Action::AnswerPause]),
            (Paused, Input::Resume) => {
                self.vcpus_out = false;
                (Running, vec![Action::RunDevices, Action::RunVcpus])
            }
            (Running, Input::Resume) => (Running, vec![]),
            // The first end counts. One that the guest would survive does not swallow what somebody
            // else asked for meanwhile.
            (Ends, Input::End(ending)) => {
                self.wish.get_or_insert(ending);
                (Ends, vec![])
            }
            (Pausing, Input::End(ending)) => {
                self.ending = Some(ending);
                (Ends, vec![Action::RefusePause, Action::EndVcpus])
            }
            (Starting | Running | Paused, Input::End(ending)) => {
                self.ending = Some(ending);
                (Ends, vec![Action::EndVcpus])
            }
            (Ends, Input::VcpusEnded) if !self.vcpus_out => {
                self.vcpus_out = true;
                (Ends, vec![Action::ParkDevices])
            }
            // From a pause devices are parked already, or on their way.
            (Ends, Input::VcpusEnded) => (Ends, vec![Action::ParkDevices]),
            (Ends, Input::DevicesParked) => (Ends, vec![Action::TakeApart]),
            // What arrives late in another state has been overtaken.
            (
                state,
                Input::VcpusParked
                | Input::DevicesParked
                | Input::VcpusEnded
                | Input::Assembled
                | Input::Restored,
            ) => (state, vec![]),
            (state, Input::Pause | Input::Resume) => return Err(Unfit(state)),
        };
        self.state = next;
        Ok(actions)
    }
}

/// What the end was, or `None` for another start. `panicked`: the console showed the kernel's last
/// words.
pub(super) fn verdict(ending: &Ending, panicked: bool, on_reset: OnReset) -> Option<EndReason> {
    let reset = || match on_reset {
        OnReset::Exit => Some(EndReason::Reset),
        OnReset::Reboot => None,
    };
    match ending {
        Ending::Guest(Cause::Fault(what)) => Some(EndReason::Error(what.clone())),
        Ending::Guest(Cause::PowerOff) | Ending::Agent(PowerWord::Off) => Some(EndReason::PowerOff),
        Ending::Agent(PowerWord::Panic) => Some(EndReason::Panic),
        Ending::Agent(PowerWord::Reboot) => reset(),
        // A kernel that panics ends in whatever its panic= and reboot= say: the last words tell.
        Ending::Guest(Cause::Reset | Cause::TripleFault | Cause::Halt { .. }) if panicked => {
            Some(EndReason::Panic)
        }
        Ending::Guest(Cause::Halt { power_off: true }) => Some(EndReason::PowerOff),
        Ending::Guest(Cause::Halt { power_off: false }) => Some(EndReason::Halted),
        Ending::Guest(Cause::TripleFault) => Some(EndReason::TripleFault),
        Ending::Guest(Cause::Reset) => reset(),
        Ending::Stop => Some(EndReason::Stopped),
        Ending::Kill => Some(EndReason::Killed),
        Ending::TimeLimit => Some(EndReason::TimeLimit),
        Ending::ReaderGone => Some(EndReason::ReaderGone),
        Ending::Host(what) => Some(EndReason::Error(what.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(inputs: &[Input]) -> (State, Vec<Action>) {
        let mut life = Life::new();
        let mut actions = Vec::new();
        for input in inputs {
            actions.extend(life.step(input.clone()).unwrap());
        }
        (life.state(), actions)
    }

    #[test]
    fn a_life_with_a_pause_in_it() {
        let off = Input::End(Ending::Guest(Cause::PowerOff));
        let (state, actions) = run(&[
            Input::Assembled,
            Input::Pause,
            Input::Pause,
            Input::VcpusParked,
            Input::DevicesParked,
            Input::Pause,
            Input::Resume,
            Input::Resume,
            off.clone(),
            off,
            Input::VcpusEnded,
            Input::DevicesParked,
        ]);
        assert_eq!(state, State::Ending);
        assert_eq!(
            actions,
            [
                Action::RunVcpus,
                Action::ParkVcpus,
                Action::ParkDevices,
                Action::AnswerPause,
                Action::AnswerPause,
                Action::RunDevices,
                Action::RunVcpus,
                Action::EndVcpus,
                Action::ParkDevices,
                Action::TakeApart
            ]
        );
    }

    #[test]
    fn an_end_reaches_every_state_and_always_comes_to_rest() {
        let prefixes: [&[Input]; 6] = [
            &[],
            &[Input::Restored],
            &[Input::Assembled],
            &[Input::Assembled, Input::Pause],
            &[Input::Assembled, Input::Pause, Input::VcpusParked],
            &[Input::Assembled, Input::Pause, Input::VcpusParked, Input::DevicesParked],
        ];
        for prefix in prefixes {
            let mut inputs = prefix.to_vec();
            inputs.extend([
                Input::End(Ending::Stop),
                // Late news of the pause changes nothing.
                Input::VcpusParked,
                Input::VcpusEnded,
                Input::DevicesParked,
            ]);
            let (state, actions) = run(&inputs);
            assert_eq!(state, State::Ending);
            assert_eq!(actions.last(), Some(&Action::TakeApart), "{inputs:?}");
            assert!(actions.contains(&Action::EndVcpus));
        }
    }

    #[test]
    fn a_restored_machine_begins_paused() {
        let (state, actions) = run(&[Input::Restored, Input::Pause]);
        assert_eq!((state, actions), (State::Paused, vec![Action::AnswerPause]));
        let (state, actions) = run(&[Input::Restored, Input::Resume, Input::Pause, Input::VcpusParked]);
        assert_eq!(state, State::Pausing);
        let expected = [Action::RunDevices, Action::RunVcpus, Action::ParkVcpus, Action::ParkDevices];
        assert_eq!(actions, expected);
        let (state, actions) = run(&[
            Input::End(Ending::Kill),
            // Its assembly comes to its end all the same.
            Input::Restored,
            Input::VcpusEnded,
            Input::DevicesParked,
        ]);
        assert_eq!((state, actions.last()), (State::Ending, Some(&Action::TakeApart)));
    }

    #[test]
    fn requests_that_do_not_fit_say_where_the_machine_is() {
        let mut life = Life::new();
        assert_eq!(life.step(Input::Pause), Err(Unfit(State::Starting)));
        life.step(Input::End(Ending::Kill)).unwrap();
        assert_eq!(life.step(Input::Resume), Err(Unfit(State::Ending)));
        life.step(Input::End(Ending::Stop)).unwrap();
        life.step(Input::End(Ending::TimeLimit)).unwrap();
        assert_eq!(life.endings(), (Some(Ending::Kill), Some(Ending::Stop)));
    }

    #[test]
    fn verdicts() {
        use EndReason as R;
        let guest = Ending::Guest;
        // (ending, panicked, on exit, on reboot)
        let table = [
            (guest(Cause::PowerOff), false, Some(R::PowerOff), Some(R::PowerOff)),
            (guest(Cause::PowerOff), true, Some(R::PowerOff), Some(R::PowerOff)),
            (guest(Cause::Halt { power_off: true }), false, Some(R::PowerOff), Some(R::PowerOff)),
            (guest(Cause::Halt { power_off: false }), false, Some(R::Halted), Some(R::Halted)),
            (guest(Cause::Halt { power_off: false }), true, Some(R::Panic), Some(R::Panic)),
            (guest(Cause::Reset), false, Some(R::Reset), None),
            (guest(Cause::Reset), true, Some(R::Panic), Some(R::Panic)),
            (guest(Cause::TripleFault), false, Some(R::TripleFault), Some(R::TripleFault)),
            (guest(Cause::TripleFault), true, Some(R::Panic), Some(R::Panic)),
            (Ending::Agent(PowerWord::Off), true, Some(R::PowerOff), Some(R::PowerOff)),
            (Ending::Agent(PowerWord::Reboot), true, Some(R::Reset), None),
            (Ending::Agent(PowerWord::Panic), false, Some(R::Panic), Some(R::Panic)),
            (Ending::Stop, true, Some(R::Stopped), Some(R::Stopped)),
            (Ending::TimeLimit, false, Some(R::TimeLimit), Some(R::TimeLimit)),
            (Ending::ReaderGone, false, Some(R::ReaderGone), Some(R::ReaderGone)),
        ];
        for (ending, panicked, exit, reboot) in table {
            assert_eq!(verdict(&ending, panicked, OnReset::Exit), exit, "{ending:?}");
            assert_eq!(verdict(&ending, panicked, OnReset::Reboot), reboot, "{ending:?}");
        }
    }
}
