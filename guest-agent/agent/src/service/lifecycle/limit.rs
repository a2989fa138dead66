//! The limit of a container's memory. The kernel frees memory within the write of a limit, and ends
//! processes, for as long as the container can delay that: so a process of its own writes it, a
//! copy of the agent with one thread.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::time::timeout;

use super::look::running;
use super::{GuestState, ServiceError};
use crate::cgroup::Cgroup;
use crate::spawn::chain;
use crate::sys::{self, CloneRequest};

/// How long the kernel may take to free memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// Number of the channel in the process.
const CHANNEL: i32 = 3;

/// Longest sentence of the process, in bytes.
const SENTENCE: usize = 1024;

impl GuestState {
    /// Sets the limit of a container's memory in bytes, or removes it. One that is less than what
    /// the container uses is refused, because the kernel would kill its processes.
    pub(in crate::service) async fn limit_memory(
        &self,
        id: &str,
        limit: Option<u64>,
    ) -> Result<(), ServiceError> {
        self.only_of_containers("leaves its limits to the machine")?;
        // One at a time, so that the last limit holds.
        let _one = self.limiting.lock().await;
        let cgroup = {
            let mut registry = self.registry();
            running(&registry.summary(id)?.status, id)?;
            registry.data(id)?.cgroup.clone().ok_or(ServiceError::Ended)?
        };
        // The cgroup of a life that ends meanwhile is gone, or ends unused.
        let used = cgroup.memory_bytes();
        if let Some(limit) = limit.filter(|limit| *limit < used) {
            return Err(ServiceError::InUse { used, limit });
        }
        let value = limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
        let failed = |error| ServiceError::Kernel("cannot set the limit of memory".to_owned(), error);
        match timeout(PATIENCE, write(&cgroup, &value)).await {
            Ok(written) => written.map_err(failed),
            Err(_) => Err(failed(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it holds from now on, but the kernel has not freed the memory within {PATIENCE:?}"),
            ))),
        }
    }
}

/// Writes the limit in a process that is ended when this is dropped.
async fn write(cgroup: &Arc<Cgroup>, value: &str) -> io::Result<()> {
    let (ours, theirs) = sys::socket_pair()?;
    let null = File::open("/dev/null")?;
    let descriptors = [null.as_fd(), null.as_fd(), null.as_fd(), theirs.as_fd()];
    let request =
        CloneRequest { namespaces: 0, cgroup: None, pid_namespace: None, descriptors: &descriptors };
    let (_, pidfd) = sys::clone_child(&request, || child(cgroup, value))?;
    drop(theirs);
    let _ends = Ends(pidfd);
    let channel = sys::watch(ours, Interest::READABLE)?;
    let mut sentence = [0; SENTENCE];
    let told =
        channel.async_io(Interest::READABLE, |channel| sys::receive(channel.as_fd(), &mut sentence)).await?;
    match &sentence[..told.length.min(SENTENCE)] {
        b"k" => Ok(()),
        [] => Err(io::Error::other("the process that does it was killed")),
        sentence => Err(io::Error::other(String::from_utf8_lossy(sentence).into_owned())),
    }
}

fn child(cgroup: &Cgroup, value: &str) -> i32 {
    // The agent's own hook ends the machine.
    drop(std::panic::take_hook());
    let Some(channel) = sys::inherited(CHANNEL) else { return 125 };
    let sentence = match cgroup.set("memory.max", value, false) {
        Ok(()) => "k".to_owned(),
        Err(error) => chain(&error),
    };
    let sentence = &sentence[..sentence.floor_char_boundary(SENTENCE)];
    i32::from(sys::send(channel.as_fd(), sentence.as_bytes(), None).is_err())
}

/// Ends the process, if it has not ended: a signal also ends its wait for memory.
struct Ends(std::os::fd::OwnedFd);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ended = sys::signal_pidfd(self.0.as_fd(), libc::SIGKILL);
    }
}
