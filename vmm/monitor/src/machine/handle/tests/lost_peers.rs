//! Machines whose queues a peer of vhost-user serves that dies, is silent or does not stop: they
//! are saved, or it is said why not, and go on.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use super::networks::{drive, network, until};
use super::snapshot::files;
use super::*;
use crate::config::NetworkLink;
use crate::machine::DeviceState;
use crate::sys::vhost_user::Channel;
use crate::virtio::net::spec::feature::STATUS;
use crate::virtio::net::tests::vhost_user_peer::{Said, play};

/// Asks where a ring stands, which stops it.
const STOP: u32 = 11;
/// Puts a ring into use: the last of what gives a pair away.
const ENABLE: u32 = 18;

type Says = fn(u32, u32) -> Said;

/// A peer, and what it is told to stop by, each time. `says` hears the request, and how often that
/// came before.
fn peer(says: Says) -> (UnixStream, JoinHandle<()>, Receiver<()>) {
    let (tell, told) = mpsc::channel();
    let counts = [const { AtomicU32::new(0) }; 32];
    let (near, thread) = play(move |request| {
        let before = counts[request as usize].fetch_add(1, Ordering::Relaxed);
        if request == STOP {
            // A test that has seen enough is gone.
            let _ = tell.send(());
        }
        says(request, before)
    });
    (near, thread, told)
}

/// Whether this system has what a peer needs.
fn is_possible() -> bool {
    let (near, _far) = UnixStream::pair().unwrap();
    match Channel::new(near.into()) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            eprintln!("left out: {error}");
            false
        }
        _ => true,
    }
}

/// A machine with this peer, whose guest has a driver and runs.
fn driven(fake: &Fake, peer: UnixStream, snapshot: Option<Snapshot>) -> Machine {
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    config.networks = vec![network("net0", NetworkLink::VhostUser(resources.add(peer)))];
    begin_with(fake, &config, resources, snapshot).unwrap()
}

fn link(devices: &[DeviceState]) -> (bool, u16) {
    let network = devices[0].network.unwrap();
    (network.link_up, network.peer_pairs)
}

/// The guest goes on: it does one step more than it had done.
fn goes_on(fake: &Fake, machine: &Machine) {
    let done = fake.record().answers.len();
    fake.script(0, [sign()]);
    assert!(fake.wait_until(|record| record.answers.len() > done));
    assert_eq!(machine.state().unwrap(), State::Running);
}

fn script(fake: &Fake) {
    fake.script(0, drive(u32::try_from(STATUS).unwrap()));
}

#[test]
fn a_machine_whose_peer_is_lost_is_saved_or_says_why_and_goes_on() {
    if !is_possible() {
        return;
    }
    // Whoever has not said that it stopped may still write to the memory.
    let cases: [(&str, Says, bool); 8] = [
        (
            "dies when it is told to stop",
            |request, _| if request == STOP { Said::End } else { Said::Right },
            true,
        ),
        ("closes its side alone", |request, _| if request == STOP { Said::Mute } else { Said::Right }, false),
        ("says something else", |request, _| if request == STOP { Said::Other } else { Said::Right }, false),
        ("is silent", |request, _| if request == STOP { Said::Silence } else { Said::Right }, false),
        ("answers in drops", |request, _| if request == STOP { Said::Drops } else { Said::Right }, false),
        (
            "does not stop its second ring",
            |request, before| if (request, before) == (STOP, 1) { Said::Silence } else { Said::Right },
            false,
        ),
        (
            "says where another ring stands",
            |request, _| {
                if request == STOP { Said::Words(vec![7, 0, 0, 0, 0, 0, 0, 0]) } else { Said::Right }
            },
            false,
        ),
        (
            "refuses when it has the memory",
            |request, _| {
                if request == ENABLE { Said::Words(1_u64.to_ne_bytes().to_vec()) } else { Said::Right }
            },
            false,
        ),
    ];
    // Those that are waited for are waited for at once.
    std::thread::scope(|scope| {
        for (what, says, is_saved) in cases {
            scope.spawn(move || lost(what, says, is_saved));
        }
    });
}

fn lost(what: &str, says: Says, is_saved: bool) {
    let (near, thread, stops) = peer(says);
    let fake = Fake::new();
    script(&fake);
    let machine = driven(&fake, near, None);
    let devices = until(&machine, |devices| link(devices).1 == 1 || !link(devices).0);
    if link(&devices).0 {
        std::thread::scope(|scope| {
            let paused = scope.spawn(|| machine.pause().unwrap());
            stops.recv().unwrap();
            // Whoever looks meanwhile waits for no peer.
            assert!([State::Pausing, State::Paused].contains(&machine.inspect().unwrap().state), "{what}");
            paused.join().unwrap();
        });
    } else {
        machine.pause().unwrap();
    }
    let devices = machine.inspect().unwrap().devices;
    assert_eq!(link(&devices).1, 0, "{what}");
    let (to, from) = files();
    match machine.save(to) {
        Ok(()) => assert!(is_saved, "{what}"),
        Err(ControlError::Refused(error)) => {
            let text = error.to_string();
            let says = text.contains("whose vhost-user peer has not said that it stopped cannot be saved");
            assert!(!is_saved && says, "{what}: {text}");
        }
        Err(other) => panic!("{what}: {other:?}"),
    }
    // Nothing was written of a machine that is not saved.
    let state = std::fs::File::from(from.state.try_clone().unwrap());
    assert_eq!(state.metadata().unwrap().len() > 0, is_saved, "{what}");
    for _ in 0..2 {
        machine.resume().unwrap();
        goes_on(&fake, &machine);
        let devices = until(&machine, |devices| !link(devices).0);
        assert!(
            !devices[0].needs_reset && devices[0].faults.iter().all(|fault| fault.kind == "host"),
            "{what}"
        );
        // The answer is the same the next time.
        machine.pause().unwrap();
        assert_eq!(machine.save(files().0).is_ok(), is_saved, "{what}");
    }
    drop(machine);
    thread.join().unwrap();
    assert_gone(&fake);
    if is_saved {
        // With another peer, which serves it, it goes on elsewhere.
        let (near, thread, _stops) = peer(|_, _| Said::Right);
        let fake = Fake::new();
        let machine = driven(&fake, near, Some(from));
        machine.resume().unwrap();
        goes_on(&fake, &machine);
        until(&machine, |devices| link(devices) == (true, 1));
        drop(machine);
        thread.join().unwrap();
        assert_gone(&fake);
    }
}

#[test]
fn a_peer_that_dies_while_the_machine_runs_or_is_paused_is_no_reason_not_to_save() {
    if !is_possible() {
        return;
    }
    for dies_in_a_pause in [false, true] {
        let (near, thread, _stops) = peer(|_, _| Said::Right);
        let cut = near.try_clone().unwrap();
        let fake = Fake::new();
        script(&fake);
        let machine = driven(&fake, near, None);
        until(&machine, |devices| link(devices) == (true, 1));
        if dies_in_a_pause {
            machine.pause().unwrap();
        }
        cut.shutdown(std::net::Shutdown::Both).unwrap();
        thread.join().unwrap();
        if !dies_in_a_pause {
            until(&machine, |devices| link(devices) == (false, 0));
            machine.pause().unwrap();
        }
        machine.save(files().0).unwrap();
        machine.resume().unwrap();
        goes_on(&fake, &machine);
        until(&machine, |devices| link(devices) == (false, 0));
        drop(machine);
        assert_gone(&fake);
    }
}

#[test]
fn a_peer_that_takes_its_time_is_waited_for_and_serves_again() {
    if !is_possible() {
        return;
    }
    let late =
        |request, _| if request == STOP { Said::Late(Duration::from_millis(200)) } else { Said::Right };
    let (near, thread, _stops) = peer(late);
    let fake = Fake::new();
    script(&fake);
    let machine = driven(&fake, near, None);
    for _ in 0..2 {
        until(&machine, |devices| link(devices) == (true, 1));
        machine.pause().unwrap();
        machine.save(files().0).unwrap();
        machine.resume().unwrap();
        goes_on(&fake, &machine);
    }
    drop(machine);
    thread.join().unwrap();
    assert_gone(&fake);
}

#[test]
fn what_a_peer_moves_is_counted_by_nobody_and_no_zero_stands_for_it() {
    if !is_possible() {
        return;
    }
    let (near, thread, _stops) = peer(|_, _| Said::Right);
    let fake = Fake::new();
    script(&fake);
    let machine = driven(&fake, near, None);
    let devices = until(&machine, |devices| link(devices) == (true, 1));
    let [receive, transmit, control] = devices[0].queues[..] else { panic!("{devices:?}") };
    for queue in [receive, transmit] {
        assert_eq!((queue.chains, queue.next_available, queue.next_used), (None, None, None));
        assert_eq!((queue.size, queue.driver_available), (Some(16), Some(0)));
    }
    // What is served here is counted here.
    assert_eq!(control.chains, Some(0));
    let network = devices[0].network.unwrap();
    assert_eq!((network.sent, network.received), (None, None));
    // In a pause it is known where the queues stand, and not what has come until then.
    machine.pause().unwrap();
    let (to, from) = files();
    machine.save(to).unwrap();
    let devices = machine.inspect().unwrap().devices;
    let queue = devices[0].queues[0];
    assert_eq!((queue.chains, queue.next_available, queue.next_used), (None, Some(0), Some(0)));
    assert_eq!(devices[0].network.unwrap().sent, None);
    drop(machine);
    thread.join().unwrap();
    // Nor after a start from what was saved, before there is somebody else who serves it.
    let fake = Fake::new();
    let (near, thread, _stops) = peer(|_, _| Said::Right);
    let machine = driven(&fake, near, Some(from));
    let devices = machine.inspect().unwrap().devices;
    assert_eq!((devices[0].queues[1].chains, devices[0].queues[2].chains), (None, Some(0)));
    drop(machine);
    thread.join().unwrap();
}
