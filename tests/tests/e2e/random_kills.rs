//! kill -9 of the command, the keeper or the monitor at random moments of everything that changes
//! something: the next command understands and mends what is left.
//!
//! `NELLY_KILLS` is the number of moments, `NELLY_KILLS_SEED` repeats a sequence.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nelly_tests::random::{Numbers, number};
use nelly_tests::{nelly, wait};
use serde_json::Value;

use super::LIMIT;
use super::faults::processes;
use super::image_store::archive;
use super::keeper::{Kept, SERVER, kill};

/// Moments in `make test`, some of which boot a machine; `make soak` has a hundred.
const MOMENTS: u64 = 6;

/// What can be done with the sandbox `box`, by what it is, each with the time in milliseconds
/// within which something is killed.
fn commands(status: &str) -> &'static [(&'static [&'static str], u64)] {
    const RUN: (&[&str], u64) = (&["run", "-d", "--name=box", "app:1", "sh", "-c", SERVER], 6000);
    const CREATE: (&[&str], u64) = (&["create", "--name=box", "app:1", "sh", "-c", SERVER], 150);
    const LOAD: (&[&str], u64) = (&["image", "load", "-q"], 150);
    const START: (&[&str], u64) = (&["start", "box"], 6000);
    const REMOVE: (&[&str], u64) = (&["rm", "-f", "box"], 400);
    const EXEC: (&[&str], u64) = (&["exec", "box", "sh", "-c", "echo x >/root/x; sync"], 300);
    match status {
        "none" => &[RUN, RUN, CREATE, LOAD],
        "running" => &[EXEC, EXEC, (&["stop", "-t", "5s", "box"], 1500), (&["restart", "box"], 6000), REMOVE],
        _ => &[START, START, START, REMOVE, (&["image", "prune", "-a"], 150)],
    }
}

/// The sandboxes, all of them readable.
fn listed(kept: &Kept) -> Vec<Value> {
    let shown: Value = serde_json::from_str(&kept.out(&["ps", "-a", "--json"])).unwrap();
    let shown = shown.as_array().unwrap().clone();
    assert!(shown.iter().all(|one| one["status"] != "damaged"), "{shown:?}");
    assert!(shown.len() <= 1, "{shown:?}");
    shown
}

fn status(kept: &Kept) -> String {
    listed(kept).first().map_or_else(|| "none".to_owned(), |one| one["status"].as_str().unwrap().to_owned())
}

/// The keepers and monitors of this test, those of the state's sandbox excepted.
fn strays(kept: &Kept) -> Vec<(u64, String)> {
    let own: Vec<u64> = match status(kept).as_str() {
        "none" => Vec::new(),
        _ => ["holder", "monitor"].iter().filter_map(|who| kept.state()[who]["pid"].as_u64()).collect(),
    };
    processes(kept).into_iter().filter(|(pid, _)| !own.contains(pid)).collect()
}

/// What must hold after every command, whatever was killed.
fn check(kept: &Kept, what: &str) {
    // What ends with another process ends soon; nothing is in the middle of anything for ever.
    let settled = || !["starting", "stopping"].contains(&status(kept).as_str()) && strays(kept).is_empty();
    let limit = std::time::Instant::now() + nelly_tests::scaled(LIMIT);
    while !settled() {
        assert!(std::time::Instant::now() < limit, "{what}: {} {:?}", status(kept), strays(kept));
        // `nelly ps` in a loop would take the processor from what is to settle.
        thread::sleep(Duration::from_millis(200));
    }
    kept.out(&["gc"]);
    assert_eq!(kept.out(&["gc"]), "", "{what}");
    let status = status(kept);
    let names = |path: &str| {
        let entries = fs::read_dir(kept.0.path().join(path)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let sandboxes = names("data/sandboxes");
    assert!(
        sandboxes.iter().all(|name| !name.starts_with("new-") && !name.starts_with("gone-")),
        "{sandboxes:?}"
    );
    assert_eq!(names("data/sandboxes/names").len(), usize::from(status != "none"), "{what}");
    assert_eq!(names("run").len(), usize::from(status == "running"), "{what}: {status}");
    assert_eq!(kept.out(&["image", "ls", "-q"]).lines().count(), 1, "{what}");
    if status == "running" {
        assert_eq!(kept.exec("echo there"), "there", "{what}");
    }
}

#[test]
fn whatever_is_killed_the_next_command_mends() {
    let mut random = Numbers::seeded("NELLY_KILLS_SEED");
    let kept = Kept::new();
    let image = archive(&kept.0);
    kept.0.feed(&["image", "load"], &image).expect(0);
    // Of what is there already the first commands are.
    kept.keep(&[], SERVER);
    for moment in 0..number("NELLY_KILLS").unwrap_or(MOMENTS) {
        let before = status(&kept);
        let (words, within) = *random.of(commands(&before));
        // Each in its turn, for the moments are few.
        let victims = ["nelly-monitor", "nelly-keeper", "nelly"];
        let victim = victims[usize::try_from(moment).unwrap() % victims.len()];
        let delay = Duration::from_millis(random.below(within));
        let what = format!("moment {moment}: {before}, {words:?}, {victim} after {delay:?}");
        println!("{what}");
        let mut command = nelly(kept.0.path(), words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let bytes = if words.contains(&"load") { image.clone() } else { Vec::new() };
        // It may be killed in the middle of reading.
        let writer = thread::spawn(move || drop(input.write_all(&bytes)));
        thread::sleep(delay);
        let found: Vec<_> = processes(&kept).into_iter().filter(|(_, name)| name == victim).collect();
        match found.is_empty() {
            true => child.kill().unwrap(),
            false => found.into_iter().for_each(|(pid, _)| kill("KILL", pid)),
        }
        wait(&mut child, LIMIT);
        writer.join().unwrap();
        let said = child.wait_with_output().unwrap().stderr;
        assert!(
            !String::from_utf8_lossy(&said).contains("panicked"),
            "{what}: {}",
            String::from_utf8_lossy(&said)
        );
        check(&kept, &what);
    }
    // In the end everything works as on the first day.
    kept.0.feed(&["image", "load"], &image).expect(0);
    kept.out(&["rm", "-f", "box"]);
    kept.keep(&[], SERVER);
    assert_eq!(kept.exec("echo there"), "there");
    kept.out(&["rm", "-f", "box"]);
    check(&kept, "the end");
}
