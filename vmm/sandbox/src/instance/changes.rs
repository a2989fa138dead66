//! The guest is told of what the host changes in shared directories, so that its programs, which
//! watch them, do what they do when somebody saves a file.
//!
//! Whoever holds the sandbox watches: no part of the machine needs to know of it. It begins after
//! the container has started.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nelly_share::{Told, Tree, Watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::waits::blocking;
use crate::agent::{Agent, AgentError};
use crate::spec::{Share, shares};

/// How long after the start of a container its directories are looked through. One that ends before
/// pays nothing.
const BEGIN: Duration = Duration::from_millis(500);

/// Changes within this time are told together.
const TOGETHER: Duration = Duration::from_millis(50);

/// How long after a call that failed the next one is made.
const AGAIN: Duration = Duration::from_secs(1);

/// Directories of one share that are watched. Changes in further ones, those farthest below the
/// root, are not told.
const DIRECTORIES: usize = 8192;

/// Paths that the agent takes with one call.
const PATHS: usize = 256;

/// Ends with what it tells.
pub(super) struct Telling(Vec<JoinHandle<()>>);

impl Drop for Telling {
    fn drop(&mut self) {
        for share in &self.0 {
            share.abort();
        }
    }
}

/// Begins to tell the agent of changes in the shares of a container. Where the system cannot watch,
/// nothing is told: what the guest looks at is right all the same.
pub(super) fn tell(agent: &Agent, shares: &[Share]) -> Telling {
    let begin = |(number, share): (usize, &Share)| {
        let (agent, share, tag) = (agent.clone(), share.clone(), shares::tag(number));
        tokio::spawn(async move {
            tokio::time::sleep(BEGIN).await;
            if let Some(watch) = blocking(move || watch(&share)).await {
                follow(&agent, tag.as_str(), watch).await;
            }
        })
    };
    Telling(shares.iter().enumerate().map(begin).collect())
}

fn watch(share: &Share) -> Option<Watch> {
    let fd = share.open().ok()?;
    Watch::new(if share.file { Tree::File(fd) } else { Tree::Directory(fd) }, DIRECTORIES).ok()
}

/// Tells of changes until nobody can be told any more.
async fn follow(agent: &Agent, tag: &str, mut watch: Watch) {
    let Ok(changes) = watch.as_fd().try_clone_to_owned() else { return };
    let Ok(changes) = readable(changes) else { return };
    // That there is something new is all that can be said then, and the root is told it.
    let mut lost = false;
    loop {
        let (back, told) = blocking(move || {
            let told = watch.read();
            (watch, told)
        })
        .await;
        watch = back;
        let Ok(Told { mut paths, lost: more }) = told else { return };
        if lost || more {
            paths.insert(Vec::new());
        }
        lost = tell_agent(agent, tag, paths).await.is_err();
        if lost {
            // A guest that does not answer in time may do so later: a paused one does.
            tokio::time::sleep(AGAIN).await;
        } else if watch.is_idle() {
            let Ok(mut ready) = changes.readable().await else { return };
            ready.clear_ready();
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

async fn tell_agent(agent: &Agent, tag: &str, paths: BTreeSet<Vec<u8>>) -> Result<(), AgentError> {
    let paths: Vec<Vec<u8>> = paths.into_iter().collect();
    for some in paths.chunks(PATHS) {
        agent.touch(tag, some).await?;
    }
    Ok(())
}

#[expect(deprecated, reason = "an OwnedFd means the same descriptor for as long as it lives")]
fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}
