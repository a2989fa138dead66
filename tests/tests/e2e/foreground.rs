//! Foreground runs: kept by a keeper, and with `--rm` held by `nelly run` itself.

use std::io::Read as _;
use std::time::{Duration, Instant};

use nelly_tests::{scaled, wait};

use super::LIMIT;
use super::keeper::{Kept, SERVER, kill, runs, spawn};

/// Waits until the sandbox runs, which has no state before, in the hands of one that `is_holder`.
fn until_running(kept: &Kept, is_holder: impl Fn(u64) -> bool) {
    let limit = Instant::now() + scaled(LIMIT);
    while !kept.running().is_some_and(&is_holder) {
        assert!(Instant::now() < limit, "it never runs");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `nelly run --name box FLAGS -- sh -c SCRIPT`.
fn words<'a>(flags: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["run", "--name", "box"], flags, &["--", "sh", "-c", script]].concat()
}

#[test]
fn a_sandbox_stays_after_its_command_and_starts_again() {
    let kept = Kept::new();
    let done =
        kept.0.feed(&words(&["-i", "-e", "A=b"], "cat; echo $A >&2; echo x >/root/x; exit 7"), b"typed\n");
    assert_eq!((done.expect(7).out(), done.err()), ("typed\n".to_owned(), "b\n".to_owned()));
    assert!(kept.out(&["ps", "-a"]).contains("   Exited (7) "));
    assert_eq!(kept.out(&["logs", "box"]), "typed");
    assert!(kept.0.nelly(&words(&[], "true")).expect(125).err().contains("box"), "the name is taken");
    // Codes of what cannot start, and a limit of time.
    assert!(kept.0.nelly(&["run", "--", "nosuch"]).expect(127).err().contains("nosuch"));
    kept.0.nelly(&["run", "--name", "late", "--timeout", "1s", "--", "sleep", "1000"]).expect(124);
    assert!(kept.out(&["ps", "-a"]).contains("late"));
    // The same sandbox again, in the background, with what was written: its input waits for whoever
    // attaches.
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("cat /root/x"), "x");
    kept.out(&["stop", "--time", "0s", "box"]);
    assert_eq!(kept.out(&["wait", "box"]), "137");
    kept.out(&["rm", "box"]);
}

#[test]
fn output_is_whole_for_a_slow_reader_and_a_client_that_dies_leaves_the_sandbox() {
    let kept = Kept::new();
    let counted: Vec<u8> = (1..=100_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
    // Of a file, many times: a guest makes so many bytes slowly one by one.
    let flood = "head -c 65536 /dev/zero | tr '\\0' x >/dev/shm/x; seq 1 100000; \
        cat $(yes /dev/shm/x | head -n 128); echo end; echo up >/dev/shm/up; exec sleep 1000";
    let mut client = spawn(kept.0.path(), &words(&[], flood));
    let mut stdout = client.stdout.take().unwrap();
    until_running(&kept, |_| true);
    // Nobody reads: the container waits in the middle.
    assert_eq!(kept.exec("test -e /dev/shm/up; echo $?"), "1");
    let mut lines = vec![0; counted.len()];
    stdout.read_exact(&mut lines).unwrap();
    assert!(lines == counted, "not a byte is lost, changed or out of order");
    let (mut all, mut part) = (0, vec![0; 1 << 20]);
    while all < (8 << 20) + 4 {
        let count = stdout.read(&mut part).unwrap();
        assert!(count > 0 && part[..count].iter().all(|byte| b"xend\n".contains(byte)));
        all += count;
    }
    assert_eq!(all, (8 << 20) + 4);
    kept.until("it went on", || kept.exec("test -e /dev/shm/up; echo $?") == "0");
    client.kill().unwrap();
    client.wait().unwrap();
    // Its client is dead: it goes on, also with what it says.
    assert_eq!(kept.exec("echo there"), "there");
    kept.out(&["stop", "--time", "0s", "box"]);
    kept.out(&["rm", "box"]);
    // A signal reaches the container.
    let mut client =
        spawn(kept.0.path(), &words(&[], "trap 'echo bye; exit 4' TERM; echo up; sleep 100000 & wait"));
    let mut line = [0; 3];
    client.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    kill("TERM", client.id().into());
    assert_eq!(wait(&mut client, LIMIT).code(), Some(4));
}

#[test]
fn what_is_held_in_the_foreground_is_listed_served_and_removed() {
    let kept = Kept::new();
    let mut client = spawn(kept.0.path(), &words(&["--rm"], SERVER));
    until_running(&kept, |holder| holder == u64::from(client.id()));
    assert_eq!(kept.exec("echo inside"), "inside");
    assert!(kept.out(&["ps"]).contains("box"));
    assert!(kept.out(&["top", "box"]).contains("sleep 100000"));
    assert_eq!(kept.pid("holder"), u64::from(client.id()));
    for (verb, code, hint) in [("attach", 125, "nelly run"), ("logs", 1, "no log"), ("restart", 1, "--rm")] {
        let refused = kept.0.nelly(&[verb, "box"]);
        assert!(refused.expect(code).err().contains(hint), "{verb}: {}", refused.err());
    }
    let second = kept.0.nelly(&words(&["--rm"], "true"));
    assert!(second.expect(125).err().contains("box"), "the name is taken: {}", second.err());
    assert!(kept.0.nelly(&["run", "--in", "box", "-d", "--", "true"]).expect(125).err().contains("slot"));
    // A stop reaches a paused one; who asked, who waits, and who runs it hear the same.
    kept.out(&["pause", "box"]);
    let mut waits = spawn(kept.0.path(), &["wait", "box"]);
    kept.out(&["stop", "box"]);
    assert_eq!(wait(&mut client, LIMIT).code(), Some(3));
    assert_eq!(std::io::read_to_string(waits.stdout.take().unwrap()).unwrap().trim(), "3");
    assert_eq!(wait(&mut waits, LIMIT).code(), Some(0));
    assert_eq!(kept.out(&["ps", "-a", "-q"]), "");
    assert_eq!(std::fs::read_dir(kept.sandboxes().join("names")).unwrap().count(), 0);
    // One whose process is killed takes its machine along, and its name is free again.
    let mut client = spawn(kept.0.path(), &words(&["--rm"], SERVER));
    until_running(&kept, |holder| holder == u64::from(client.id()));
    let monitor = kept.pid("monitor");
    client.kill().unwrap();
    client.wait().unwrap();
    kept.until("its machine ended", || !runs(monitor));
    let mut client = spawn(kept.0.path(), &words(&["--rm"], SERVER));
    until_running(&kept, |holder| holder == u64::from(client.id()));
    kept.out(&["rm", "-f", "box"]);
    assert_eq!(wait(&mut client, LIMIT).code(), Some(137));
    assert_eq!(kept.out(&["ps", "-a", "-q"]), "");
}
