//! Starting containers and execs, and clean-up when a start fails.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::Arc;

use nelly_protocol::messages::{CreateContainerRequest, ExecRequest, StreamTokens};

use super::process::{ManagedProcess, start_pumps};
use super::{ContainerData, GuestState, ServiceError};
use crate::cgroup::Cgroup;
use crate::registry::{ProcessKey, Reservation, Status};
use crate::spawn::StageFailure;
use crate::spawn::plan;
use crate::stdio::{self, lock};

impl GuestState {
    /// Creates a container, whose first process waits before it executes the program. Returns the
    /// tokens with which the host claims the streams.
    pub(in crate::service) async fn create(
        self: &Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<StreamTokens, ServiceError> {
        self.not_ending()?;
        self.only_of_containers("makes no containers")?;
        let mut checked = plan::container(&request)?;
        if let Some(container) = &mut checked.stage.container
            && container.namespaces & libc::CLONE_NEWNET == 0
        {
            container.names = lock(&self.names).clone();
        }
        let data = ContainerData {
            filter: checked.seccomp.take(),
            image: request.rootfs.as_ref().map(|one| (one.device.clone(), one.filesystem.clone())),
            shares_pids: checked.surroundings.pid_namespace.is_some(),
            has_disk: request.rootfs.as_ref().is_some_and(|one| !one.upper_device.is_empty()),
            ..ContainerData::default()
        };
        self.registry().reserve_container(&request.id, data)?;
        let result = self.create_reserved(&request, &mut checked).await;
        if result.is_err() {
            self.discard_container(&request.id).await;
        }
        result
    }

    async fn create_reserved(
        self: &Arc<Self>,
        request: &CreateContainerRequest,
        checked: &mut plan::ContainerRequest,
    ) -> Result<StreamTokens, ServiceError> {
        let streams = stdio::open(&self.promises, &request.stdio)?;
        let cgroup = Arc::new(Cgroup::create(&self.config.cgroup_root, &checked.surroundings.cgroup)?);
        self.registry().data(&request.id)?.cgroup = Some(cgroup.clone());
        for setting in &checked.surroundings.settings {
            cgroup.set(&setting.file, &setting.value, setting.optional)?;
        }
        let mut stage = self.config.launcher.container(checked, &cgroup, &streams.child)?;
        drop(streams.child);
        // From here on the reaper knows whose process this is: nothing was awaited before.
        let process = ManagedProcess::new(stage.pidfd.clone(), cgroup.oom_kills(), None);
        self.registry().set_first(&request.id, stage.pid, process.clone())?;
        // Before it has mounted anything.
        self.registry().data(&request.id)?.namespaces = namespaces(stage.pid);
        stage.ready().await.map_err(ServiceError::Create)?;
        // Only now: the stage itself had to open the image's block device.
        cgroup.attach_devices(&checked.surroundings.device_program)?;
        set_oom_score(stage.pid, checked.oom_score_adj)?;
        // The first process of a PID namespace ignores signals at their default action.
        let first = checked.surroundings.pid_namespace.is_none() && !checked.stage.process.init;
        let immune = first.then_some(stage.pid);
        start_pumps(&process, streams.host, &mut stage, immune)?;
        let mut registry = self.registry();
        let data = registry.data(&request.id)?;
        data.stage = Some(stage);
        registry.advance(&request.id, Status::Creating, Status::Created)?;
        Ok(streams.tokens)
    }

    /// Lets the first process of a container execute its program.
    pub(in crate::service) async fn start(
        self: &Arc<Self>,
        id: &str,
    ) -> Result<Result<i32, StageFailure>, ServiceError> {
        self.not_ending()?;
        let stage = {
            let mut registry = self.registry();
            registry.advance(id, Status::Created, Status::Starting)?;
            registry.data(id)?.stage.take()
        };
        let Some(stage) = stage else { return Err(ServiceError::Ended) };
        let pid = stage.pid;
        match stage.start().await {
            Ok(()) => {
                // It may have ended already. Then it stays stopped, and Wait returns its exit code.
                let _ = self.registry().advance(id, Status::Starting, Status::Running);
                Ok(Ok(pid))
            }
            Err(failure) => {
                self.discard_container(id).await;
                Ok(Err(failure))
            }
        }
    }

    /// Creates and starts another process in a container.
    pub(in crate::service) async fn exec(
        self: &Arc<Self>,
        request: ExecRequest,
    ) -> Result<Result<(i32, StreamTokens), StageFailure>, ServiceError> {
        self.not_ending()?;
        plan::check_id("exec_id", &request.exec_id)?;
        let filter = self.registry().data(&request.container_id)?.filter.clone();
        let (mut checked, oom_score) =
            plan::exec(&request.process, &request.user, &request.additional_groups, &request.stdio, filter)?;
        self.plan_for_machine(&mut checked)?;
        let reservation = self.registry().reserve_exec(&request.container_id, &request.exec_id)?;
        let result = self.exec_reserved(&reservation, &request, &checked, oom_score).await;
        if !matches!(result, Ok(Ok(_))) {
            self.discard_exec(&reservation).await;
        }
        result
    }

    async fn exec_reserved(
        self: &Arc<Self>,
        reservation: &Reservation,
        request: &ExecRequest,
        checked: &plan::StagePlan,
        oom_score: Option<i32>,
    ) -> Result<Result<(i32, StreamTokens), StageFailure>, ServiceError> {
        let streams = stdio::open(&self.promises, &request.stdio)?;
        let (cgroup, first) = {
            let mut registry = self.registry();
            let first = registry.process(&ProcessKey::new(&request.container_id, ""))?.clone();
            (registry.data(&request.container_id)?.cgroup.clone(), first)
        };
        let first = lock(&first.pidfd).clone();
        // Both exist while the container runs, but it may have ended in the meantime.
        let (Some(cgroup), Some(first)) = (cgroup, first) else { return Err(ServiceError::Ended) };
        let (place, born) = cgroup.make_exec()?;
        let launched = self.config.launcher.exec(checked, first.as_fd(), born.as_fd(), &streams.child);
        if launched.is_err() {
            cgroup.remove_exec(place.clone());
        }
        let mut stage = launched?;
        drop((streams.child, first, born));
        // As for a container's first.
        let process = ManagedProcess::new(stage.pidfd.clone(), cgroup.oom_kills(), Some(place));
        self.registry().set_exec(reservation, stage.pid, process.clone())?;
        drop(cgroup);
        if let Err(failure) = stage.ready().await {
            return Ok(Err(failure));
        }
        set_oom_score(stage.pid, oom_score)?;
        start_pumps(&process, streams.host, &mut stage, None)?;
        let pid = stage.pid;
        Ok(stage.start().await.map(|()| (pid, streams.tokens)))
    }

    /// Ends and forgets a container that did not get to run.
    async fn discard_container(&self, id: &str) {
        let process = self.registry().process(&ProcessKey::new(id, "")).ok().cloned();
        end(process).await;
        let cgroup = self.registry().data(id).ok().and_then(|data| data.cgroup.take());
        if let Some(cgroup) = cgroup {
            // The container ran nothing of its own, so nothing is left in it.
            let _ = cgroup.remove();
        }
        self.registry().forget_container(id);
    }

    /// Ends and forgets an exec that did not get to run. Its id may be another's by now.
    async fn discard_exec(&self, reservation: &Reservation) {
        let process = self.registry().exec_process(reservation).cloned();
        end(process).await;
        self.registry().forget_exec(reservation);
    }
}

/// Kills a process and waits for its end.
async fn end(process: Option<Arc<ManagedProcess>>) {
    if let Some(process) = process {
        // It may have ended by itself.
        let _ = process.signal(libc::SIGKILL);
        process.ended().await;
    }
}

/// Opens the mount and network namespaces of a process. If this fails, only its end takes longer.
fn namespaces(pid: i32) -> Vec<File> {
    ["mnt", "net"].iter().filter_map(|kind| File::open(format!("/proc/{pid}/ns/{kind}")).ok()).collect()
}

fn set_oom_score(pid: i32, score: Option<i32>) -> Result<(), ServiceError> {
    let Some(score) = score else { return Ok(()) };
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
        .map_err(|error| ServiceError::Kernel(format!("cannot set the OOM score of process {pid}"), error))
}
