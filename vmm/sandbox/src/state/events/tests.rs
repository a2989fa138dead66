use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;
use crate::state::directory::SandboxLock;
use crate::state::record::NetworkDown;
use crate::state::record::tests::example;
use crate::state::{SandboxDir, Sandboxes, StateError};

/// Ends a test that hangs.
const SOON: Duration = Duration::from_secs(60);

fn at(second: u64) -> Timestamp {
    Timestamp::from_unix_ns(second * 1_000_000_000)
}

/// A sandbox as it is created, and the next state of it.
fn state(status: Status) -> SandboxState {
    let holder = Some(HolderRecord { pid: 1, start_ticks: 1 });
    SandboxState { status, holder, ..SandboxState::created() }
}

fn exit(code: u8) -> Option<ExitRecord> {
    Some(ExitRecord { code, reason: "exited".to_owned() })
}

/// A look at one sandbox in this state.
fn look(record: &crate::state::SandboxRecord, state: SandboxState, locked: bool) -> Look {
    let condition = state.condition(locked);
    let details = Ok(Details { record: record.clone(), state, condition });
    let listed = Listed { id: record.id, name: Some(record.name.clone()), locked, details };
    Look::new(vec![listed], &Look::default())
}

fn shown(events: &[Event]) -> Vec<String> {
    let line = |event: &Event| {
        let line = event.to_string();
        let words: Vec<&str> = line.split(' ').collect();
        let seconds = event.time.unix_ns() / 1_000_000_000;
        [vec![seconds.to_string().as_str()], vec![words[1]], words[4..].to_vec()].concat().join(" ")
    };
    events.iter().map(line).collect()
}

fn connected(published: &[&str], down: Option<u64>) -> NetworkState {
    let published = published.iter().map(|port| (*port).to_owned()).collect();
    let down = down.map(|since| NetworkDown { since: at(since), reason: "killed".to_owned() });
    NetworkState { published, down }
}

#[test]
fn what_changed_between_two_looks_tells_what_happened() {
    let record = crate::state::SandboxRecord { created: at(10), ..example("web") };
    let created = || look(&record, SandboxState::created(), false);
    let starting = || look(&record, state(Status::Starting), true);
    let ran = SandboxState { started_at: Some(at(20)), ..state(Status::Running) };
    let running = || look(&record, ran.clone(), true);
    let ended = SandboxState {
        status: Status::Exited,
        holder: None,
        finished_at: Some(at(30)),
        exit: exit(3),
        ..ran.clone()
    };
    let waits = SandboxState { status: Status::Starting, holder: ran.holder, ..ended.clone() };
    let again = SandboxState {
        restarts: 1,
        started_at: Some(at(40)),
        exit: None,
        status: Status::Running,
        ..waits.clone()
    };
    let paused = SandboxState { status: Status::Paused, ..ran.clone() };
    let health = |status, since| {
        let health = Some(HealthRecord { status, since: at(since) });
        look(&record, SandboxState { health, ..ran.clone() }, true)
    };
    let (starts, good, bad) = (HealthStatus::Starting, HealthStatus::Healthy, HealthStatus::Unhealthy);
    let network = |published: &[&str], down: Option<u64>| {
        look(&record, SandboxState { network: Some(connected(published, down)), ..ran.clone() }, true)
    };
    let other = SandboxState {
        holder: Some(HolderRecord { pid: 2, start_ticks: 2 }),
        started_at: Some(at(50)),
        ..ran.clone()
    };
    let table: [(Look, Look, &[&str]); 25] = [
        (Look::default(), created(), &["10 created"]),
        (created(), created(), &[]),
        (created(), starting(), &["99 started"]),
        (starting(), running(), &["20 running"]),
        (
            created(),
            look(&record, ended.clone(), false),
            &["20 started", "20 running", "30 exited code=3 reason=exited"],
        ),
        (running(), look(&record, waits.clone(), true), &["30 exited code=3 reason=exited"]),
        (
            look(&record, waits, true),
            look(&record, again.clone(), true),
            &["40 restarted restarts=1", "40 running"],
        ),
        // Seen late: the code of the first end is overwritten.
        (
            running(),
            look(&record, again, true),
            &["30 exited reason=unknown", "40 restarted restarts=1", "40 running"],
        ),
        (running(), look(&record, paused.clone(), true), &["99 paused"]),
        (look(&record, paused.clone(), true), running(), &["99 unpaused"]),
        (starting(), health(starts, 20), &["20 running"]),
        (health(starts, 20), health(good, 50), &["50 health_status health=healthy"]),
        (health(good, 50), health(bad, 60), &["60 health_status health=unhealthy"]),
        // It was unhealthy in between.
        (health(good, 50), health(good, 70), &["70 health_status health=healthy"]),
        (health(bad, 60), health(bad, 60), &[]),
        // What a machine begins with is not told.
        (starting(), network(&["a"], None), &["20 running"]),
        (network(&["a"], None), network(&["a", "b"], None), &["99 network change=port_added port=b"]),
        (
            network(&["a", "b"], None),
            network(&["c"], Some(70)),
            &[
                "70 network change=down reason=killed",
                "99 network change=port_removed port=a",
                "99 network change=port_removed port=b",
                "99 network change=port_added port=c",
            ],
        ),
        (network(&["a"], Some(70)), network(&["a"], Some(70)), &[]),
        (network(&["a"], None), running(), &[]),
        (starting(), network(&[], Some(70)), &["20 running", "70 network change=down reason=killed"]),
        (running(), look(&record, ran.clone(), false), &["99 exited reason=unclean"]),
        (
            look(&record, ran.clone(), false),
            look(&record, other.clone(), true),
            &["50 started", "50 running"],
        ),
        // Its keeper was killed, and it was started, all between two looks.
        (running(), look(&record, other, true), &["50 exited reason=unknown", "50 started", "50 running"]),
        (look(&record, ended, false), Look::default(), &["99 removed"]),
    ];
    for (index, (before, after, expected)) in table.into_iter().enumerate() {
        assert_eq!(shown(&after.since(&before, at(99))), expected, "{index}");
    }
    let named = crate::state::SandboxRecord { name: "db".parse().unwrap(), ..record.clone() };
    let events = look(&named, SandboxState::created(), false).since(&created(), at(99));
    assert_eq!((shown(&events), events[0].name.as_str()), (vec!["99 renamed from=web".to_owned()], "db"));
    assert_eq!(shown(&Look::default().since(&running(), at(99))), ["99 exited reason=unknown", "99 removed"]);
    assert_eq!(
        shown(&health(bad, 60).past()),
        ["10 created", "20 running", "60 health_status health=unhealthy"]
    );
    let past = shown(&network(&["a"], Some(70)).past());
    assert_eq!(past, ["10 created", "20 running", "70 network change=down reason=killed"]);
    assert_eq!(shown(&look(&record, ran, true).past()), ["10 created", "20 running"]);
}

/// Events as they are told by a watch beside the test.
struct Watched {
    came: Receiver<Event>,
    ends: std::thread::JoinHandle<()>,
}

impl Watched {
    fn new(path: &std::path::Path, since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        let (tell, came) = channel();
        let (ready, begun) = channel();
        let path = path.to_owned();
        let ends = std::thread::spawn(move || {
            let sandboxes = Sandboxes::open(&path).unwrap().unwrap();
            ready.send(()).unwrap();
            let told = watch(&sandboxes, since, until, |event| {
                // The test has seen what it waited for.
                tell.send(event.clone()).map_err(|_| StateError::Missing { word: "reader".to_owned() })
            });
            assert!(until.is_none() || told.is_ok(), "{told:?}");
        });
        begun.recv().unwrap();
        Self { came, ends }
    }

    fn next(&self) -> String {
        let event = self.came.recv_timeout(SOON).expect("an event");
        let line = event.to_string();
        let mut words = line.split(' ');
        words.next().unwrap().parse::<Timestamp>().unwrap();
        assert_eq!(words.nth(1), Some(event.id.short().as_str()));
        let rest: Vec<&str> = line.split(' ').skip(3).collect();
        format!("{} {}", event.what.word(), rest.join(" "))
    }
}

fn made(sandboxes: &Sandboxes, name: &str) -> (SandboxDir, SandboxLock) {
    sandboxes.draft(example(name)).unwrap().publish().unwrap()
}

#[test]
fn a_watch_tells_what_is_done_to_state_directories() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("sandboxes");
    let sandboxes = Sandboxes::make(&path).unwrap();
    let (old, lock) = made(&sandboxes, "old");
    let watched = Watched::new(&path, Some(Timestamp::default()), None);
    // What is there already is told where it is asked for: so the watch has begun.
    assert_eq!(watched.next(), "created old");
    let (web, held) = made(&sandboxes, "web");
    assert_eq!(watched.next(), "created web");
    let write = |state: &SandboxState| web.write_state(&held, state).unwrap();
    let now = Timestamp::now;
    write(&state(Status::Starting));
    assert_eq!(watched.next(), "started web");
    let mut ran = SandboxState { started_at: Some(now()), ..state(Status::Running) };
    write(&ran);
    assert_eq!(watched.next(), "running web");
    for (status, word) in [(Status::Paused, "paused web"), (Status::Running, "unpaused web")] {
        write(&SandboxState { status, ..ran.clone() });
        assert_eq!(watched.next(), word);
    }
    sandboxes.rename(&web, &"db".parse().unwrap()).unwrap();
    assert_eq!(watched.next(), "renamed db from=web");
    (ran.status, ran.finished_at, ran.exit) = (Status::Starting, Some(now()), exit(4));
    write(&ran);
    assert_eq!(watched.next(), "exited db code=4 reason=exited");
    (ran.status, ran.started_at, ran.exit, ran.restarts) = (Status::Running, Some(now()), None, 1);
    write(&ran);
    assert_eq!(watched.next(), "restarted db restarts=1");
    assert_eq!(watched.next(), "running db");
    // A keeper that is killed writes nothing: its lock alone tells.
    drop(held);
    assert_eq!(watched.next(), "exited db reason=unclean");
    sandboxes.remove(&old, lock).unwrap();
    assert_eq!(watched.next(), "removed old");
    // Many at once, more than a queue of the system need hold: all that stands in files is told.
    for index in 0..100 {
        drop(made(&sandboxes, &format!("n{index}")));
    }
    let mut came: Vec<String> = (0..100).map(|_| watched.next()).collect();
    came.sort();
    let mut expected: Vec<String> = (0..100).map(|index| format!("created n{index}")).collect();
    expected.sort();
    assert_eq!(came, expected);
    drop(watched);
    drop(sandboxes);
}

#[test]
fn a_watch_ends_in_time_and_tells_the_past_that_files_still_hold() {
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("sandboxes");
    let sandboxes = Sandboxes::make(&path).unwrap();
    let (web, lock) = made(&sandboxes, "web");
    let began = Timestamp::now();
    let (started_at, finished_at) = (Some(began), Some(Timestamp::now()));
    let ended = SandboxState { started_at, finished_at, exit: exit(7), ..SandboxState::created() };
    web.write_state(&lock, &SandboxState { status: Status::Exited, ..ended }).unwrap();
    let told = |since, until| {
        let watched = Watched::new(&path, since, Some(until));
        watched.ends.join().unwrap();
        watched.came.try_iter().map(|event| event.what.word()).collect::<Vec<_>>()
    };
    let now = Timestamp::now();
    assert_eq!(told(Some(Timestamp::default()), now), ["created", "running", "exited"]);
    assert_eq!(told(Some(began), now), ["running", "exited"]);
    assert!(told(Some(Timestamp::default()), web.record().unwrap().created).is_empty());
    assert!(told(None, now).is_empty());
    let soon = Timestamp::now().after(Duration::from_millis(100));
    assert!(told(None, soon).is_empty() && Timestamp::now() >= soon);
}
