//! What a machine shows of itself, for those who look at a sandbox from outside.

use std::sync::Arc;
use std::time::Duration;

use nelly_vmm::machine::Inspection;

use super::waits::{answered, blocking};
use super::{Sandbox, SandboxError, what};

/// How often it is looked whether the last writes of a guest wait for room on the host.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);

/// After so many looks in a row that say so, there will be none.
const LOOKS_FOR_ROOM: u32 = 2;

impl Sandbox {
    /// What the monitor shows of the machine: devices, exits, memory, confinement. Works in a pause
    /// too.
    ///
    /// # Errors
    /// The machine has ended.
    pub async fn inspection(&self) -> Result<Inspection, SandboxError> {
        let asked = Arc::clone(&self.machine);
        let shown = async {
            // A monitor that reads no requests may have no room for one more.
            let pending = blocking(move || asked.begin_inspect()).await?;
            answered(pending).await?.inspection()
        };
        self.during(async { shown.await.map_err(what("cannot inspect the machine")) }).await
    }

    /// Comes back when a disk has waited for room on the host for a while.
    pub(super) async fn stays_without_room(&self) {
        let mut looks = 0;
        while looks < LOOKS_FOR_ROOM {
            tokio::time::sleep(LOOK_FOR_ROOM).await;
            let machine = Arc::clone(&self.machine);
            let inspection = blocking(move || machine.inspect()).await;
            let waits =
                inspection.is_ok_and(|found| found.devices.iter().any(|device| device.waits_for_room));
            looks = if waits { looks + 1 } else { 0 };
        }
    }
}
