//! Sandboxes that stay: made, entered, stopped, started again; and killed at any moment, together
//! with their keepers, monitors and clients.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nelly_tests::{nelly, run, scaled, wait};
use serde_json::Value;

use super::sessions::Events;
use super::{Home, LIMIT};

/// Says that it runs once it hears signals (before, the kernel drops them: it is the first process
/// of its name space), and ends with 3 when it is asked to, with 4 by a signal that is not its own.
/// It sleeps: a loop of short sleeps would keep an emulated processor busy while others are tested.
pub(super) const SERVER: &str =
    "trap 'echo bye; exit 3' TERM; trap 'exit 4' INT; echo up; sleep 100000 & wait";

/// A home whose sandboxes end with the test, however it ends.
pub(super) struct Kept(pub(super) Home);

impl Kept {
    pub(super) fn new() -> Self {
        Self(Home::new())
    }

    /// One of an ordinary user without capability.
    pub(super) fn ordinary() -> Self {
        Self(super::user::home())
    }

    /// `nelly run -d FLAGS -- sh -c SCRIPT`, under the name `box`.
    #[track_caller]
    pub(super) fn keep(&self, flags: &[&str], script: &str) {
        let words = [&["run", "-d", "--name", "box"], flags, &["--", "sh", "-c", script]].concat();
        let id = self.0.nelly(&words).expect(0).out();
        assert!(id.len() == 65 && id.trim().bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }

    /// `nelly WORDS`, which must succeed; what it prints, without the newline.
    #[track_caller]
    pub(super) fn out(&self, words: &[&str]) -> String {
        self.0.nelly(words).expect(0).out().trim_end().to_owned()
    }

    /// `nelly exec box sh -c SCRIPT`.
    #[track_caller]
    pub(super) fn exec(&self, script: &str) -> String {
        self.out(&["exec", "box", "sh", "-c", script])
    }

    pub(super) fn sandboxes(&self) -> std::path::PathBuf {
        self.0.path().join("data/sandboxes")
    }

    pub(super) fn state(&self) -> Value {
        let text = fs::read(self.sandboxes().join("names/box/state.json")).expect("a state");
        serde_json::from_slice(&text).expect("whole at any moment")
    }

    pub(super) fn record(&self) -> Value {
        let text = fs::read(self.sandboxes().join("names/box/sandbox.json")).expect("a record");
        serde_json::from_slice(&text).expect("whole at any moment")
    }

    /// The process that holds `box`, if that runs. It asks the state alone: a command in a loop
    /// would take the processor from a machine that starts.
    pub(super) fn running(&self) -> Option<u64> {
        let text = fs::read(self.sandboxes().join("names/box/state.json")).ok()?;
        let state: Value = serde_json::from_slice(&text).ok()?;
        if state["status"] == "running" { state["holder"]["pid"].as_u64() } else { None }
    }

    /// A process that the state names.
    pub(super) fn pid(&self, who: &str) -> u64 {
        self.state()[who]["pid"].as_u64().unwrap_or_else(|| panic!("no {who} in {}", self.state()))
    }

    /// Asks until it holds, and rests for as long as an answer takes: a command in a loop would
    /// take the processor from what is awaited.
    #[track_caller]
    pub(super) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let limit = Instant::now() + scaled(LIMIT);
        loop {
            let asked = Instant::now();
            if holds() {
                break;
            }
            assert!(Instant::now() < limit, "waited in vain until {what}: {}", self.state());
            thread::sleep(asked.elapsed().max(Duration::from_millis(20)));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.sandboxes()).into_iter().flatten().flatten() {
            let text = fs::read(entry.path().join("state.json")).unwrap_or_default();
            let state: Value = serde_json::from_slice(&text).unwrap_or_default();
            for who in ["holder", "monitor"] {
                if let Some(pid) = state[who]["pid"].as_u64() {
                    kill("KILL", pid);
                }
            }
        }
    }
}

pub(super) fn kill(signal: &str, pid: u64) {
    // It may have ended.
    let _ = Command::new("kill").args(["-s", signal, &pid.to_string()]).stderr(Stdio::null()).status();
}

pub(super) fn runs(pid: u64) -> bool {
    // A zombie has no program any more.
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

pub(super) fn spawn(home: &Path, words: &[&str]) -> Child {
    let mut command = nelly(home, words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_sandbox_is_run_entered_stopped_and_started_with_what_was_written() {
    let kept = Kept::new();
    let file = kept.0.path().join("variables");
    fs::write(&file, "# Who it is.\nWHO=somebody\nFROM=a file = here\n").unwrap();
    let file = file.to_str().unwrap();
    kept.keep(&["--env-file", file, "-e", "WHO=me", "--storage", "1G"], SERVER);
    let mut follows = spawn(kept.0.path(), &["logs", "-f", "box"]);
    let room: u64 = kept.exec("df -Pm / | awk 'NR == 2 { print $2 }'").parse().unwrap();
    assert!((900..=1024).contains(&room), "{room} MiB of 1G");
    // Its own words, and those of its container.
    assert_eq!(kept.exec("echo $WHO; echo $FROM; pwd"), "me\na file = here\n/");
    let words = ["exec", "--env-file", file, "box", "sh", "-c", "echo $WHO"];
    assert_eq!(kept.out(&words), "somebody");
    let words =
        ["exec", "-e", "WHO=you", "-w", "/tmp", "-u", "1:1", "box", "sh", "-c", "echo $WHO; pwd; id -u"];
    assert_eq!(kept.out(&words), "you\n/tmp\n1");
    for (script, code) in [("exit 9", 9), ("kill -9 $$", 137)] {
        kept.0.nelly(&["exec", "box", "sh", "-c", script]).expect(code);
    }
    let missing = kept.0.nelly(&["exec", "box", "nosuch"]);
    assert!(missing.expect(127).err().contains("nosuch"));
    // Input, and output that ends at once, are whole: many windows of the connection.
    let much: Vec<u8> = (0..4_u32 << 20).map(|index| index.to_le_bytes()[1]).collect();
    let back = kept.0.feed(&["exec", "-i", "box", "cat"], &much);
    assert!(back.expect(0).stdout == much);
    // Two at once.
    let one = spawn(kept.0.path(), &["exec", "-i", "box", "cat"]);
    assert_eq!(kept.exec("echo two"), "two");
    one.stdin.as_ref().unwrap().write_all(b"one").unwrap();
    assert_eq!(one.wait_with_output().unwrap().stdout, b"one");
    // A detached one lives on; the state of the sandbox stays.
    kept.out(&["exec", "-d", "box", "sh", "-c", "sleep 1000"]);
    assert_eq!(kept.exec("echo kept >/root/file; ps | grep -c ' [s]leep 1000$'"), "1");
    // The output so far is shown to whoever comes late.
    let mut attached = spawn(kept.0.path(), &["attach", "--no-stdin", "box"]);
    let stopped = kept.0.nelly(&["stop", "box"]);
    assert_eq!(stopped.expect(0).out(), "box\n");
    assert_eq!(wait(&mut attached, LIMIT).code(), Some(3));
    let shown = attached.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&shown), "up\nbye\n");
    // Who follows the log has it to the end.
    assert_eq!(wait(&mut follows, LIMIT).code(), Some(0));
    assert_eq!(follows.wait_with_output().unwrap().stdout, b"up\nbye\n");
    assert_eq!(kept.out(&["wait", "box"]), "3");
    let refused = kept.0.nelly(&["exec", "box", "true"]);
    assert!(refused.expect(125).err().contains("exited"));
    kept.out(&["stop", "box"]);
    // A stop flushes: it is there again, and nobody runs in between.
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("cat /root/file"), "kept");
    // So does a restart, in another keeper; and a name is not what it runs by.
    let keeper = kept.pid("holder");
    kept.exec("sync");
    kept.out(&["restart", "--time", "0s", "box"]);
    assert_ne!(kept.pid("holder"), keeper);
    assert_eq!(kept.exec("cat /root/file"), "kept");
    kept.out(&["rename", "box", "shop"]);
    assert_eq!(kept.out(&["exec", "shop", "echo", "renamed"]), "renamed");
    kept.out(&["rename", "shop", "box"]);
    let twice = kept.0.nelly(&["start", "box"]);
    assert!(twice.expect(1).err().contains("running already"));
    assert!(kept.out(&["ps"]).contains("   Up "));
    assert!(kept.0.nelly(&["rm", "box"]).expect(1).err().contains("nelly stop box"));
    kept.out(&["kill", "-s", "TERM", "box"]);
    assert_eq!(kept.out(&["wait", "box"]), "3");
    // Another first signal than its own: nothing is said, and no grace time goes by.
    kept.out(&["start", "box"]);
    let log = "up\nbye\nup\nup\nbye\nup";
    kept.until("it hears signals", || kept.out(&["logs", "box"]) == log);
    kept.out(&["stop", "--signal", "INT", "--time", "1000s", "box"]);
    assert_eq!(kept.out(&["wait", "box"]), "4");
    // The log has the output of all runs, and outlives them.
    assert_eq!(kept.out(&["logs", "box"]), log);
    assert!(kept.out(&["ps", "-a"]).contains("   Exited (4) "));
    kept.out(&["rm", "box"]);
    assert_eq!(kept.out(&["ps", "-aq"]), "");
}

/// How many sleep for so long.
const ASLEEP: &str = "ps | grep -c ' [s]leep 2000$'; true";

#[test]
fn a_client_that_dies_takes_its_command_along_and_nothing_else() {
    let kept = Kept::new();
    kept.keep(&["--stop-signal", "USR1"], "trap 'exit 4' USR1; trap 'exit 3' TERM; sleep 100000 & wait");
    let mut client = spawn(kept.0.path(), &["exec", "box", "sh", "-c", "sleep 2000 & sleep 2000; true"]);
    kept.until("both run", || kept.exec(ASLEEP) == "2");
    client.kill().unwrap();
    client.wait().unwrap();
    kept.until("both ended", || kept.exec(ASLEEP) == "0");
    // A pause holds everything; a runtime directory that vanishes is made anew.
    let events = Events::of(&kept);
    kept.out(&["pause", "box"]);
    assert!(kept.0.nelly(&["exec", "box", "true"]).expect(125).err().contains("paused"));
    events.until("paused");
    kept.out(&["unpause", "box"]);
    events.until("unpaused");
    for (old, new) in [("box", "other"), ("other", "box")] {
        kept.out(&["rename", old, new]);
        events.wait("it has another name", |told| {
            told.last().is_some_and(|last| {
                (&last["event"], &last["name"], &last["from"])
                    == (&"renamed".into(), &new.into(), &old.into())
            })
        });
    }
    events.end();
    fs::remove_dir_all(kept.0.path().join("run")).unwrap();
    assert_eq!(kept.exec("echo there"), "there");
    // SIGTERM to the keeper is a stop, with the signal for it.
    kill("TERM", kept.pid("holder"));
    assert_eq!(kept.out(&["wait", "box"]), "4");
}

#[test]
fn what_is_killed_is_told_and_starts_again() {
    let kept = Kept::new();
    kept.keep(&[], SERVER);
    // The monitor: its end is the reason.
    kill("KILL", kept.pid("monitor"));
    assert_eq!(kept.out(&["wait", "box"]), "125");
    assert!(kept.state()["detail"].as_str().unwrap().contains("SIGKILL"), "{}", kept.state());
    kept.out(&["start", "box"]);
    // The keeper: the monitor ends with it, and the next command understands what is left.
    let (keeper, monitor) = (kept.pid("holder"), kept.pid("monitor"));
    kill("KILL", keeper);
    kept.until("the monitor ended", || !runs(monitor));
    let gone = kept.0.nelly(&["exec", "box", "true"]);
    assert!(gone.expect(125).err().contains("unclean"), "{}", gone.err());
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("echo back"), "back");
    limits_hold_now_and_later(&kept);
    kept.out(&["stop", "--time", "0s", "box"]);
    assert_eq!(kept.out(&["wait", "box"]), "137");
    kept.out(&["update", "--memory", "80M", "box"]);
    // What hangs is ended by force: a keeper, a machine.
    for who in ["holder", "monitor"] {
        kept.out(&["start", "box"]);
        assert_eq!(kept.exec("cat /sys/fs/cgroup/memory.max"), (80 << 20).to_string());
        let (keeper, monitor) = (kept.pid("holder"), kept.pid("monitor"));
        kill("STOP", kept.pid(who));
        kept.out(&["stop", "--time", "0s", "box"]);
        kept.until("both ended", || !runs(keeper) && !runs(monitor));
    }
    // The command, in the middle of a start: no machine stays.
    let mut start = spawn(kept.0.path(), &["start", "box"]);
    kept.until("it begins", || kept.state()["status"] == "starting");
    let keeper = kept.pid("holder");
    start.kill().unwrap();
    start.wait().unwrap();
    kept.until("the keeper ended", || !runs(keeper));
    assert_eq!(kept.state()["status"], "exited");
    races_and_wrecks_are_removed(&kept);
}

/// Of commands that race one wins; and whatever is broken is removed.
fn races_and_wrecks_are_removed(kept: &Kept) {
    let starts: Vec<_> = (0..4).map(|_| spawn(kept.0.path(), &["start", "box"])).collect();
    let mut codes: Vec<_> = starts.into_iter().map(|mut start| wait(&mut start, LIMIT).code()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(1), Some(1), Some(1)]);
    // A keeper that hangs, its machine killed, and the command that should stop it killed, too.
    let (keeper, monitor) = (kept.pid("holder"), kept.pid("monitor"));
    kill("STOP", keeper);
    kill("KILL", monitor);
    let mut stop = spawn(kept.0.path(), &["stop", "box"]);
    thread::sleep(Duration::from_millis(100));
    stop.kill().unwrap();
    stop.wait().unwrap();
    kept.out(&["rm", "-f", "box"]);
    let limit = Instant::now() + scaled(LIMIT);
    while runs(keeper) || runs(monitor) {
        assert!(Instant::now() < limit, "something of it runs");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(kept.out(&["ps", "-aq"]), "");
}

/// A limit of the memory of a container that runs, and what `stats` tells of it.
fn limits_hold_now_and_later(kept: &Kept) {
    let stats = || {
        let all: Value = serde_json::from_str(&kept.out(&["stats", "--json", "box"])).unwrap();
        all[0].clone()
    };
    assert_eq!(stats()["memory_limit_bytes"], 0);
    kept.out(&["update", "--memory", "64M", "box"]);
    assert_eq!(kept.exec("cat /sys/fs/cgroup/memory.max"), (64 << 20).to_string());
    kept.exec("dd if=/dev/zero of=/written bs=64k count=64 conv=fsync");
    let told = stats();
    assert_eq!(told["memory_limit_bytes"], 64 << 20);
    for figure in ["disk_read_bytes", "monitor_cpu_ns", "monitor_resident_bytes"] {
        assert!(told[figure].as_u64().unwrap() > 0, "{figure}: {told}");
    }
    assert!(told["disk_written_bytes"].as_u64().unwrap() >= 4 << 20, "{told}");
    assert!(kept.out(&["stats", "box"]).contains(" 64 "));
    for (limit, code, hint) in
        [("5M", 1, "6M"), ("64G", 1, "whole machine"), ("64", 2, "write 64M"), ("0M", 2, "more than zero")]
    {
        let refused = kept.0.nelly(&["update", "--memory", limit, "box"]);
        assert!(refused.expect(code).err().contains(hint), "{limit}: {}", refused.err());
    }
    // What it uses is not taken from it.
    kept.exec("dd if=/dev/zero of=/dev/shm/held bs=64k count=256");
    let refused = kept.0.nelly(&["update", "--memory", "8M", "box"]);
    assert!(refused.expect(1).err().contains("uses"), "{}", refused.err());
    kept.out(&["update", "--memory", "max", "box"]);
    assert_eq!(kept.exec("rm /dev/shm/held; cat /sys/fs/cgroup/memory.max"), "max");
}

#[test]
fn a_policy_starts_it_again_until_it_is_stopped() {
    let kept = Kept::new();
    // What happens is told as it happens.
    let events = Events::of(&kept);
    let programs = kept.0.path().join("programs");
    let install = || {
        fs::create_dir_all(&programs).expect("a directory");
        for name in ["nelly-monitor", "nelly-usernet"] {
            fs::copy(nelly_tests::program(name), programs.join(name)).expect("a copy");
        }
    };
    install();
    let words = ["run", "-d", "--name", "box", "--restart", "on-failure:1", "--", "sh", "-c", SERVER];
    run(nelly(kept.0.path(), &words).env("NELLY_MONITOR", programs.join("nelly-monitor")), b"", LIMIT)
        .expect(0);
    // A signal of a command would end the policy, too.
    let end = || drop(kept.0.nelly(&["exec", "box", "kill", "-TERM", "1"]));
    let ups = || kept.out(&["logs", "box"]).matches("up").count();
    kept.until("it hears signals", || ups() == 1);
    // An upgrade, which puts other programs in the place of those that its keeper speaks with.
    fs::remove_dir_all(&programs).expect("removed");
    fs::create_dir(&programs).expect("a directory");
    fs::write(programs.join("nelly-monitor"), "not this one").expect("written");
    end();
    kept.until("it was started again", || ups() == 2);
    assert_eq!(kept.state()["restarts"], 1);
    end();
    assert_eq!(kept.out(&["wait", "box"]), "3");
    install();
    events.wait("it is told of a start by the policy, and of the end after it", |told| {
        let mut words = told.iter().filter(|it| it["name"] == "box").map(|it| it["event"].as_str().unwrap());
        words.any(|word| word == "restarted") && words.last() == Some("exited")
    });
    events.end();
    // The next exit is governed by what holds then.
    kept.out(&["update", "--restart", "always", "box"]);
    kept.out(&["start", "box"]);
    kept.until("it hears signals", || ups() == 3);
    end();
    kept.until("it was started again", || ups() == 4);
    assert_eq!(kept.state()["restarts"], 1);
    kept.out(&["stop", "box"]);
    assert_eq!(
        (&kept.state()["status"], &kept.state()["stopped_by_command"]),
        (&"exited".into(), &true.into())
    );
    assert_eq!(kept.out(&["start", "--restartable"]), "box");
    // A policy that a stop ends, and an end of its own does not; it is another one while it runs.
    kept.out(&["update", "--restart", "unless-stopped", "box"]);
    kept.until("it hears signals", || ups() == 5);
    end();
    kept.until("it was started again", || kept.state()["restarts"] == 1 && ups() == 6);
    kept.out(&["update", "--restart", "no", "box"]);
    end();
    assert_eq!(kept.out(&["wait", "box"]), "3");
    assert_eq!(kept.out(&["start", "--restartable"]), "");
    assert_eq!(kept.state()["status"], "exited");
    // What is removed at its end is gone with it, and leaves no keeper.
    let made = kept.0.nelly(&["run", "-d", "--rm", "--name", "other", "--", "true"]);
    let path = kept.sandboxes().join(made.expect(0).out().trim());
    kept.until("it is removed", || !path.exists());
    // One that cannot start says so.
    let missing = kept.0.nelly(&["run", "-d", "--rm", "--", "nosuch"]);
    assert!(missing.expect(127).err().contains("nosuch"));
    for (words, hint) in [
        (&["run", "-d", "--rm", "--restart", "always", "--", "true"][..], "--rm"),
        (&["run", "--rm", "--restart", "always", "--", "true"], "-d"),
        (&["run", "--timings", "--", "true"], "--rm"),
        (&["create", "--timings", "--", "true"], "--timings"),
        (&["run", "-d", "--restart", "sometimes", "--", "true"], "sometimes"),
        (&["run", "-d", "--storage", "1K", "--", "true"], "64M"),
    ] {
        let refused = kept.0.nelly(words);
        let code = if words[0] == "create" { 2 } else { 125 };
        assert!(refused.expect(code).err().contains(hint), "{}", refused.err());
    }
}
