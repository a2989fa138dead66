//! Benchmarks of machines with the agent, through the library: the time until the agent answers,
//! and the time of an exec in a running machine.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use nelly_image::{ImageConfiguration, Reference, Silent, Store, StoreOptions};
use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::Sandbox;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::spec::{ContainerSpec, MachineSpec, Overrides, ProcessSpec};
use nelly_vmm::config::{Confine, FileSource};
use nelly_vmm::machine::{Isolation, Outcome, Resources};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::boot::{exits, record};
use super::{Progress, RunnerError};
use crate::host::Environment;
use crate::memory_use::{self, MemoryUse};
use crate::plan::{Rounds, SandboxPlan};
use crate::record::{GuestRecord, Record, Sample, Series};
use crate::sys;
use crate::timeline;

/// Time limit for the shutdown of machines.
const LAST: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Runs `work` until it ends or a signal arrives. Everything that it started is dropped, and
/// thereby ended, in both cases.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, RunnerError>>) -> Result<T, RunnerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(RunnerError::host("cannot start the runtime"))?;
    let done = runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(RunnerError::host("cannot listen for signals"));
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let mut hangup = listen(SignalKind::hangup())?;
        tokio::select! {
            done = work => done,
            _ = interrupt.recv() => Err(RunnerError::Interrupted(2)),
            _ = terminate.recv() => Err(RunnerError::Interrupted(15)),
            _ = hangup.recv() => Err(RunnerError::Interrupted(1)),
        }
    });
    runtime.shutdown_background();
    done
}

/// What all starts of a plan have in common.
pub(super) struct SandboxSetup<'a> {
    plan: &'a SandboxPlan,
    disk: Vec<File>,
    image: ImageConfiguration,
    /// Of the monitors, where this user is not root.
    confine: Confine,
}

impl<'a> SandboxSetup<'a> {
    /// Unpacks the built-in image if it is not cached.
    pub(super) fn new(plan: &'a SandboxPlan) -> Result<Self, RunnerError> {
        let mut options = StoreOptions::new(&plan.cache);
        options.builtin = Some(plan.builtin.clone());
        let image = Store::open(options)?.resolve(&Reference::BuiltinBusybox, &mut Silent)?;
        Ok(Self { plan, disk: image.disk, image: image.config, confine: Confine::On })
    }

    /// Whose monitors show this user what they hold.
    pub(super) fn shown(self) -> Self {
        Self { confine: Confine::Off, ..self }
    }

    /// Starts a machine. Returns also the clock immediately before the start, after all
    /// preparations.
    pub(super) async fn start(&self, name: &str) -> Result<(u64, Sandbox), RunnerError> {
        let mut resources = Resources::new();
        let disk: Result<Vec<_>, _> = self.disk.iter().map(File::try_clone).collect();
        let disk = disk.map_err(RunnerError::host("cannot duplicate the image's file descriptors"))?;
        let path = |path: &std::path::Path| FileSource::Path(path.to_owned());
        let (kernel, initrd) = (path(&self.plan.kernel), path(&self.plan.initrd));
        let mut spec = MachineSpec::new(kernel, initrd, resources.add_all(disk));
        spec.platform = self.plan.platform;
        spec.cpus = self.plan.cpus;
        spec.memory = self.plan.memory;
        spec.append.clone_from(&self.plan.append);
        if !rustix::process::geteuid().is_root() {
            // What a confined monitor holds is shown to root alone.
            spec.confine = self.confine;
        }
        let config = spec.config()?;
        let isolation = Isolation::Process { monitor: self.plan.monitor.clone() };
        let start_ns = sys::now_ns();
        Ok((start_ns, Sandbox::start(config, resources, isolation, name).await?))
    }

    /// The specification of `command`, without standard input.
    fn process(&self, command: &[String]) -> Result<ProcessSpec, RunnerError> {
        let overrides = Overrides { command: command.to_vec(), ..Overrides::default() };
        let config = self.image.config().clone().unwrap_or_default();
        Ok(ProcessSpec::merge(&config, &overrides, "bench")?)
    }

    /// The description of the guest in the record.
    pub(super) fn guest(&self) -> GuestRecord {
        GuestRecord {
            kernel: self.plan.kernel.display().to_string(),
            initrd: Some(self.plan.initrd.display().to_string()),
            command_line: self.plan.append.clone(),
            cpus: self.plan.cpus.get(),
            memory_bytes: self.plan.memory.get(),
        }
    }
}

/// Shuts down a machine and waits for its end; `None` if it does not end in time.
pub(super) async fn shut_down(sandbox: &Sandbox) -> Option<Outcome> {
    // If the agent does not answer, the machine is ended below.
    let _ = sandbox.agent().shutdown(0).await;
    let machine = sandbox.machine();
    let _ = poll(&mut [PollFd::new(&machine.as_fd(), PollFlags::IN)], Some(&LAST));
    machine.try_wait()
}

/// Starts machines one after another, and measures the time until the agent answers.
///
/// # Errors
/// A failure of the host, or a signal. A failed start is recorded, and ends the benchmark.
pub fn ready(
    plan: &SandboxPlan,
    rounds: &Rounds,
    environment: Environment,
    progress: Progress<'_>,
) -> Result<Record, RunnerError> {
    let setup = SandboxSetup::new(plan)?;
    let mut record = record("boot", "ready", rounds, setup.guest(), environment);
    let (mut samples, mut failures) = (Vec::new(), Vec::new());
    let mut held = None;
    block_on(async {
        for (round, _) in rounds.turns(1) {
            let number = round + 1;
            progress(&format!("round {number} of {}: nelly", rounds.warm_up + rounds.counted));
            match tokio::time::timeout(rounds.limit, ready_once(&setup)).await {
                Ok(Ok((mut sample, weighed))) => {
                    held = weighed.or(held);
                    if let Some(counted) = round.checked_sub(rounds.warm_up) {
                        sample.round = counted;
                        samples.push(sample);
                    }
                }
                Ok(Err(stop @ RunnerError::Host { .. })) => return Err(stop),
                Ok(Err(error)) => failures.push(format!("round {number}: {}", error.chain())),
                Err(_) => failures
                    .push(format!("round {number}: no answer within {} s", rounds.limit.as_secs_f32())),
            }
            if !failures.is_empty() {
                break;
            }
        }
        Ok(())
    })?;
    let command = format!("Sandbox::start by {}", plan.monitor.display());
    record.series.push(Series { held, ..Series::new("nelly", command, samples, failures) });
    record.finish();
    Ok(record)
}

/// One start, and the memory use of its monitor after it.
async fn ready_once(setup: &SandboxSetup<'_>) -> Result<(Sample, Option<MemoryUse>), RunnerError> {
    let before = sys::children();
    let (start_ns, sandbox) = setup.start("bench").await?;
    let end_ns = sys::now_ns();
    let id = sandbox.machine().process_id();
    let peak_rss_bytes = id.and_then(memory_use::peak_rss_bytes);
    let held = id.and_then(|id| memory_use::measure(id, setup.plan.memory.get()).ok());
    let leave_ns = sys::now_ns();
    let outcome = shut_down(&sandbox).await;
    drop(sandbox);
    let gone_ns = sys::now_ns();
    let usage = sys::children().since(&before);
    let said = outcome.and_then(|outcome| serde_json::to_value(outcome).ok()).unwrap_or(Value::Null);
    let phases = timeline::read(&said).map(|timeline| timeline::phases(&timeline, start_ns, "ready", end_ns));
    let sample = Sample {
        round: 0,
        total_ns: end_ns - start_ns,
        teardown_ns: Some(gone_ns - leave_ns),
        user_ns: Some(usage.user_ns),
        system_ns: Some(usage.system_ns),
        minor_faults: Some(usage.minor_faults),
        major_faults: Some(usage.major_faults),
        peak_rss_bytes,
        exits: exits(&said),
        unattributed_ns: phases.as_ref().map(|phases| phases.unattributed_ns),
        phases: phases.map(|phases| phases.phases).unwrap_or_default(),
    };
    Ok((sample, held))
}

/// Runs `command` repeatedly in one container, and measures the time from the call to its exit.
///
/// # Errors
/// The machine did not start, the host failed, or a signal arrived. A failed exec is recorded, and
/// ends the benchmark.
pub fn exec(
    plan: &SandboxPlan,
    command: &[String],
    rounds: &Rounds,
    environment: Environment,
    progress: Progress<'_>,
) -> Result<Record, RunnerError> {
    let setup = SandboxSetup::new(plan)?;
    let mut record = record("exec", "exit", rounds, setup.guest(), environment);
    let (mut samples, mut failures) = (Vec::new(), Vec::new());
    block_on(async {
        progress("starting the machine");
        let (_, sandbox) = setup.start("bench").await?;
        // It runs as long as the machine.
        let first = ["sleep", "1000000000"].map(str::to_owned);
        let container = ContainerSpec::new(setup.process(&first)?, "bench");
        let started = sandbox.run("bench", &container, IMAGE_DEVICE, None).await?;
        let _streams = started.map_err(|failure| failed(&first, failure.message))?;
        let process = setup.process(command)?;
        for (round, _) in rounds.turns(1) {
            let number = round + 1;
            progress(&format!("exec {number} of {}", rounds.warm_up + rounds.counted));
            let id = format!("exec-{number}");
            let once = exec_once(&sandbox, &id, &process, command);
            match tokio::time::timeout(rounds.limit, once).await {
                Ok(Ok(total_ns)) => {
                    if let Some(round) = round.checked_sub(rounds.warm_up) {
                        samples.push(Sample { round, total_ns, ..Sample::default() });
                    }
                }
                Ok(Err(error)) => failures.push(format!("exec {number}: {}", error.chain())),
                Err(_) => failures
                    .push(format!("exec {number}: not finished within {} s", rounds.limit.as_secs_f32())),
            }
            if !failures.is_empty() {
                break;
            }
        }
        shut_down(&sandbox).await;
        Ok(())
    })?;
    record.series.push(Series::new("nelly", command.join(" "), samples, failures));
    record.finish();
    Ok(record)
}

async fn exec_once(
    sandbox: &Sandbox,
    id: &str,
    process: &ProcessSpec,
    command: &[String],
) -> Result<u64, RunnerError> {
    let id = ProcessId { container: "bench", exec: id };
    let start_ns = sys::now_ns();
    let streams = sandbox.exec(id, process, None).await?;
    let streams = streams.map_err(|failure| failed(command, failure.message))?;
    let done = sandbox.agent().wait(id).await?;
    let total_ns = sys::now_ns() - start_ns;
    if done.exit_code != 0 {
        let mut said = String::new();
        if let Some(mut stderr) = streams.stderr {
            // The process has ended, so the stream ends.
            let _ = stderr.read_to_string(&mut said);
        }
        return Err(failed(command, format!("exit code {} {}", done.exit_code, said.trim())));
    }
    Ok(total_ns)
}

fn failed(command: &[String], how: String) -> RunnerError {
    RunnerError::Command { command: command.join(" "), how: how.trim_end().to_owned() }
}
