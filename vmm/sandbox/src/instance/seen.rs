//! What a machine shows of itself, for those who look at a sandbox from outside.

use std::sync::Arc;

use nelly_vmm::machine::Inspection;

use super::waits::{answered, blocking};
use super::{Sandbox, SandboxError, what};

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
}
