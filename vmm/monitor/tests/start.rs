//! What `nelly-monitor` does in place of the standard library's runtime before its own first line.

use std::io;
use std::process::{Command, Stdio};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_nelly-monitor")]);
    command
}

#[test]
fn arguments_arrive_and_text_leaves() {
    let done = shell("exec \"$0\" --version").output().unwrap();
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(done.stdout).unwrap(),
        format!("nelly-monitor {}\n", env!("CARGO_PKG_VERSION"))
    );
    let done = shell("exec \"$0\" --vresion").output().unwrap();
    assert_eq!(done.status.code(), Some(125));
    assert!(String::from_utf8(done.stderr).unwrap().contains("--vresion"));
}

#[test]
fn a_pipe_that_nobody_reads_is_an_error_and_no_signal() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let status = shell("exec \"$0\" --help").stdout(Stdio::from(writer)).status().unwrap();
    assert_eq!(status.code(), Some(125), "{status}");
}

/// Without them the first file that is opened would be standard input or output.
#[cfg(target_os = "linux")]
#[test]
fn closed_standard_streams_are_open_again() {
    use std::time::Duration;
    use std::{fs, thread};

    let done = shell("exec \"$0\" --help <&- >&- 2>&-").status().unwrap();
    assert_eq!(done.code(), Some(0));
    // It waits for the other end of a pipe that is its configuration.
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("config");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let script = format!("exec 3<>'{}'; exec \"$0\" --config fd:3 <&- >&- 2>&-", pipe.display());
    let mut monitor = shell(&script).spawn().unwrap();
    let place = format!("/proc/{}/fd", monitor.id());
    let nothing = |number| fs::read_link(format!("{place}/{number}")).is_ok_and(|to| to == *"/dev/null");
    let all = || (0..3).all(nothing);
    for _ in 0..6000 {
        if all() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let open = all();
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    assert!(open);
}
