//! Machines of `nelly boot -d` whose guest writes to a qcow2 disk, flushes, and says so: commands,
//! keepers, monitors and network processes are killed.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nelly_disk::{Follow, Format, NewImage, check_image, create_image, open_image};
use nelly_tests::random::Numbers;
use nelly_tests::{Done, Watchdog, nelly, run, top, wait};
use serde_json::Value;

use crate::{LIMIT, TEST_LIMIT, alone, moments, processes};

/// Of the guest (`tests/guests/load/ledger.c`): its entries' places, the distance of two, and how
/// two entries that follow each other are apart.
const PLACES: u64 = 1024;
const CLUSTER: u64 = 64 << 10;
const STEP: u64 = 7919;

/// What a machine that runs has, beside its network.
const HELD: [&str; 2] = ["nelly-keeper", "nelly-monitor"];

/// An entry on the disk: the life of the guest that wrote it, and its number.
type Entry = (u64, u64);

struct Home {
    place: tempfile::TempDir,
    kernel: String,
    /// The last entry that the guest is known to have flushed to the disk that is there.
    flushed: Option<Entry>,
    _clock: Watchdog,
}

impl Home {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let kernel = place.path().join("guest");
        let built = Command::new(top().join("tests/guests/load/build.sh")).arg(&kernel).status().unwrap();
        assert!(built.success());
        let kernel = kernel.to_str().unwrap().to_owned();
        Self { place, kernel, flushed: None, _clock: Watchdog::new(TEST_LIMIT) }
    }

    fn path(&self) -> &Path {
        self.place.path()
    }

    fn disk(&self) -> PathBuf {
        self.path().join("box.qcow2")
    }

    /// `nelly WORDS`, whatever becomes of it.
    fn ask(&self, words: &[&str]) -> Done {
        run(&mut nelly(self.path(), words), b"", LIMIT)
    }

    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        self.ask(words).expect(0).out().trim_end().to_owned()
    }

    /// What `nelly ps` says of the only machine.
    fn status(&self) -> String {
        let listed: Value = serde_json::from_str(&self.out(&["ps", "-a", "--json"])).unwrap();
        let listed = listed.as_array().unwrap();
        assert!(listed.len() <= 1, "{listed:?}");
        listed.first().map_or_else(|| "none".to_owned(), |one| one["status"].as_str().unwrap().to_owned())
    }

    /// An empty disk in place of the one that is there.
    fn renew_disk(&mut self) {
        let disk = self.disk();
        let _none = std::fs::remove_file(&disk);
        let new =
            NewImage { format: Format::Qcow2, size: Some(PLACES * CLUSTER), cluster_bits: 16, backing: None };
        create_image(&disk, &new).unwrap();
        self.flushed = None;
    }

    fn boot_words(&self) -> Vec<String> {
        let disk = self.disk().display().to_string();
        [
            "boot",
            "-d",
            "--name=box",
            "--kernel",
            &self.kernel,
            "--append=ledger",
            "-m",
            "16M",
            "--net=user",
            "--disk",
            &disk,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Reads the log for what the guest has flushed.
    fn read_log(&mut self) {
        let said = self.ask(&["logs", "box"]);
        let text = said.out();
        assert!(!text.contains("load: "), "{text}");
        // What was cut off is no number.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut life = 0;
        for line in whole.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.strip_prefix("life ").map(str::parse) {
                Some(Ok(number)) => life = number,
                Some(Err(_)) => panic!("{line:?}"),
                // The log begins anew where it is full, in the middle of a life.
                None if life == 0 => {}
                None => self.flushed = self.flushed.max(Some((life, line.parse().unwrap()))),
            }
        }
    }

    /// Asserts that the disk, which nobody uses, is sound and has what was flushed.
    #[track_caller]
    fn check_disk(&self, what: &str) {
        let report = check_image(&self.disk(), &mut |_, _| {}).unwrap();
        assert_eq!(report.corruptions, 0, "{what}: {report:?}");
        let Some((life, last)) = self.flushed else { return };
        let disk = open_image(&self.disk(), Format::Qcow2, true, Follow::Beside).unwrap();
        for number in last.saturating_sub(PLACES - 1).max(1)..=last {
            let mut sector = vec![0; 512];
            disk.read_exact_at(&mut sector, number * STEP % PLACES * CLUSTER).unwrap();
            let mut pairs = sector.chunks_exact(16).map(entry);
            let found = pairs.next().unwrap();
            assert!(pairs.all(|pair| pair == found), "{what}: half an entry of {number}: {sector:?}");
            // What was written later may be there instead, in the same place.
            let same_place = found.1 % PLACES == number % PLACES;
            assert!(
                same_place && found >= (life, number),
                "{what}: {found:?} in place of {:?}",
                (life, number)
            );
        }
    }

    /// The names in a directory, which need not be there.
    fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path().join(path)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// What must hold soon after every moment: a keeper whose client was killed while it waited
    /// ends, too, and what was true before that is not what stays.
    #[track_caller]
    fn check(&mut self, what: &str) {
        let mut status = String::new();
        let seen = Cell::new(String::new());
        processes::settles(
            || format!("{what}: {}", seen.take()),
            || {
                processes::reap();
                status = self.status();
                let mut left: Vec<_> = processes::all().into_iter().map(|(_, name)| name).collect();
                left.sort();
                left.dedup();
                let all_or_none = match status.as_str() {
                    // It goes on without its network, which is two processes or none.
                    "running" | "paused" => left.iter().filter(|name| *name != "nelly-usernet").eq(HELD),
                    "starting" | "stopping" => false,
                    _ => left.is_empty(),
                };
                // Sockets of a keeper that was killed are for `nelly gc` to remove, once.
                let cleaned = self.ask(&["gc"]);
                let nothing = cleaned.code == 0 && cleaned.stdout.is_empty();
                let sockets = self.names("run");
                seen.set(format!("{status}, {left:?}, {sockets:?}, {}", cleaned.err()));
                all_or_none && nothing && sockets.len() == usize::from(runs(&status))
            },
        );
        let sandboxes = self.names("data/sandboxes");
        let is_draft = |name: &String| name.starts_with("new-") || name.starts_with("gone-");
        assert!(!sandboxes.iter().any(is_draft), "{what}: {sandboxes:?}");
        let names = self.names("data/sandboxes/names").len();
        assert_eq!(names, usize::from(status != "none"), "{what}");
        if status != "none" {
            self.read_log();
        }
        if !runs(&status) && self.disk().exists() {
            self.check_disk(what);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Of a test that failed, too.
        processes::all().into_iter().for_each(|(pid, _)| processes::kill(pid));
    }
}

fn runs(status: &str) -> bool {
    ["running", "paused"].contains(&status)
}

/// A pair of words.
fn entry(bytes: &[u8]) -> Entry {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

/// What can be done with the machine `box`, by what it is.
fn commands(status: &str) -> &'static [&'static [&'static str]] {
    match status {
        "none" => &[&["boot"]],
        "running" => &[
            &["stop", "-t", "1s", "box"],
            &["kill", "box"],
            &["restart", "-t", "1s", "box"],
            &["rm", "-f", "box"],
            &["pause", "box"],
            &["logs", "box"],
            &["inspect", "box"],
        ],
        "paused" => &[&["unpause", "box"], &["unpause", "box"], &["rm", "-f", "box"]],
        _ => &[&["start", "box"], &["start", "box"], &["boot"], &["rm", "-f", "box"]],
    }
}

#[test]
fn what_the_guest_flushed_stays_and_nothing_else_does() {
    let _alone = alone();
    let mut random = Numbers::seeded("NELLY_KILLS_SEED");
    let mut home = Home::new();
    // Each in its turn.
    let victims = ["nelly-monitor", "nelly-keeper", "nelly", "nelly-usernet"];
    let (mut verified, mut killed) = (0, [0; 4]);
    for moment in 0..moments(5) {
        let before = home.status();
        let words = *random.of(commands(&before));
        let boot = home.boot_words();
        let words: Vec<&str> =
            if words == ["boot"] { boot.iter().map(String::as_str).collect() } else { words.to_vec() };
        if before == "none" {
            home.renew_disk();
        }
        let turn = usize::try_from(moment).unwrap() % victims.len();
        // About as long as the command takes.
        let within = if ["boot", "start", "restart"].contains(&words[0]) { 120 } else { 40 };
        let delay = Duration::from_millis(random.below(within));
        let what = format!(
            "moment {moment}: {before}, {:?}, {} after {delay:?}",
            &words[..words.len().min(3)],
            victims[turn]
        );
        println!("{what}");
        let mut command = nelly(home.path(), &words);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(delay);
        let found: Vec<_> = processes::all().into_iter().filter(|(_, name)| name == victims[turn]).collect();
        match found.is_empty() {
            true => child.kill().unwrap(),
            false => {
                killed[turn] += 1;
                // Of a network's two, one.
                processes::kill(random.of(&found).0);
            }
        }
        wait(&mut child, LIMIT);
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert!(!said.contains("panicked"), "{what}: {said}");
        home.check(&what);
        verified = verified.max(home.flushed.map_or(0, |(_, number)| number));
    }
    // In the end everything works as on the first day.
    home.out(&["rm", "-f", "box"]);
    home.renew_disk();
    let boot = home.boot_words();
    home.out(&boot.iter().map(String::as_str).collect::<Vec<_>>());
    processes::settles(
        || "entries".to_owned(),
        || {
            home.read_log();
            home.flushed.is_some_and(|(_, number)| number > PLACES / 8)
        },
    );
    home.out(&["kill", "box"]);
    // That does not wait for the end.
    home.out(&["wait", "box"]);
    home.check("the end");
    home.out(&["rm", "box"]);
    processes::none_is_left("the end");
    println!(
        "load: {} moments of machines: killed were {} monitors, {} keepers, {} commands and {} network processes, or the \
         command of the moment; of up to {verified} entries that a guest had flushed each was on the disk",
        moments(5),
        killed[0],
        killed[1],
        killed[2],
        killed[3]
    );
    assert!(killed.iter().sum::<u64>() > 0, "{killed:?}");
}
