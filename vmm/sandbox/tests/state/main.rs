//! State directories under real processes, which are killed and stopped.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nelly_image::trusted::{self, TrustedDir};
use nelly_sandbox::state::logs::{self, LogReader, LogWriter};
use nelly_sandbox::state::{
    Condition, Id, SandboxDir, SandboxRecord, SandboxState, Sandboxes, StateError, Status, Timestamp,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// What a child of these tests does: a word, the state directory, and a name.
const TASK: &str = "NELLY_STATE_TEST_TASK";

fn record(name: &str) -> SandboxRecord {
    serde_json::from_value(json!({
        "id": Id::random().unwrap(),
        "name": name,
        "created": Timestamp::now(),
        "image": { "reference": "builtin:busybox", "digest": "sha256:0", "disk_paths": ["/a"] },
        "container": {
            "process": { "args": ["sh"], "env": [], "cwd": "/", "user": "0", "terminal": false, "stdin": false },
            "hostname": name, "read_only": false, "tmpfs": [], "upper_bytes": 0, "seccomp": "default"
        },
        "machine": { "cpus": 1, "memory_bytes": 512 << 20, "kernel": "/k", "initrd": "/i", "monitor": "/m" },
    }))
    .unwrap()
}

/// Makes a sandbox that nobody holds. A child that another test starts at this moment has the lock,
/// too, until it becomes another program.
fn create(sandboxes: &Sandboxes, name: &str) -> SandboxDir {
    let (sandbox, lock) = sandboxes.draft(record(name)).unwrap().publish().unwrap();
    drop(lock);
    while sandbox.is_locked().unwrap() {
        std::thread::yield_now();
    }
    sandbox
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    // Longer than the address of a socket.
    let path = top.path().join("d".repeat(120)).join("sandboxes");
    (top, path)
}

/// A process of ours, killed at the test's end.
struct Process(Child);

impl Process {
    fn start(task: &str, path: &Path, name: &str) -> Self {
        let words = [task, path.to_str().unwrap(), name].join("\n");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(TASK, words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until it says so.
    fn ready(mut self) -> Self {
        let output = BufReader::new(self.0.stdout.as_mut().unwrap());
        assert!(output.lines().map(Result::unwrap).any(|line| line.ends_with("ready")));
        self
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn state(status: Status) -> SandboxState {
    SandboxState { status, ..SandboxState::created() }
}

/// Not a test by itself: what the processes of the tests do.
#[test]
#[expect(clippy::zombie_processes, reason = "one process is to outlive the one that started it")]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<_> = task.split('\n').collect();
    let [task, path, name] = words[..] else { panic!("{task}") };
    let sandboxes = Sandboxes::make(Path::new(path)).unwrap();
    let wait = || std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    match task {
        // Holds a sandbox with the status that its name says.
        "hold" => {
            let sandbox = sandboxes.find(name).unwrap();
            let lock = sandboxes.lock(&sandbox).unwrap();
            sandbox.write_state(&lock, &state(name.parse().unwrap())).unwrap();
            println!("ready");
            wait();
        }
        // Passes the lock on to another program, and ends.
        "pass-on" => {
            let lock = sandboxes.lock(&sandboxes.find(name).unwrap()).unwrap().into_fd();
            rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty()).unwrap();
            Command::new("cat").spawn().unwrap();
        }
        "create" => {
            println!("ready");
            for number in 0.. {
                let draft = sandboxes.draft(record(&format!("{name}{number}"))).unwrap();
                std::fs::write(draft.dir().path().join("disk.raw"), "x").unwrap();
                let (sandbox, lock) = draft.publish().unwrap();
                let sandbox = if number % 3 == 0 {
                    sandboxes.rename(&sandbox, &format!("r{name}{number}").parse().unwrap()).unwrap();
                    sandbox
                } else {
                    sandbox
                };
                if number % 2 == 0 {
                    sandboxes.remove(&sandbox, lock).unwrap();
                }
            }
        }
        "race" => {
            println!("ready");
            wait();
            match sandboxes.draft(record(name)).and_then(nelly_sandbox::state::directory::Draft::publish) {
                Ok(_) => println!("won"),
                Err(StateError::NameTaken { .. }) => println!("lost"),
                Err(error) => panic!("{error}"),
            }
        }
        // Writes lines until it is killed.
        "log" => {
            let sandbox = sandboxes.find(name).unwrap();
            let lock = sandboxes.lock(&sandbox).unwrap();
            sandbox.write_state(&lock, &state(Status::Running)).unwrap();
            let now = Timestamp::now();
            let mut writer = LogWriter::open(sandbox.logs().unwrap(), logs::MIN_CAP_BYTES, now).unwrap();
            println!("ready");
            for line in std::io::stdin().lines() {
                writer.write(logs::Stream::Stdout, (line.unwrap() + "\n").as_bytes(), Timestamp::now());
            }
        }
        other => panic!("no task {other}"),
    }
}

#[test]
fn what_ran_when_its_holder_was_killed_has_ended_uncleanly_and_can_start() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    // As after a reboot of the host: files say that it runs, and no process does.
    for status in [Status::Starting, Status::Running, Status::Paused, Status::Stopping] {
        let sandbox = create(&sandboxes, status.word());
        let mut holder = Process::start("hold", &path, status.word()).ready();
        assert_eq!(sandbox.condition().unwrap(), Condition::Status(status));
        assert!(matches!(sandboxes.lock(&sandbox), Err(StateError::Busy { .. })));
        holder.kill();
        assert_eq!(sandbox.condition().unwrap(), Condition::Unclean);
        let lock = sandboxes.lock(&sandbox).unwrap();
        sandbox.write_state(&lock, &state(Status::Running)).unwrap();
        assert_eq!(sandbox.condition().unwrap(), Condition::Status(Status::Running));
    }
}

#[test]
fn a_stopped_holder_delays_nobody() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    for name in ["running", "paused"] {
        create(&sandboxes, name);
    }
    let holder = Process::start("hold", &path, "running").ready();
    holder.signal(Signal::STOP);
    // A command that was stopped in the middle of something is as little in the way.
    let lock = TrustedDir::open(&path).unwrap().unwrap().open_or_make("lock").unwrap();
    assert!(trusted::try_lock(&lock).unwrap());
    let found = sandboxes.list().unwrap();
    let running = found.iter().find(|one| one.name.as_ref().unwrap().as_str() == "running").unwrap();
    assert!(running.locked && found.len() == 2);
    assert_eq!(running.details.as_ref().unwrap().condition, Condition::Status(Status::Running));
    assert_eq!(sandboxes.find("running").unwrap().condition().unwrap(), Condition::Status(Status::Running));
    assert!(Sandboxes::open(&path).unwrap().is_some());
}

#[test]
fn a_lock_outlives_the_process_that_passed_it_on() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let sandbox = create(&sandboxes, "web");
    let mut first = Process::start("pass-on", &path, "web");
    // It ends when the second process, which has its output, does, unless that holds the input.
    let input = first.0.stdin.take().unwrap();
    first.0.wait().unwrap();
    assert!(sandbox.is_locked().unwrap());
    drop(input);
    first.0.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
    while sandbox.is_locked().unwrap() {
        std::thread::yield_now();
    }
}

#[test]
fn creators_that_are_killed_at_any_moment_leave_nothing() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let mut pause = 1_u64;
    for round in 0..50 {
        let mut creator = Process::start("create", &path, &format!("k{round}n")).ready();
        // Some arbitrary moment in its work.
        pause = pause.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(std::time::Duration::from_micros(pause >> 51));
        creator.kill();
        sandboxes.clean().unwrap();
        for one in sandboxes.list().unwrap() {
            let details = one.details.unwrap();
            let sandbox = sandboxes.find(details.record.name.as_str()).unwrap();
            assert_eq!((sandbox.id(), one.locked), (one.id, false));
            assert!(sandbox.dir().path().join("disk.raw").exists());
            sandboxes.remove(&sandbox, sandboxes.lock(&sandbox).unwrap()).unwrap();
        }
        let left = std::fs::read_dir(&path).unwrap().count();
        assert_eq!(
            (left, std::fs::read_dir(path.join("names")).unwrap().count()),
            (3, 0),
            "in {}",
            path.display()
        );
    }
}

#[test]
fn of_several_creators_of_one_name_one_wins() {
    let (_top, path) = place();
    for round in 0..5 {
        let name = format!("n{round}");
        let mut racers: Vec<_> = (0..6).map(|_| Process::start("race", &path, &name).ready()).collect();
        racers.iter_mut().for_each(|racer| drop(racer.0.stdin.take()));
        let won = racers.iter_mut().filter_map(|racer| {
            let mut said = String::new();
            racer.0.stdout.as_mut().unwrap().read_to_string(&mut said).unwrap();
            assert!(racer.0.wait().unwrap().success());
            said.contains("won").then_some(())
        });
        assert_eq!(won.count(), 1);
    }
    assert_eq!(Sandboxes::make(&path).unwrap().list().unwrap().len(), 5);
}

#[test]
fn removing_and_renaming_at_once_ends_in_one_of_both() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    for _ in 0..100 {
        create(&sandboxes, "web");
        std::thread::scope(|scope| {
            let other = || Sandboxes::open(&path).unwrap().unwrap();
            scope.spawn(move || {
                let sandboxes = other();
                match sandboxes.find("web").and_then(|web| sandboxes.rename(&web, &"new".parse().unwrap())) {
                    Ok(()) | Err(StateError::Missing { .. }) => {}
                    // Removed between finding and reading it.
                    Err(error) => panic!("{error}"),
                }
            });
            let sandbox = sandboxes.find("web").or_else(|_| sandboxes.find("new")).unwrap();
            sandboxes.remove(&sandbox, sandboxes.lock(&sandbox).unwrap()).unwrap();
        });
        assert!(sandboxes.list().unwrap().is_empty() && sandboxes.clean().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(path.join("names")).unwrap().count(), 0);
    }
}

#[test]
fn a_follower_reads_on_and_ends_with_the_holder() {
    let (_top, path) = place();
    let sandboxes = Sandboxes::make(&path).unwrap();
    let sandbox = create(&sandboxes, "web");
    let mut holder = Process::start("log", &path, "web").ready();
    let mut input = holder.0.stdin.take().unwrap();
    writeln!(input, "line 0").unwrap();
    let mut reader = LogReader::new(sandbox.logs().unwrap());
    let mut seen = 0;
    // Each line is written when the one before was seen, so nothing is found by chance.
    let each = |record: logs::Record<'_>| -> Result<(), StateError> {
        assert_eq!(
            record.content,
            format!("line {seen}{}", "x".repeat(if seen == 0 { 0 } else { 3000 })).as_bytes()
        );
        seen += 1;
        // Through several segments.
        if seen < 100 {
            writeln!(input, "line {seen}{}", "x".repeat(3000)).unwrap();
        } else {
            holder.kill();
        }
        Ok(())
    };
    logs::follow(&sandbox, &sandbox.logs().unwrap(), &mut reader, || Ok(false), each, || Ok(())).unwrap();
    assert_eq!(seen, 100);
    assert!(std::fs::read_dir(sandbox.logs().unwrap().path()).unwrap().count() > 2);
}
