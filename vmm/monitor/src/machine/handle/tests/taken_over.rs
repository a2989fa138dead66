//! Monitors that somebody else has taken over: what they say in part, or not at all, keeps nobody.

use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::super::ending::{Body, hung_up};
use super::*;
use crate::machine::outcome::Outcome;
use crate::machine::wire::{Received, Receiver};
use crate::sys;

#[test]
fn kill_waits_neither_for_requests_under_way_nor_for_a_machine_that_reads_none() {
    let (control, theirs) = sys::stream_pair().unwrap();
    // A server that says that the machine runs, and reads nothing more until its holder is gone.
    let body = thread(move || {
        let Ok(Received::Frame(ControlRequest::Start { .. }, mut descriptors)) =
            Receiver::new(sys::MAX_DESCRIPTORS).receive(theirs.as_fd())
        else {
            return;
        };
        wire::Reply::new(descriptors.remove(0)).done();
        let mut polled = [PollFd::from_borrowed_fd(theirs.as_fd(), PollFlags::empty())];
        assert_eq!(poll(&mut polled, None), Ok(1));
    })
    .unwrap();
    let mut resources = Resources::new();
    let config = config(&mut resources);
    let machine = Machine::hold(&config, resources, None, control, body).unwrap().done().unwrap();
    let (asking, asked) = mpsc::channel();
    std::thread::scope(|scope| {
        let machine = &machine;
        scope.spawn(move || {
            // The last one waits for room that never comes.
            while machine.control.ask(&ControlRequest::State, &[]).is_ok() {
                asking.send(()).unwrap();
            }
        });
        asked.recv().unwrap();
        machine.kill();
    });
    assert_eq!(machine.wait().reason, EndReason::Killed);
}

/// What a monitor does with its last word instead of ending.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Half,
    Whole,
    Nonsense,
    Close,
}

/// A machine whose monitor is a process that does nothing, while somebody else has all that it had:
/// `hear` gets each request with its descriptors, and says which of these are kept until the
/// holder's last is closed, when the thread ends.
fn held(
    mut hear: impl FnMut(&ControlRequest, Vec<OwnedFd>) -> Vec<OwnedFd> + Send + 'static,
) -> (Starting, JoinHandle<()>) {
    let (control, theirs) = sys::stream_pair().unwrap();
    let monitor = std::thread::spawn(move || {
        let mut receiver = Receiver::new(sys::MAX_DESCRIPTORS);
        let mut kept = Vec::new();
        while let Ok(Received::Frame(request, descriptors)) = receiver.receive(theirs.as_fd()) {
            kept.extend(hear(&request, descriptors));
        }
        // It has more patience than its holder.
        if let Some(kept) = kept.first() {
            hung_up(kept.as_fd(), Duration::from_secs(1000));
        }
    });
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut resources = Resources::new();
    let config = config(&mut resources);
    (Machine::hold(&config, resources, None, control, Body::Process(child)).unwrap(), monitor)
}

/// The answer's socket and what follows it.
fn answer(descriptors: Vec<OwnedFd>) -> (OwnedFd, Vec<OwnedFd>) {
    let mut descriptors = descriptors.into_iter();
    (descriptors.next().unwrap(), descriptors.collect())
}

/// A machine whose monitor answers the start, does `instead`, and lives on.
fn taken_over(instead: Instead) -> (Machine, JoinHandle<()>) {
    let (starting, monitor) = held(move |_, descriptors| {
        let (reply, mut kept) = answer(descriptors);
        let done = kept[0].as_fd();
        match instead {
            Instead::Half => sys::send(done, &[1], &[]).unwrap(),
            Instead::Nonsense => sys::send(done, &[0xff; 4], &[]).unwrap(),
            Instead::Whole => wire::send(done, &Outcome::of(EndReason::PowerOff), &[]).unwrap(),
            Instead::Close => kept.clear(),
        }
        wire::Reply::new(reply).done();
        kept
    });
    (starting.done().unwrap(), monitor)
}

/// The process of a machine, which is there as long as it was not collected.
fn process(machine: &Machine) -> PathBuf {
    format!("/proc/{}", machine.process_id().unwrap()).into()
}

/// The end of the process alone, as the host's administrator would have it.
fn kill_the_process(machine: &Machine) {
    let process = rustix::process::Pid::from_raw(machine.process_id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
}

fn without_handle(machine: &mut Machine) {
    machine.control.forget_killer();
}

#[test]
fn a_monitor_that_says_its_last_word_and_does_not_end_keeps_nobody() {
    let killed = || EndReason::MonitorDied("signal: 9 (SIGKILL)".into());
    let all = [
        (Instead::Half, killed()),
        (Instead::Nonsense, killed()),
        (Instead::Close, killed()),
        (Instead::Whole, EndReason::PowerOff),
    ];
    // Each waits as long as a monitor is given, so they do it side by side.
    std::thread::scope(|scope| {
        for (instead, reason) in &all {
            for handles in [true, false] {
                let start = move || {
                    let (mut machine, monitor) = taken_over(*instead);
                    if !handles {
                        without_handle(&mut machine);
                    }
                    let process = process(&machine);
                    (machine, monitor, process)
                };
                scope.spawn(move || {
                    let (machine, monitor, process) = start();
                    let at_once = machine.try_wait().map(|outcome| outcome.reason);
                    assert_eq!(at_once.is_some(), matches!(instead, Instead::Whole), "{instead:?}");
                    assert!(process.exists(), "{instead:?}: try_wait waits for nothing");
                    assert_eq!(machine.wait().reason, *reason, "{instead:?}");
                    assert!(!process.exists(), "{instead:?}");
                    drop(machine);
                    monitor.join().unwrap();
                });
                scope.spawn(move || {
                    let (machine, monitor, process) = start();
                    assert_eq!(machine.close().reason, *reason, "{instead:?}");
                    assert!(!process.exists(), "{instead:?}");
                    drop(machine);
                    monitor.join().unwrap();
                });
                scope.spawn(move || {
                    let (machine, monitor, process) = start();
                    drop(machine);
                    assert!(!process.exists(), "{instead:?}");
                    monitor.join().unwrap();
                });
            }
        }
    });
}

/// Half an answer: of the four bytes of its length one.
fn half(socket: &OwnedFd) {
    sys::send(socket.as_fd(), &[5], &[]).unwrap();
}

type Ask = fn(&Machine) -> Result<(), ControlError>;
type End = fn(&Machine);

/// Every request that waits for an answer.
const REQUESTS: [Ask; 14] = [
    |machine| machine.state().map(drop),
    |machine| machine.exit_counts().map(drop),
    |machine| machine.inspect().map(drop),
    |machine| machine.inspect_device(&DeviceName::Rng).map(drop),
    |machine| machine.detach(&DeviceName::Rng),
    |machine| machine.guest_counter().map(drop),
    |machine| machine.pause(),
    |machine| machine.resume(),
    |machine| machine.stop(),
    |machine| machine.events().map(drop),
    |machine| machine.serial().map(drop),
    |machine| machine.console().map(drop),
    |machine| machine.vsock().connect(1).map(drop),
    |machine| machine.vsock().listen(1).map(drop),
];

#[test]
fn half_an_answer_keeps_nobody_beyond_the_machines_end() {
    let ends: [(bool, End); 3] = [(true, Machine::kill), (false, Machine::kill), (true, kill_the_process)];
    for (handles, end) in ends {
        let (tell, told) = mpsc::channel();
        let (starting, monitor) = held(move |request, descriptors| {
            let (reply, mut kept) = answer(descriptors);
            if matches!(request, ControlRequest::Start { .. }) {
                wire::Reply::new(reply).done();
            } else {
                half(&reply);
                kept.push(reply);
                tell.send(()).unwrap();
            }
            kept
        });
        let mut machine = starting.done().unwrap();
        if !handles {
            without_handle(&mut machine);
        }
        std::thread::scope(|scope| {
            let machine = &machine;
            let asked = REQUESTS.map(|request| scope.spawn(move || request(machine)));
            REQUESTS.iter().for_each(|_| told.recv().unwrap());
            let mut pending = machine.begin_serial().unwrap();
            told.recv().unwrap();
            assert!(!pending.answered());
            end(machine);
            for asked in asked {
                let answered = asked.join().unwrap();
                assert!(matches!(answered, Err(ControlError::Ended)), "{answered:?}");
            }
            assert!(matches!(pending.stream(), Err(ControlError::Ended)));
        });
        drop(machine);
        monitor.join().unwrap();
    }
}

#[test]
fn half_an_event_keeps_nobody_beyond_the_machines_end() {
    let (sent, is_sent) = std::sync::mpsc::channel();
    let (starting, monitor) = held(move |request, descriptors| {
        let (reply, kept) = answer(descriptors);
        wire::Reply::new(reply).done();
        if *request == ControlRequest::Events {
            wire::send(kept[0].as_fd(), &Event::Rebooting, &[]).unwrap();
            half(&kept[0]);
            sent.send(()).unwrap();
        }
        kept
    });
    let machine = starting.done().unwrap();
    let mut events = machine.events().unwrap();
    assert_eq!(events.next_event().unwrap(), Some(Event::Rebooting));
    is_sent.recv().unwrap();
    assert_eq!(events.poll_event().unwrap(), std::task::Poll::Pending);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| events.next_event());
        machine.kill();
        assert_eq!(next.join().unwrap().unwrap(), None);
    });
    drop((machine, events));
    monitor.join().unwrap();
}

#[test]
fn an_answer_in_pieces_is_none_before_its_last() {
    let ready = |starting: &Starting, timeout| {
        let mut polled = [PollFd::from_borrowed_fd(starting.as_fd(), PollFlags::IN)];
        poll(&mut polled, timeout) == Ok(1)
    };
    let mut frame = vec![6, 0, 0, 0];
    frame.extend(b"\"done\"");
    let (write, pieces) = mpsc::channel::<u8>();
    let (starting, monitor) = held(move |_, descriptors| {
        let (reply, kept) = answer(descriptors);
        while let Ok(piece) = pieces.recv() {
            sys::send(reply.as_fd(), &[piece], &[]).unwrap();
        }
        kept
    });
    let mut starting = starting;
    for (at, byte) in frame.iter().enumerate() {
        assert!(!starting.answered(), "{at}");
        write.send(*byte).unwrap();
        assert!(ready(&starting, None));
    }
    assert!(starting.answered());
    drop(write);
    drop(starting.done().unwrap());
    monitor.join().unwrap();
}

#[test]
fn a_start_that_is_answered_by_half_can_be_given_up() {
    let (tell, told) = mpsc::channel();
    let (starting, monitor) = held(move |_, descriptors| {
        half(&descriptors[0]);
        tell.send(()).unwrap();
        descriptors
    });
    told.recv().unwrap();
    let (machine, answer) = starting.into_parts();
    let (process, mut answer) = (process(&machine), answer.unwrap());
    assert!(!answer.answered());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| machine.failed_to_start(answer.done().unwrap_err()));
        machine.kill();
        let error = waits.join().unwrap();
        assert!(matches!(error, StartError::Died(_)), "{error:?}");
    });
    assert!(!process.exists());
    drop(machine);
    monitor.join().unwrap();
}

/// Somebody has all descriptors of the process, so nothing is closed by its death.
#[test]
fn a_process_that_dies_without_a_word_is_at_its_end() {
    let dead = || EndReason::MonitorDied("signal: 9 (SIGKILL)".into());
    let ends: [fn(&Machine) -> Outcome; 3] = [Machine::wait, Machine::close, |machine| {
        loop {
            if let Some(outcome) = machine.try_wait() {
                return outcome;
            }
        }
    }];
    for end in ends {
        let (starting, monitor) = held(|_, descriptors| {
            let (reply, kept) = answer(descriptors);
            wire::Reply::new(reply).done();
            kept
        });
        let machine = starting.done().unwrap();
        assert!(machine.try_wait().is_none());
        kill_the_process(&machine);
        assert_eq!(end(&machine).reason, dead());
        drop(machine);
        monitor.join().unwrap();
    }
}
