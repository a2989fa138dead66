//! The processes that a test has started, however far down: whoever loses its parent becomes a
//! child of this one, so none is missed and none is another's.

use std::fs;
use std::time::Instant;

use nelly_tests::scaled;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};

use crate::SETTLES;

/// A process and the name of its program.
pub(crate) type Process = (Pid, String);

/// Makes this process the parent of all that lose theirs.
pub(crate) fn adopt_orphans() {
    set_child_subreaper(Some(getpid())).unwrap();
}

/// The children of a process, by all of its threads.
fn children(of: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", of.as_raw_nonzero())).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let numbers: Vec<i32> = lists
        .flat_map(|list| list.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    numbers.into_iter().filter_map(Pid::from_raw).collect()
}

/// All that run below this process. What has ended has no program any more.
pub(crate) fn all() -> Vec<Process> {
    let (mut found, mut left) = (Vec::new(), children(getpid()));
    while let Some(pid) = left.pop() {
        left.extend(children(pid));
        let program = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
        if let Some(name) = program.ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned())) {
            found.push((pid, name));
        }
    }
    found
}

pub(crate) fn kill(pid: Pid) {
    // It may have ended.
    let _gone = kill_process(pid, Signal::KILL);
}

/// Collects what has ended and was another's child. Nobody else may wait for a child meanwhile.
pub(crate) fn reap() {
    for pid in children(getpid()) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
            let _ended = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Waits until something holds, and looks again after each look's own time: what is waited for
/// needs the processor.
#[track_caller]
pub(crate) fn settles(what: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + scaled(SETTLES);
    loop {
        let looked = Instant::now();
        if holds() {
            return;
        }
        assert!(Instant::now() < limit, "{}: {:?}", what(), all());
        std::thread::sleep(looked.elapsed().max(std::time::Duration::from_millis(2)));
    }
}

/// Waits until nothing of the test is there any more, not even what has ended.
#[track_caller]
pub(crate) fn none_is_left(what: &str) {
    settles(
        || what.to_owned(),
        || {
            reap();
            children(getpid()).is_empty()
        },
    );
}
