//! What is found out about a container that runs.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nelly_protocol::messages as m;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::{GuestState, ServiceError};
use crate::inspect::{self, Inspection, changes, processes};
use crate::registry::{ProcessKey, RegistryError, Status};
use crate::stdio::lock;
use crate::sys;

impl GuestState {
    /// Tells the host of the processes of a container. Returns the token of the stream.
    pub(in crate::service) fn tell_processes(self: &Arc<Self>, id: &str) -> Result<Vec<u8>, ServiceError> {
        let cgroup = {
            let mut registry = self.registry();
            running(&registry.summary(id)?.status, id)?;
            registry.data(id)?.cgroup.clone()
        };
        let pids = self.machine_processes(id).map_or_else(|| cgroup.map(|cgroup| cgroup.processes()), Some);
        let mut pids = pids.ok_or(ServiceError::Ended)?;
        pids.sort_unstable();
        // One more says that there are more.
        pids.truncate(processes::MOST + 1);
        self.look(id, Inspection::Processes(pids))
    }

    /// Tells the host how the files of a container differ from its image, likewise.
    pub(in crate::service) fn tell_changes(self: &Arc<Self>, id: &str) -> Result<Vec<u8>, ServiceError> {
        self.only_of_containers("knows no image that its files differ from")?;
        let image = {
            let mut registry = self.registry();
            running(&registry.summary(id)?.status, id)?;
            registry.data(id)?.image.clone()
        };
        let (device, filesystem) = image.ok_or(ServiceError::Ended)?;
        let workdir = self.config.launcher.workdir.clone();
        self.look(id, Inspection::Changes(changes::Image { device, filesystem, workdir }))
    }

    /// Copies files out of a container. Returns the token of the stream with the archive.
    pub(in crate::service) fn copy_out(
        self: &Arc<Self>,
        request: m::CopyOutRequest,
    ) -> Result<Vec<u8>, ServiceError> {
        let id = request.container_id.clone();
        running(&self.registry().summary(&id)?.status, &id)?;
        self.look(&id, Inspection::CopyOut(request))
    }

    /// Copies files into a container, likewise.
    pub(in crate::service) fn copy_in(
        self: &Arc<Self>,
        request: m::CopyInRequest,
    ) -> Result<Vec<u8>, ServiceError> {
        let id = request.container_id.clone();
        running(&self.registry().summary(&id)?.status, &id)?;
        self.look(&id, Inspection::CopyIn(request))
    }

    fn look(self: &Arc<Self>, id: &str, inspection: Inspection) -> Result<Vec<u8>, ServiceError> {
        self.not_ending()?;
        let one = Looking::begin(self)?;
        let first = lock(&self.registry().process(&ProcessKey::new(id, ""))?.pidfd).clone();
        let first = first.ok_or(ServiceError::Ended)?;
        let promised = self.promises.promise().map_err(crate::stdio::StdioError::Token)?;
        let token = promised.token();
        tokio::spawn(async move {
            let Some(stream) = promised.stream().await else { return };
            // On any failure the stream is closed without a result, and the host finds it cut.
            let Ok(stream) = stream.into_blocking() else { return };
            let Ok(host) = stream.try_clone() else { return };
            let Ok(pidfd) = inspect::launch(&inspection, first.as_fd(), stream) else { return };
            let Ok(pidfd) = sys::watch(pidfd, Interest::READABLE) else { return };
            let ended = if inspection.copies() {
                copied(&pidfd, &first, &host).await
            } else {
                timeout(inspect::PATIENCE, pidfd.readable()).await.is_ok()
            };
            if !ended {
                let _ = sys::signal_pidfd(pidfd.get_ref().as_fd(), libc::SIGKILL);
            }
            drop(one);
        });
        Ok(token)
    }
}

/// Waits for the end of a process that copies, unless the container, whose mounts it holds, ends
/// first, or the host is gone: then `false`.
async fn copied(pidfd: &AsyncFd<OwnedFd>, first: &OwnedFd, host: &OwnedFd) -> bool {
    let container = first.try_clone().and_then(|first| sys::watch(first, Interest::READABLE));
    let Ok(container) = container else { return false };
    loop {
        tokio::select! {
            biased;
            _ = pidfd.readable() => return true,
            _ = container.readable() => return false,
            () = tokio::time::sleep(inspect::LOOK) => {
                // One that hangs in the container's files does not find out itself.
                if sys::hung_up(host.as_fd()) {
                    return false;
                }
            }
        }
    }
}

/// Refuses a container that does not run.
pub(super) fn running(status: &Status, id: &str) -> Result<(), RegistryError> {
    match status {
        Status::Running => Ok(()),
        status => Err(RegistryError::State { id: id.to_owned(), status: *status, wanted: "running" }),
    }
}

/// One of the processes that look, counted from its token to its end.
struct Looking(Arc<GuestState>);

impl Looking {
    fn begin(guest: &Arc<GuestState>) -> Result<Self, ServiceError> {
        let before = guest.looking.fetch_add(1, Ordering::Relaxed);
        let one = Self(guest.clone());
        if before < inspect::MOST { Ok(one) } else { Err(ServiceError::Busy) }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.fetch_sub(1, Ordering::Relaxed);
    }
}
