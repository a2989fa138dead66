//! What is asked of containers and processes that there are.

use std::os::fd::AsFd;

use super::{GuestState, ServiceError};
use crate::cgroup::CgroupStats;
use crate::registry::{ContainerSummary, ProcessExit, ProcessKey};
use crate::service::guest;
use crate::stdio::lock;
use crate::sys;

impl GuestState {
    /// Waits for a process and its output, however often it is asked.
    pub(in crate::service) async fn wait(&self, key: &ProcessKey) -> Result<ProcessExit, ServiceError> {
        self.no_init(key)?;
        let process = {
            let mut registry = self.registry();
            if let Some(exit) = registry.exec_exit(key) {
                registry.exit_reported(key, exit);
                return Ok(exit);
            }
            registry.process(key)?.clone()
        };
        let exit = process.finished().await.ok_or(ServiceError::Ended)?;
        self.registry().exit_reported(key, exit);
        Ok(exit)
    }

    /// Forgets the record of an exec that has ended.
    pub(in crate::service) fn delete_exec(&self, container: &str, exec: &str) -> Result<(), ServiceError> {
        Ok(self.registry().delete_exec(container, exec)?)
    }

    /// Sends a signal to one process, to the group that it leads, or to all of a container.
    pub(in crate::service) fn signal(
        &self,
        key: &ProcessKey,
        signal: u32,
        all: bool,
        group: bool,
    ) -> Result<(), ServiceError> {
        let number = i32::try_from(signal).ok().filter(|number| (1..=64).contains(number));
        let number = number.ok_or(ServiceError::Signal(signal))?;
        self.no_init(key)?;
        let mut registry = self.registry();
        let process = registry.process(key)?.clone();
        if !all {
            drop(registry);
            return if group { process.signal_group(number) } else { process.signal(number) };
        }
        let Some(cgroup) = registry.data(&key.container)?.cgroup.clone() else {
            return Err(ServiceError::Ended);
        };
        drop(registry);
        if number == libc::SIGKILL {
            return Ok(cgroup.kill()?);
        }
        for pid in cgroup.processes() {
            // A process that ended between the two calls wants no signal; a pidfd makes sure that
            // it is no other.
            if let Ok(pidfd) = sys::open_pidfd(pid) {
                let _ = sys::signal_pidfd(pidfd.as_fd(), number);
            }
        }
        Ok(())
    }

    /// Sets the size of a terminal.
    pub(in crate::service) fn resize(
        &self,
        key: &ProcessKey,
        rows: u16,
        columns: u16,
    ) -> Result<(), ServiceError> {
        self.no_init(key)?;
        let process = self.registry().process(key)?.clone();
        match lock(&process.pumps).as_ref().map(|pumps| pumps.resize(rows, columns)) {
            Some(Ok(true)) => Ok(()),
            Some(Err(error)) => Err(ServiceError::Kernel("cannot resize the terminal".to_owned(), error)),
            Some(Ok(false)) => Err(ServiceError::NoTerminal),
            None => Err(ServiceError::Ended),
        }
    }

    /// Ends a process's input.
    pub(in crate::service) fn close_stdin(&self, key: &ProcessKey) -> Result<(), ServiceError> {
        self.no_init(key)?;
        let process = self.registry().process(key)?.clone();
        if let Some(pumps) = lock(&process.pumps).as_ref() {
            pumps.close_input();
        }
        Ok(())
    }

    /// One container, or all when the id is empty.
    pub(in crate::service) fn summaries(&self, id: &str) -> Result<Vec<ContainerSummary>, ServiceError> {
        let registry = self.registry();
        let ids = if id.is_empty() { registry.ids() } else { vec![id.to_owned()] };
        Ok(ids.iter().map(|id| registry.summary(id)).collect::<Result<_, _>>()?)
    }

    /// Figures of one container (the last ones when it stopped), or of the guest when the id is
    /// empty.
    pub(in crate::service) fn figures(&self, id: &str) -> Result<CgroupStats, ServiceError> {
        if id.is_empty() {
            return Ok(guest::figures(&self.config.cgroup_root));
        }
        if let Some(figures) = self.machine_figures(id) {
            return Ok(figures);
        }
        let mut registry = self.registry();
        let data = registry.data(id)?;
        Ok(data.cgroup.as_ref().map_or_else(|| data.last_figures.clone(), |cgroup| cgroup.stats()))
    }
}
