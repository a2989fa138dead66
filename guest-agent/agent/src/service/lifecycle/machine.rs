//! A guest with an init of its own, in which the agent is one of the services: it is served as a
//! whole, as if it were the one container, and nothing of it is the agent's to make or to change.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nelly_protocol::MACHINE;

use super::process::ManagedProcess;
use super::{ContainerData, GuestState, ServiceError};
use crate::cgroup::Cgroup;
use crate::registry::{ProcessKey, Status};
use crate::service::guest;
use crate::spawn::caps::CapabilitySets;
use crate::spawn::plan::StagePlan;
use crate::sys;

/// What systemd takes for the wish that it powers the machine off (systemd(1)): SIGRTMIN+4 of the C
/// library that it is compiled with.
const POWER_OFF: i32 = 38;

/// The same, to start the machine again: SIGRTMIN+5.
const REBOOT: i32 = 39;

/// A connection to the service.
pub(in crate::service) struct Called(Arc<AtomicUsize>);

impl Drop for Called {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GuestState {
    /// Serves the guest as a whole from now on, whose init has this process id. `cgroup` is for
    /// what is started in it.
    ///
    /// # Errors
    /// The init cannot be watched.
    ///
    /// # Panics
    /// When it is called twice.
    pub fn serve_machine(&self, init: i32, cgroup: Cgroup) -> Result<(), ServiceError> {
        let failed = |error| ServiceError::Kernel(format!("cannot watch process {init}"), error);
        let pidfd = sys::open_pidfd(init).map_err(failed)?;
        let signalled = pidfd.try_clone().map_err(failed)?;
        let data = ContainerData { cgroup: Some(Arc::new(cgroup)), ..ContainerData::default() };
        let mut registry = self.registry();
        registry.reserve_container(MACHINE, data)?;
        registry.set_first(MACHINE, init, ManagedProcess::new(Arc::new(pidfd), 0, None))?;
        registry.advance(MACHINE, Status::Creating, Status::Running)?;
        assert!(self.init.set(signalled).is_ok(), "the id is reserved once");
        Ok(())
    }

    /// Whether anybody is connected to the service.
    #[must_use]
    pub fn has_callers(&self) -> bool {
        self.callers.load(Ordering::Relaxed) > 0
    }

    /// Counts a connection until the value is dropped.
    pub(in crate::service) fn called(&self) -> Called {
        self.callers.fetch_add(1, Ordering::Relaxed);
        Called(Arc::clone(&self.callers))
    }

    /// The guest's own init.
    fn init(&self) -> Option<&OwnedFd> {
        self.init.get()
    }

    /// Refuses what is for a guest of containers alone; `why` ends the sentence.
    pub(in crate::service) fn only_of_containers(&self, why: &'static str) -> Result<(), ServiceError> {
        if self.init().is_some() { Err(ServiceError::Machine(why)) } else { Ok(()) }
    }

    /// Refuses what would be done to the guest's own init.
    pub(super) fn no_init(&self, key: &ProcessKey) -> Result<(), ServiceError> {
        if key.exec.is_none() && key.container == MACHINE {
            return self.only_of_containers("lets signals, sizes and waits go to what it has started alone");
        }
        Ok(())
    }

    /// Makes the plan of a process one for the guest itself, where it has what the agent has.
    pub(super) fn plan_for_machine(&self, plan: &mut StagePlan) -> Result<(), ServiceError> {
        if self.init().is_none() {
            return Ok(());
        }
        let own = sys::capabilities::own();
        let own = own.map_err(|error| ServiceError::Kernel("cannot find own capabilities".into(), error))?;
        plan.stays = true;
        plan.process.capabilities =
            CapabilitySets { bounding: own, effective: own, permitted: own, inheritable: 0, ambient: 0 };
        Ok(())
    }

    /// The figures of the guest, if this is the id of it as a whole.
    pub(super) fn machine_figures(&self, id: &str) -> Option<crate::cgroup::CgroupStats> {
        (id == MACHINE && self.init().is_some()).then(|| guest::figures(&self.config.cgroup_root))
    }

    /// Every process of the guest, if this is the id of it as a whole.
    pub(super) fn machine_processes(&self, id: &str) -> Option<Vec<i32>> {
        if id != MACHINE || self.init().is_none() {
            return None;
        }
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        Some(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// Asks the guest's own init for the end; `false` if it has none.
    pub(in crate::service) fn ask_init(&self, reboot: bool) -> Result<bool, ServiceError> {
        let Some(init) = self.init() else { return Ok(false) };
        let signal = if reboot { REBOOT } else { POWER_OFF };
        let asked = sys::signal_pidfd(init.as_fd(), signal);
        asked.map_err(|error| ServiceError::Kernel("cannot ask the init for the end".into(), error))?;
        Ok(true)
    }
}
