//! What the host does with a container that runs from outside: finds out its processes, and how
//! its files differ from the image, and copies files out of it and into it. The work is done by
//! a process of its own, a copy of the agent with one thread: whatever a hostile container does
//! to make a file of /proc or of its own wait for ever, the agent does not. It writes frames on
//! the host's stream, the last of which tells how it went.

pub mod changes;
mod copy;
pub mod processes;
mod report;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nelly_protocol::messages as m;

use crate::sys::{self, CloneRequest};
use report::Report;

/// How long a process that looks may take: it holds mounts, and its end is the end of a hang.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// How often it is looked whether the host still waits for a copy, which takes as long as it takes.
pub const LOOK: Duration = Duration::from_secs(5);

/// Most processes at a time.
pub const MOST: usize = 8;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Inspection {
    /// These processes, by their ids in the guest's root PID namespace.
    Processes(Vec<i32>),
    /// How the files of the container differ from its image.
    Changes(changes::Image),
    /// Files of the container are copied out of it.
    CopyOut(m::CopyOutRequest),
    /// Files are copied into it.
    CopyIn(m::CopyInRequest),
}

impl Inspection {
    /// Whether it copies files.
    #[must_use]
    pub fn copies(&self) -> bool {
        matches!(self, Self::CopyOut(_) | Self::CopyIn(_))
    }
}

/// Makes the process that does it, for the container whose first process `first` is. Answers its
/// pidfd; it is to be reaped as every child.
///
/// # Errors
/// Those of clone3(2).
pub fn launch(inspection: &Inspection, first: BorrowedFd<'_>, stream: OwnedFd) -> io::Result<OwnedFd> {
    let null = File::open("/dev/null")?;
    let descriptors = [null.as_fd(), stream.as_fd(), null.as_fd(), first];
    let request =
        CloneRequest { namespaces: 0, cgroup: None, pid_namespace: None, descriptors: &descriptors };
    let (_, pidfd) = sys::clone_child(&request, || main(inspection))?;
    Ok(pidfd)
}

/// Number of the stream in the process.
const STREAM: i32 = 1;
/// Number of the pidfd of the container's first process.
const FIRST: i32 = 3;

fn main(inspection: &Inspection) -> i32 {
    // The agent's own hook ends the machine.
    drop(std::panic::take_hook());
    let (Some(stream), Some(first)) = (sys::inherited(STREAM), sys::inherited(FIRST)) else { return 125 };
    // Before any process of a container when memory is short.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let told = match inspection {
        Inspection::Processes(pids) => {
            let mut report = Report::new(stream);
            let done = processes::report(pids, &mut report);
            report.finish(done)
        }
        Inspection::Changes(image) => {
            let mut report = Report::new(stream);
            let done = changes::report(image, first.as_fd(), &mut report);
            report.finish(done)
        }
        Inspection::CopyOut(request) => copy::out(request, first.as_fd(), stream),
        Inspection::CopyIn(request) => copy::into(request, first.as_fd(), stream),
    };
    // The host that does not hear it finds a stream that was cut.
    match told {
        Ok(()) => 0,
        Err(_) => 1,
    }
}
