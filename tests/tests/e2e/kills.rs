//! Ends that nobody planned: kill -9 of the client or of the monitor, SIGTERM, Ctrl-C. No process
//! stays, and no path.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nelly_tests::{code, nelly, program, scaled, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Home, LIMIT};

/// The monitors that run: those of this checkout, whoever started them. Tests of one host run one
/// after the other.
fn monitors() -> Vec<u32> {
    let program = program("nelly-monitor").canonicalize().unwrap();
    let numbers =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    // What has ended and waits to be collected has no program any more.
    numbers
        .filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|link| link == program))
        .collect()
}

/// What the first sandbox that is listed makes of a user's directories, and what stays. A run that
/// ends before it would be listed makes none of it.
const STAYS: [&str; 6] = [
    "d data",
    "d data/sandboxes",
    "d data/sandboxes/names",
    "d run",
    "f data/sandboxes/lock",
    "f data/sandboxes/version",
];

/// Every path below `directory` and its type; what a run must not add to.
fn paths(directory: &Path) -> Vec<String> {
    let (mut lines, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(path) = left.pop() {
        // What goes away meanwhile is not there.
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            let kind = found.file_type();
            let letter = if kind.is_dir() {
                'd'
            } else if kind.is_file() {
                'f'
            } else {
                'o'
            };
            lines.push(format!("{letter} {}", path.strip_prefix(directory).unwrap().display()));
            if kind.is_dir() {
                left.push(path);
            }
        }
    }
    lines.retain(|line| !STAYS.contains(&line.as_str()));
    lines.sort();
    lines
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").unwrap()
}

/// Waits for what comes soon.
#[track_caller]
fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// After a second nothing runs any more, in the emulated host too, where it takes a few hundredths;
/// a busy machine has longer.
#[track_caller]
fn nothing_runs() {
    let until = Instant::now() + scaled(Duration::from_secs(3));
    while !monitors().is_empty() {
        assert!(Instant::now() < until, "monitors still run: {:?}", monitors());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Presses Ctrl-C until the command has ended, and says how: two signals that come at once are one.
#[track_caller]
fn interrupted(child: &mut Child) -> i32 {
    let until = Instant::now() + scaled(PROMPT);
    loop {
        signal(child.id(), "INT");
        thread::sleep(Duration::from_millis(200));
        match child.try_wait().unwrap() {
            Some(status) => return code(status),
            None => assert!(Instant::now() < until, "it outlives every Ctrl-C"),
        }
    }
}

fn start(home: &Home) -> Child {
    let mut command = nelly(home.path(), &["run", "--rm", "--", "sleep", "100000"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(pid: u32, name: &str) {
    // A process that has ended meanwhile is what this is about.
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
}

#[test]
fn kill_minus_nine_at_twenty_moments_leaves_nothing() {
    let home = Home::new();
    home.sh("true").expect(0);
    let (before, mounted) = (paths(home.path()), mounts());
    for moment in 0..20u64 {
        let mut child = start(&home);
        // From before the monitor's start to well after the container's.
        thread::sleep(Duration::from_millis(moment * moment * 17 % 4000));
        if moment % 2 == 0 {
            signal(child.id(), "KILL");
            assert_eq!(code(wait(&mut child, LIMIT)), 137);
        } else {
            match monitors().first() {
                Some(monitor) => {
                    signal(*monitor, "KILL");
                    assert_eq!(code(wait(&mut child, LIMIT)), 125, "moment {moment}");
                }
                None => {
                    signal(child.id(), "KILL");
                    wait(&mut child, LIMIT);
                }
            }
        }
        nothing_runs();
    }
    // The record of one that was listed when its client was killed goes with the next command.
    assert_eq!(home.nelly(&["ps", "-a", "-q"]).expect(0).out(), "");
    assert_eq!(paths(home.path()), before);
    assert_eq!(mounts(), mounted);
}

#[test]
fn kill_minus_nine_of_a_container_that_runs_leaves_nothing() {
    let home = Home::new();
    home.sh("true").expect(0);
    let (before, mounted) = (paths(home.path()), mounts());
    for (victim, expected) in [("monitor", 125), ("client", 137)] {
        let mut child = ready(&home, "", &[], "echo ready; exec sleep 100000");
        signal(if victim == "monitor" { monitors()[0] } else { child.id() }, "KILL");
        assert_eq!(code(wait(&mut child, LIMIT)), expected, "{victim}");
        nothing_runs();
        assert_eq!(home.nelly(&["ps", "-a", "-q"]).expect(0).out(), "", "{victim}");
        assert_eq!(paths(home.path()), before, "{victim}");
    }
    assert_eq!(mounts(), mounted);
}

#[test]
fn sigterm_and_ctrl_c_reach_the_container_and_leave_nothing() {
    let home = Home::new();
    home.sh("true").expect(0);
    let before = paths(home.path());
    for (name, expected) in [("TERM", 50), ("INT", 51)] {
        let script = "trap 'exit 50' TERM; trap 'exit 51' INT; echo ready; sleep 100000 & wait";
        let mut command = nelly(home.path(), &["run", "--rm", "--", "sh", "-c", script]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(&mut stdout, &mut ready).unwrap();
        signal(child.id(), name);
        assert_eq!(code(wait(&mut child, LIMIT)), expected, "{name}");
        nothing_runs();
    }
    // Before there is a container, a signal ends the attempt: a kernel takes longer to boot than
    // its monitor to be seen.
    let mut child = start(&home);
    until("its monitor is there", || !monitors().is_empty());
    signal(child.id(), "TERM");
    assert_eq!(code(wait(&mut child, LIMIT)), 143);
    nothing_runs();
    // A program that ignores Ctrl-C does not survive the third.
    let mut command =
        nelly(home.path(), &["run", "--rm", "--", "sh", "-c", "trap '' INT; echo ready; exec sleep 100000"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert_eq!(interrupted(&mut child), 130);
    nothing_runs();
    assert_eq!(paths(home.path()), before);
}

/// Starts `nelly run FLAGS -- sh -c SCRIPT` behind `before` (words of a shell) and waits for its
/// first output.
fn ready(home: &Home, before: &str, flags: &[&str], script: &str) -> Child {
    let words = [&["run", "--rm"], flags, &["--", "sh", "-c", script]].concat();
    let nelly = nelly(home.path(), &words);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(nelly.get_program())
        .args(nelly.get_args());
    command.envs(nelly.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
    child
}

/// Whether a write to the pipe of this end would have to wait.
fn is_full(pipe: &ChildStdout) -> bool {
    let again = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let writer = fs::File::options().write(true).open(again).unwrap();
    let at_once = Timespec::default();
    poll(&mut [PollFd::new(&writer, PollFlags::OUT)], Some(&at_once)).unwrap() == 0
}

/// Far less than the minute after which a call to an agent fails, far more than the second that it
/// takes.
const PROMPT: Duration = Duration::from_secs(20);

#[test]
fn a_guest_that_stopped_answering_can_be_left() {
    let home = Home::new();
    let script = "trap '' TERM INT; echo ready; exec sleep 100000";
    // A monitor that is stopped is a guest that answers nothing, and neither does the monitor.
    for (name, expected) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let mut child = ready(&home, "", &[], script);
        signal(monitors()[0], "STOP");
        let ended = if name == "INT" {
            interrupted(&mut child)
        } else {
            signal(child.id(), name);
            code(wait(&mut child, PROMPT))
        };
        assert_eq!(ended, expected, "{name}");
        nothing_runs();
    }
    // The limit of time counts while the machine starts.
    let seconds = format!("{}s", scaled(Duration::from_secs(6)).as_secs());
    let mut command = nelly(home.path(), &["run", "--rm", "--timeout", &seconds, "--", "sleep", "1000"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    until("its monitor is there", || !monitors().is_empty());
    signal(monitors()[0], "STOP");
    assert_eq!(code(wait(&mut child, PROMPT)), 124);
    nothing_runs();
    // Nobody reads what the container writes.
    let mut child = ready(&home, "", &[], "echo ready; yes");
    let pipe = child.stdout.as_ref().unwrap();
    until("the pipe is full", || is_full(pipe));
    assert_eq!(interrupted(&mut child), 130);
    nothing_runs();
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    let home = Home::new();
    let script =
        "trap 'echo int' INT; trap 'echo quit' QUIT; trap 'echo hup' HUP; trap 'echo term; exit 50' TERM
        echo ready; sleep 100000 & while :; do wait; done";
    let mut child = ready(&home, "trap '' HUP INT QUIT;", &[], script);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored & 0b111, 0b111, "HUP, INT and QUIT: {status}");
    for name in ["INT", "INT", "INT", "QUIT", "HUP", "TERM"] {
        signal(child.id(), name);
    }
    assert_eq!(code(wait(&mut child, LIMIT)), 50);
    let mut rest = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut rest).unwrap();
    assert_eq!(rest, "term\n");
    nothing_runs();
}

#[test]
fn a_dry_run_writes_nothing() {
    let home = Home::new();
    let trace = home.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).args([
        "-e",
        "trace=file,desc,process,memory,network",
        "--",
    ]);
    command.arg(nelly_tests::program("nelly")).args(["run", "--rm", "--dry-run", "-m", "1G", "--", "true"]);
    command.env("NELLY_HOME", home.path().join("home"));
    let done = nelly_tests::run(&mut command, b"", LIMIT);
    done.expect(0);
    let text = fs::read_to_string(&trace).unwrap();
    assert!(text.contains("assets.json"), "the trace shows nothing");
    for line in text.lines() {
        let opens_to_write = line.contains("open")
            && (line.contains("O_WRONLY") || line.contains("O_RDWR") || line.contains("O_CREAT"));
        let makes = ["mkdir", "unlink", "rename", "symlink(", "linkat(", "mknod", "truncate", "fallocate"];
        let starts =
            ["execve("].iter().any(|call| line.contains(call)) && !line.contains("target/nelly/bin/nelly\"");
        assert!(!opens_to_write && !starts && !makes.iter().any(|call| line.contains(call)), "{line}");
    }
    assert!(!home.path().join("home").exists());
    let object: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(object["machine"]["memory_bytes"], 1u64 << 30);
    assert_eq!(object["container"]["process"]["args"][0], "true");
}
