//! `nelly run` beside a guest that lies, as a whole program: it ends with a sentence and code 125,
//! in time, with bounded memory, and leaves nothing behind. The monitor is one whose guest is
//! played (`tests/src/bin/played-guest`), so that no guest has to boot.
//!
//! `NELLY_FULL_LIES` adds what takes longer: silence after each byte of an answer, and an agent
//! that never comes.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "killed/processes.rs"]
#[allow(dead_code, reason = "the other program needs more of it")]
mod processes;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nelly_tests::{Done, Watchdog, nelly, run};
use nix::sys::resource::{UsageWho, getrusage};

/// How long what ends with another process may take to do so.
const SETTLES: Duration = Duration::from_secs(20);
/// Longest time for a lie that is known at once.
const AT_ONCE: Duration = Duration::from_secs(20);
/// Longest time for one that is known by its silence: a call has a minute, an agent two to come.
const IN_TIME: Duration = Duration::from_secs(150);

/// By how much a process may be larger beside a lie than beside the truth, in KiB.
const GROWTH_MAX: i64 = 8 << 10;
/// Most bytes of what is said of a lie.
const SENTENCE_MOST: usize = 12 << 10;

/// Most bytes of an answer that are taken.
const ANSWER_MOST: u32 = 256 << 10;

/// Calls of a run, in their order.
const CALLS: [&str; 4] = ["Hello", "CreateContainer", "StartContainer", "Wait"];

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It fails.
    Fails,
    /// It fails when the time of a call is over.
    Silent,
    /// It fails or not: a guest may say so.
    Ends,
}

/// Where `nelly` runs, and what it has.
struct World {
    place: tempfile::TempDir,
    /// What says that this host's processor can run guests, where it cannot: `nelly run` asks.
    processor: Option<PathBuf>,
}

impl World {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let text = fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or("flags : vmx");
        let can = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        let processor = (!can).then(|| {
            let path = place.path().join("cpuinfo");
            fs::write(&path, text.replace(flags, &format!("{flags} vmx"))).unwrap();
            path
        });
        let world = Self { place, processor };
        fs::create_dir(world.home()).unwrap();
        world
    }

    fn home(&self) -> PathBuf {
        self.place.path().join("home")
    }

    /// `nelly run` beside a guest that tells this lie, or none.
    fn run(&self, lie: &str, limit: Duration) -> Done {
        let guest = tempfile::tempdir_in(self.place.path()).unwrap();
        let monitor = guest.path().join("played-guest");
        symlink(env!("CARGO_BIN_EXE_played-guest"), &monitor).unwrap();
        if !lie.is_empty() {
            fs::write(guest.path().join("lie"), lie).unwrap();
        }
        let mut command = nelly(&self.home(), &["run", "--rm", "--net", "none", "--", "true"]);
        command.env("NELLY_MONITOR", &monitor).env("XDG_RUNTIME_DIR", self.place.path());
        run(&mut self.on_a_processor(command), b"", limit)
    }

    /// The same command where the processor can run guests.
    fn on_a_processor(&self, command: Command) -> Command {
        let Some(processor) = &self.processor else { return command };
        let mut outer = Command::new("unshare");
        outer.arg("--mount");
        if !rustix::process::geteuid().is_root() {
            outer.arg("--map-root-user");
        }
        outer.args(["sh", "-c", "mount --bind \"$0\" /proc/cpuinfo && exec \"$@\""]).arg(processor);
        outer.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        outer
    }

    /// What there is below the home and the directory of sockets, but for what the first command
    /// that lists a sandbox makes there for good.
    fn files(&self) -> BTreeSet<PathBuf> {
        let (mut found, mut left) = (BTreeSet::new(), vec![self.place.path().to_owned()]);
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            found.insert(path);
        }
        for made in ["cache/version", "data", "data/sandboxes", "run"].map(|path| self.home().join(path)) {
            found.remove(&made);
        }
        for name in ["lock", "names", "version"] {
            found.remove(&self.home().join("data/sandboxes").join(name));
        }
        found
    }
}

/// The largest size in KiB that any process had that was waited for, or that it had waited for.
fn largest() -> i64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()
}

fn lies() -> Vec<(String, Fate)> {
    let mut lies = Vec::new();
    let mut add = |word: String, fate| lies.push((word, fate));
    let too_long = ANSWER_MOST + 1;
    for word in ["flood", "garbage-response", "refusal", "end", "noise 0", "noise 85", "noise 255"] {
        add(word.into(), Fate::Fails);
    }
    for long in [too_long, 4 << 20, (4 << 20) + 1, u32::MAX] {
        add(format!("length {long}"), Fate::Fails);
        add(format!("endless {long}"), Fate::Fails);
    }
    for stream in [0, 2, 99, 0x7fff_ffff, u32::MAX] {
        add(format!("stream {stream}"), Fate::Fails);
    }
    for kind in [0, 1, 3, 4, 255] {
        add(format!("kind {kind}"), Fate::Fails);
    }
    for count in [0, 1, 4, 9, 10, 11] {
        add(format!("cut {count}"), Fate::Fails);
    }
    add("garbage".into(), Fate::Fails);
    for field in 1..8 {
        for word in ["records", "string", "number"] {
            add(format!("{word} {field}"), Fate::Ends);
        }
    }
    add("silent".into(), Fate::Silent);
    add("drip".into(), Fate::Silent);
    add("length 5".into(), Fate::Silent);
    add(format!("length {ANSWER_MOST}"), Fate::Silent);
    for count in if is_full() { 0..12 } else { 9..10 } {
        add(format!("half {count}"), Fate::Silent);
    }
    lies
}

fn is_full() -> bool {
    std::env::var_os("NELLY_FULL_LIES").is_some()
}

/// What must hold of a run beside a lie.
fn judge(lie: &str, fate: Fate, done: &Done, truth: i64) {
    let (err, what) = (done.err(), format!("{lie}: {done:?}"));
    assert!(err.len() < SENTENCE_MOST, "{lie}: {} bytes", err.len());
    assert!(done.code == 125 || fate == Fate::Ends && done.code == 0, "{what}");
    if done.code == 125 {
        let sentence = err.strip_prefix("nelly: ").unwrap_or_else(|| panic!("{what}"));
        assert!(!sentence.trim().is_empty() && !err.contains("panicked"), "{what}");
        assert!(!err.contains('\u{1b}'), "{what}");
    }
    let grown = largest() - truth;
    assert!(grown < GROWTH_MAX, "{lie}: {grown} KiB more than beside the truth");
}

#[test]
fn a_run_ends_with_a_sentence_beside_every_lie_of_its_guest() {
    let _clock = Watchdog::new(Duration::from_secs(900));
    processes::adopt_orphans();
    let world = World::new();
    // The first one unpacks the image.
    for _ in 0..3 {
        let done = world.run("", AT_ONCE);
        assert_eq!((done.code, done.out().as_str(), done.err().as_str()), (0, "hello\n", ""));
    }
    let (truth, files) = (largest(), world.files());
    let mut all = Vec::new();
    for call in CALLS {
        for (lie, fate) in lies() {
            // A process may say nothing for ever.
            if (call, fate) != ("Wait", Fate::Silent) {
                all.push((format!("{call} {lie}"), fate));
            }
        }
    }
    all.push(("Ready cut".into(), Fate::Fails));
    all.push(("Ready flood".into(), Fate::Ends));
    all.push(("Connect refusal".into(), Fate::Fails));
    if is_full() {
        all.push(("Ready silent".into(), Fate::Silent));
    }
    thread::scope(|scope| {
        // Those that wait do so side by side, and beside the others.
        let silent = |(_, fate): &&(String, Fate)| *fate == Fate::Silent;
        let waiting: Vec<_> = all.iter().filter(silent).collect();
        let waiting = waiting.into_iter().map(|(lie, fate)| {
            let world = &world;
            (lie, *fate, scope.spawn(move || world.run(lie, IN_TIME)))
        });
        let waiting: Vec<_> = waiting.collect();
        for (lie, fate) in all.iter().filter(|one| !silent(one)) {
            judge(lie, *fate, &world.run(lie, AT_ONCE), truth);
        }
        for (lie, fate, run) in waiting {
            judge(lie, fate, &run.join().unwrap(), truth);
        }
    });
    println!(
        "{} lies; the largest process had {} KiB, and {truth} KiB beside the truth",
        all.len(),
        largest()
    );
    processes::none_is_left("after the lies");
    assert_eq!(world.files(), files);
    let done = world.run("", AT_ONCE);
    assert_eq!((done.code, done.out().as_str()), (0, "hello\n"), "{done:?}");
}
