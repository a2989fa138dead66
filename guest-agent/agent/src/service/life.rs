//! The life of containers and processes: makes them, waits for them, cleans up after them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nelly_protocol::messages::{CreateContainerRequest, ExecRequest, StreamTokens};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::cgroup::{Cgroup, CgroupError, CgroupStats, ExecCgroup};
use crate::registry::{Exit, Key, Registry, RegistryError, Status, Summary};
use crate::spawn::StageFailure;
use crate::spawn::launch::{LaunchError, Launcher, Stage};
use crate::spawn::plan::{self, PlanError};
use crate::spawn::seccomp::Filter;
use crate::stdio::{self, HostStreams, Promises, Pumps, StdioError, lock};
use crate::sys::{self, News, Reaped};
use crate::timeline::Marks;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum LifeError {
    /// Ids and states.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The request.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// Limits.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The stage.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// What a stage could not do before its gate.
    #[error("cannot create the container: {}", .0.message)]
    Create(StageFailure),
    /// What the guest's kernel refused, in words.
    #[error("{0}")]
    Kernel(String, #[source] io::Error),
    /// Not a signal.
    #[error("{0} is no signal; 1 to 64 are")]
    Signal(u32),
    /// The process is gone.
    #[error("the process has ended")]
    Ended,
    /// The process has none.
    #[error("the process has no terminal")]
    NoTerminal,
    /// Shutdown was called.
    #[error("the guest is shutting down")]
    Ending,
}

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Start again.
    pub reboot: bool,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace_ms: u32,
}

/// Where things are.
#[derive(Debug, Clone)]
pub struct Config {
    /// Makes stages.
    pub launcher: Launcher,
    /// Mount of cgroup version 2.
    pub cgroup_root: PathBuf,
    /// CLOCK_BOOTTIME when the agent began.
    pub boot_ns: u64,
    /// CLOCK_BOOTTIME when it listened.
    pub ready_ns: u64,
    /// The agent's stamps.
    pub marks: Arc<Marks>,
}

/// How long the mounts and the network of a container outlive it. The kernel takes them apart while its last process ends,
/// unless somebody else holds them; nobody should wait for that, and a machine of one container ends before.
const LINGER: Duration = Duration::from_millis(50);

/// SIGPIPE.
const BROKEN_PIPE: u8 = 13;

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Alive,
    /// Reaped; its output may still be on its way.
    Ended(Exit),
    /// Its output is on its way no more.
    Finished(Exit),
}

/// What the agent holds of a process.
struct Process {
    pidfd: Mutex<Option<Arc<OwnedFd>>>,
    phase: watch::Sender<Phase>,
    exited: watch::Sender<bool>,
    pumps: Mutex<Option<Pumps>>,
    oom_kills_before: u64,
    /// That of an exec.
    cgroup: Option<ExecCgroup>,
    /// It was ended for a SIGPIPE that the kernel does not give it.
    broken_pipe: AtomicBool,
}

/// What the agent holds of a container.
#[derive(Default)]
struct ContainerData {
    cgroup: Option<Arc<Cgroup>>,
    stage: Option<Stage>,
    /// Its mounts and its network, see [`LINGER`].
    namespaces: Vec<File>,
    filter: Option<Filter>,
    /// Its PID namespace is another's, so its processes do not end with its first one by themselves.
    shares_pids: bool,
    last_figures: CgroupStats,
}

type Containers = Registry<ContainerData, Arc<Process>>;

/// The guest: everything that the calls of all connections share.
pub struct Guest {
    config: Config,
    promises: Arc<Promises>,
    registry: Mutex<Containers>,
    end: mpsc::UnboundedSender<End>,
    ending: AtomicBool,
}

impl Process {
    fn new(pidfd: Arc<OwnedFd>, oom_kills_before: u64, cgroup: Option<ExecCgroup>) -> Arc<Self> {
        Arc::new(Self {
            pidfd: Mutex::new(Some(pidfd)),
            phase: watch::Sender::new(Phase::Alive),
            exited: watch::Sender::new(false),
            pumps: Mutex::new(None),
            oom_kills_before,
            cgroup,
            broken_pipe: AtomicBool::new(false),
        })
    }

    fn signal(&self, signal: i32) -> Result<(), LifeError> {
        let Some(pidfd) = lock(&self.pidfd).clone() else { return Err(LifeError::Ended) };
        match sys::signal_pidfd(pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(LifeError::Ended),
            Err(error) => Err(LifeError::Kernel(format!("cannot send signal {signal}"), error)),
            Ok(()) => Ok(()),
        }
    }

    async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Alive).await;
    }

    async fn finished(&self) -> Option<Exit> {
        match *self.phase.subscribe().wait_for(|phase| matches!(phase, Phase::Finished(_))).await.ok()? {
            Phase::Finished(exit) | Phase::Ended(exit) => Some(exit),
            Phase::Alive => None,
        }
    }
}

impl Guest {
    /// A guest without containers, whose processes' streams come to `promises`. The second value tells when the machine is to end.
    #[must_use]
    pub fn new(config: Config, promises: Arc<Promises>) -> (Arc<Self>, mpsc::UnboundedReceiver<End>) {
        let (end, ends) = mpsc::unbounded_channel();
        (
            Arc::new(Self {
                config,
                promises,
                registry: Mutex::default(),
                end,
                ending: AtomicBool::new(false),
            }),
            ends,
        )
    }

    /// Where things are.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn not_ending(&self) -> Result<(), LifeError> {
        if self.ending.load(Ordering::Relaxed) { Err(LifeError::Ending) } else { Ok(()) }
    }

    fn registry(&self) -> MutexGuard<'_, Containers> {
        lock(&self.registry)
    }

    /// Makes a container up to its gate. What its first process is fed by and writes to waits for who knows the tokens.
    pub(super) async fn create(
        self: &Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<StreamTokens, LifeError> {
        self.not_ending()?;
        let mut checked = plan::container(
            &request.id,
            &request.spec,
            &request.user,
            &request.additional_groups,
            &request.rootfs,
            &request.stdio,
        )?;
        let data = ContainerData {
            filter: checked.seccomp.take(),
            shares_pids: checked.surroundings.pid_namespace.is_some(),
            ..ContainerData::default()
        };
        self.registry().reserve_container(&request.id, data)?;
        let result = self.create_reserved(&request, &mut checked).await;
        if result.is_err() {
            self.discard(&Key::new(&request.id, "")).await;
        }
        result
    }

    async fn create_reserved(
        self: &Arc<Self>,
        request: &CreateContainerRequest,
        checked: &mut plan::ContainerRequest,
    ) -> Result<StreamTokens, LifeError> {
        let key = Key::new(&request.id, "");
        let streams = stdio::open(&self.promises, &request.stdio)?;
        let cgroup = Arc::new(Cgroup::create(&self.config.cgroup_root, &checked.surroundings.cgroup)?);
        self.registry().data(&request.id)?.cgroup = Some(cgroup.clone());
        for setting in &checked.surroundings.settings {
            cgroup.set(&setting.file, &setting.value, setting.optional)?;
        }
        let mut stage = self.config.launcher.container(checked, &cgroup, &streams.child)?;
        drop(streams.child);
        let process = self.remember(&key, &stage, &cgroup, None)?;
        stage.ready().await.map_err(LifeError::Create)?;
        // Only now: the stage itself had to open the image's block device.
        cgroup.attach_devices(&checked.surroundings.device_program)?;
        set_oom_score(stage.pid, checked.oom_score_adj)?;
        // In a PID namespace of its own it is the first process.
        let immune = checked.surroundings.pid_namespace.is_none().then_some(stage.pid);
        start_pumps(&process, streams.host, &mut stage, immune)?;
        let mut registry = self.registry();
        let data = registry.data(&request.id)?;
        data.namespaces = namespaces(stage.pid);
        data.stage = Some(stage);
        registry.advance(&request.id, Status::Creating, Status::Created)?;
        Ok(streams.tokens)
    }

    /// Opens a container's gate.
    pub(super) async fn start(self: &Arc<Self>, id: &str) -> Result<Result<i32, StageFailure>, LifeError> {
        self.not_ending()?;
        let stage = {
            let mut registry = self.registry();
            registry.advance(id, Status::Created, Status::Starting)?;
            registry.data(id)?.stage.take()
        };
        let Some(stage) = stage else { return Err(LifeError::Ended) };
        let pid = stage.pid;
        match stage.start().await {
            Ok(()) => {
                // It may have ended already: then it stays stopped, and Wait tells.
                let _ = self.registry().advance(id, Status::Starting, Status::Running);
                Ok(Ok(pid))
            }
            Err(failure) => {
                self.discard(&Key::new(id, "")).await;
                Ok(Err(failure))
            }
        }
    }

    /// Makes and starts one more process of a container.
    pub(super) async fn exec(
        self: &Arc<Self>,
        request: ExecRequest,
    ) -> Result<Result<(i32, StreamTokens), StageFailure>, LifeError> {
        self.not_ending()?;
        plan::check_id("exec_id", &request.exec_id)?;
        let key = Key::new(&request.container_id, &request.exec_id);
        let filter = self.registry().data(&request.container_id)?.filter.clone();
        let (checked, oom_score) =
            plan::exec(&request.process, &request.user, &request.additional_groups, &request.stdio, filter)?;
        self.registry().reserve_exec(&request.container_id, &request.exec_id)?;
        let result = self.exec_reserved(&key, &request, &checked, oom_score).await;
        if !matches!(result, Ok(Ok(_))) {
            self.discard(&key).await;
        }
        result
    }

    async fn exec_reserved(
        self: &Arc<Self>,
        key: &Key,
        request: &ExecRequest,
        checked: &plan::StagePlan,
        oom_score: Option<i32>,
    ) -> Result<Result<(i32, StreamTokens), StageFailure>, LifeError> {
        let streams = stdio::open(&self.promises, &request.stdio)?;
        let (cgroup, first) = {
            let mut registry = self.registry();
            let first = registry.process(&Key::new(&key.container, ""))?.clone();
            (registry.data(&key.container)?.cgroup.clone(), first)
        };
        let first = lock(&first.pidfd).clone();
        // Both are there while the container runs; it may have ended since it was asked.
        let (Some(cgroup), Some(first)) = (cgroup, first) else { return Err(LifeError::Ended) };
        let (place, born) = cgroup.make_exec()?;
        let launched = self.config.launcher.exec(checked, first.as_fd(), born.as_fd(), &streams.child);
        if launched.is_err() {
            cgroup.remove_exec(place.clone());
        }
        let mut stage = launched?;
        drop((streams.child, first, born));
        let process = self.remember(key, &stage, &cgroup, Some(place))?;
        drop(cgroup);
        if let Err(failure) = stage.ready().await {
            return Ok(Err(failure));
        }
        set_oom_score(stage.pid, oom_score)?;
        start_pumps(&process, streams.host, &mut stage, None)?;
        let pid = stage.pid;
        Ok(stage.start().await.map(|()| (pid, streams.tokens)))
    }

    /// From here on the reaper knows whose process this is. Nothing was awaited since it was made.
    fn remember(
        &self,
        key: &Key,
        stage: &Stage,
        cgroup: &Cgroup,
        exec: Option<ExecCgroup>,
    ) -> Result<Arc<Process>, LifeError> {
        let process = Process::new(stage.pidfd.clone(), cgroup.oom_kills(), exec);
        self.registry().set_process(key, stage.pid, process.clone())?;
        Ok(process)
    }

    /// Ends and forgets what did not get to run.
    async fn discard(self: &Arc<Self>, key: &Key) {
        let process = self.registry().process(key).cloned();
        if let Ok(process) = process {
            // It may have ended by itself.
            let _ = process.signal(libc::SIGKILL);
            process.ended().await;
        }
        if key.exec.is_none() {
            let cgroup = self.registry().data(&key.container).ok().and_then(|data| data.cgroup.take());
            if let Some(cgroup) = cgroup {
                // The container ran nothing of its own, so nothing is left in it.
                let _ = cgroup.remove();
            }
        }
        self.registry().forget(key);
    }

    /// To be called for everything that there is to hear of children.
    pub fn on_news(self: &Arc<Self>, news: News) {
        match news {
            News::Ended(reaped) => self.on_reaped(reaped),
            News::BrokenPipe(thread) => {
                if !self.end_by_broken_pipe(thread) {
                    // It ignores the signal or has a handler for it; or it is gone.
                    let _ = sys::untrace(thread, libc::SIGPIPE);
                }
            }
        }
    }

    /// Ends a container's first process as its SIGPIPE would, were it any other process, if that is at its default action.
    fn end_by_broken_pipe(&self, thread: i32) -> bool {
        let Some(pid) =
            dies_of_sigpipe(&fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default())
        else {
            return false;
        };
        let process = {
            let registry = self.registry();
            let key = registry.owner(pid).cloned();
            key.and_then(|key| registry.process(&key).ok().cloned())
        };
        let Some(process) = process else { return false };
        process.broken_pipe.store(true, Ordering::Relaxed);
        process.signal(libc::SIGKILL).is_ok()
    }

    fn on_reaped(self: &Arc<Self>, mut reaped: Reaped) {
        let mut registry = self.registry();
        let Some(key) = registry.reaped(reaped.pid) else { return };
        let Ok(process) = registry.process(&key).cloned() else { return };
        let Ok(data) = registry.data(&key.container) else { return };
        if process.broken_pipe.load(Ordering::Relaxed) && i32::from(reaped.signal) == libc::SIGKILL {
            reaped.signal = BROKEN_PIPE;
        }
        let oom_kills = data.cgroup.as_ref().map_or(0, |cgroup| cgroup.oom_kills());
        if let (Some(cgroup), Some(exec)) = (&data.cgroup, &process.cgroup) {
            cgroup.remove_exec(exec.clone());
        }
        let signal = u32::from(reaped.signal);
        let code = if signal == 0 { u32::from(reaped.code) } else { 128 + signal };
        let killed = code == 128 + libc::SIGKILL.cast_unsigned();
        let exit = Exit {
            code,
            signal,
            oom_killed: killed && oom_kills > process.oom_kills_before,
            at_ns: sys::boot_time_ns(),
        };
        let mut namespaces = Vec::new();
        if key.exec.is_none() {
            data.stage = None;
            namespaces = std::mem::take(&mut data.namespaces);
            if data.shares_pids
                && let Some(cgroup) = &data.cgroup
            {
                // Without cgroup.kill the processes live on, as they would in any shared namespace.
                let _ = cgroup.kill();
            }
            registry.stopped(&key.container, exit);
        }
        // An exec that the container's end killed may be the one that leaves the cgroup empty.
        let status = registry.summary(&key.container).map(|summary| summary.status);
        if status == Ok(Status::Stopped)
            && let Ok(data) = registry.data(&key.container)
        {
            tidy(data);
        }
        drop(registry);
        lock(&process.pidfd).take();
        process.phase.send_replace(Phase::Ended(exit));
        process.exited.send_replace(true);
        let guest = self.clone();
        tokio::spawn(async move {
            drain(&process).await;
            // The record first: whoever is woken finds it.
            guest.registry().exec_ended(&key, |known| Arc::ptr_eq(known, &process), exit);
            process.phase.send_replace(Phase::Finished(exit));
            drop((process, guest));
            if !namespaces.is_empty() {
                tokio::time::sleep(LINGER).await;
            }
        });
    }

    /// Waits for a process and its output, however often it is asked.
    pub(super) async fn wait(&self, key: &Key) -> Result<Exit, LifeError> {
        let process = {
            let mut registry = self.registry();
            if let Some(exit) = registry.exec_exit(key) {
                registry.told(key, exit);
                return Ok(exit);
            }
            registry.process(key)?.clone()
        };
        let exit = process.finished().await.ok_or(LifeError::Ended)?;
        self.registry().told(key, exit);
        Ok(exit)
    }

    /// Forgets the record of an exec that has ended.
    pub(super) fn delete_exec(&self, container: &str, exec: &str) -> Result<(), LifeError> {
        Ok(self.registry().delete_exec(container, exec)?)
    }

    /// Sends a signal to one process or to all of a container.
    pub(super) fn signal(&self, key: &Key, signal: u32, all: bool) -> Result<(), LifeError> {
        let number = i32::try_from(signal).ok().filter(|number| (1..=64).contains(number));
        let number = number.ok_or(LifeError::Signal(signal))?;
        let mut registry = self.registry();
        let process = registry.process(key)?.clone();
        if !all {
            drop(registry);
            return process.signal(number);
        }
        let Some(cgroup) = registry.data(&key.container)?.cgroup.clone() else {
            return Err(LifeError::Ended);
        };
        drop(registry);
        if number == libc::SIGKILL {
            return Ok(cgroup.kill()?);
        }
        for pid in cgroup.processes() {
            // A process that ended between the two calls wants no signal; a pidfd makes sure that it is no other.
            if let Ok(pidfd) = sys::open_pidfd(pid) {
                let _ = sys::signal_pidfd(pidfd.as_fd(), number);
            }
        }
        Ok(())
    }

    /// Sets the size of a terminal.
    pub(super) fn resize(&self, key: &Key, rows: u16, columns: u16) -> Result<(), LifeError> {
        let process = self.registry().process(key)?.clone();
        match lock(&process.pumps).as_ref().map(|pumps| pumps.resize(rows, columns)) {
            Some(Ok(true)) => Ok(()),
            Some(Err(error)) => Err(LifeError::Kernel("cannot resize the terminal".to_owned(), error)),
            Some(Ok(false)) => Err(LifeError::NoTerminal),
            None => Err(LifeError::Ended),
        }
    }

    /// Ends a process's input.
    pub(super) fn close_stdin(&self, key: &Key) -> Result<(), LifeError> {
        let process = self.registry().process(key)?.clone();
        if let Some(pumps) = lock(&process.pumps).as_ref() {
            pumps.close_input();
        }
        Ok(())
    }

    /// One container, or all when the id is empty.
    pub(super) fn summaries(&self, id: &str) -> Result<Vec<Summary>, LifeError> {
        let registry = self.registry();
        let ids = if id.is_empty() { registry.ids() } else { vec![id.to_owned()] };
        Ok(ids.iter().map(|id| registry.summary(id)).collect::<Result<_, _>>()?)
    }

    /// Figures of one container (the last ones when it stopped), or of the guest when the id is empty.
    pub(super) fn figures(&self, id: &str) -> Result<CgroupStats, LifeError> {
        if id.is_empty() {
            return Ok(super::guest::figures(&self.config.cgroup_root));
        }
        let mut registry = self.registry();
        let data = registry.data(id)?;
        Ok(data.cgroup.as_ref().map_or_else(|| data.last_figures.clone(), |cgroup| cgroup.stats()))
    }

    /// Asks for the machine's end.
    pub(super) fn request_end(&self, end: End) {
        self.ending.store(true, Ordering::Relaxed);
        // The receiver lives as long as the agent; in a test it may be gone, and then nothing ends.
        let _ = self.end.send(end);
    }

    /// SIGTERM to every container's first process, `grace`, SIGKILL to the rest, and at most as long again.
    pub async fn stop_containers(&self, grace: Duration) {
        let everything = |signal: i32| {
            let mut registry = self.registry();
            let mut alive = Vec::new();
            for id in registry.ids() {
                let Ok(process) = registry.process(&Key::new(&id, "")).cloned() else { continue };
                if *process.phase.borrow() != Phase::Alive {
                    continue;
                }
                if signal == libc::SIGKILL
                    && let Ok(Some(cgroup)) = registry.data(&id).map(|data| data.cgroup.clone())
                {
                    // The signal by pidfd below does it, too, where there is no cgroup.kill.
                    let _ = cgroup.kill();
                }
                let _ = process.signal(signal);
                alive.push(process);
            }
            alive
        };
        let all_ended = |processes: Vec<Arc<Process>>| async move {
            for process in processes {
                process.ended().await;
            }
        };
        let alive = everything(libc::SIGTERM);
        if tokio::time::timeout(grace, all_ended(alive)).await.is_err() {
            let alive = everything(libc::SIGKILL);
            // A process that even SIGKILL cannot end hangs in the kernel: the machine ends without it.
            let _ = tokio::time::timeout(Duration::from_secs(2), all_ended(alive)).await;
        }
    }
}

/// Removes a stopped container's cgroup once it is empty, and keeps its last figures.
fn tidy(data: &mut ContainerData) {
    if let Some(cgroup) = &data.cgroup {
        data.last_figures = cgroup.stats();
        if cgroup.remove() {
            data.cgroup = None;
        }
    }
}

/// The mounts and the network of a process. Without them its end takes longer, no more.
fn namespaces(pid: i32) -> Vec<File> {
    ["mnt", "net"].iter().filter_map(|kind| File::open(format!("/proc/{pid}/ns/{kind}")).ok()).collect()
}

/// The process of a thread, by its `/proc/TID/status`, if SIGPIPE is at its default action there.
fn dies_of_sigpipe(status: &str) -> Option<i32> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let minds = |name: &str| {
        let set = field(name).and_then(|set| u64::from_str_radix(set, 16).ok());
        set.is_none_or(|set| set & 1 << (BROKEN_PIPE - 1) != 0)
    };
    if minds("SigIgn:") || minds("SigCgt:") { None } else { field("Tgid:")?.parse().ok() }
}

fn set_oom_score(pid: i32, score: Option<i32>) -> Result<(), LifeError> {
    let Some(score) = score else { return Ok(()) };
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
        .map_err(|error| LifeError::Kernel(format!("cannot set the OOM score of process {pid}"), error))
}

/// Sets the pumps of a process going; `immune` is its number if the kernel gives it no signal at its default action.
fn start_pumps(
    process: &Process,
    host: HostStreams,
    stage: &mut Stage,
    immune: Option<i32>,
) -> Result<(), LifeError> {
    let pumps = host.start(stage.take_console(), &process.exited.subscribe(), immune);
    let pumps = pumps.map_err(|error| LifeError::Kernel("cannot watch the terminal".to_owned(), error))?;
    *lock(&process.pumps) = Some(pumps);
    Ok(())
}

/// Waits for the output of a process that ended, and lets go of everything it had.
async fn drain(process: &Process) {
    let drained = lock(&process.pumps).as_mut().map(Pumps::take_drained).unwrap_or_default();
    for pump in drained {
        // A pump that is gone has nothing more to move either.
        let _ = pump.await;
    }
    lock(&process.pumps).take();
}
