//! Disks that are attached to a running machine for further containers, and detached after them.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nelly_vmm::config::{DeviceName, DiskConfig, DiskId};
use nelly_vmm::machine::Resources;

use super::waits::blocking;
use super::{Sandbox, SandboxError, host, what};
use crate::agent::AgentError;

/// How often the guest is asked to let go of a disk: the file system of a container that has ended
/// is unmounted a little later.
const ASKED_AT_MOST: u32 = 50;

/// How long it is waited between two askings.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Sandbox {
    /// Puts a read-only disk of these files, one after the other, into an empty slot of the running
    /// machine, and returns its block device in the guest, such as `/dev/vdc`.
    ///
    /// # Errors
    /// There is no file or no empty slot, the machine has a disk with this id, or the guest does
    /// not find the disk.
    pub async fn attach_image(&self, id: &DiskId, files: Vec<File>) -> Result<String, SandboxError> {
        let mut resources = Resources::new();
        let sources = resources.add_all(files);
        let Some((first, rest)) = sources.split_first() else {
            return Err(host("cannot attach the image's disk")(io::Error::other("it has no file")));
        };
        let disk = DiskConfig::new(id.clone(), first.clone(), true);
        let disk = DiskConfig { followed_by: rest.to_vec(), ..disk };
        let machine = Arc::clone(&self.machine);
        let attached = blocking(move || machine.attach_disk(&disk, resources));
        self.during(async { attached.await.map_err(what("cannot attach the image's disk")) }).await?;
        match self.device_of(id).await {
            Ok(device) => Ok(device),
            Err(error) => {
                // The first error tells more.
                let _left = self.detach_image(id).await;
                Err(error)
            }
        }
    }

    /// The block device in the guest that is the disk `id`.
    async fn device_of(&self, id: &DiskId) -> Result<String, SandboxError> {
        let disks = self.during(self.agent.probe_devices()).await?;
        let found = disks.into_iter().find(|disk| disk.id == id.serial());
        let missing = || host("cannot use the image's disk")(io::Error::other("the guest does not find it"));
        found.map(|disk| disk.device).ok_or_else(missing)
    }

    /// Takes a disk that [`Sandbox::attach_image`] attached out of the machine again, once nothing
    /// in the guest uses it.
    ///
    /// # Errors
    /// There is no such disk, the guest still uses it after some seconds, or the machine has ended.
    pub async fn detach_image(&self, id: &DiskId) -> Result<(), SandboxError> {
        let mut asked = 1;
        loop {
            match self.during(self.agent.release_disk(id.as_str())).await {
                Ok(()) => break,
                Err(SandboxError::Agent(AgentError::Call { .. })) if asked < ASKED_AT_MOST => {
                    asked += 1;
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
        let (machine, name) = (Arc::clone(&self.machine), DeviceName::Disk(id.clone()));
        let detached = blocking(move || machine.detach(&name));
        self.during(async { detached.await.map_err(what("cannot detach the image's disk")) }).await
    }
}
