//! Processes side by side: monitors that boot a guest to its marker, and `nelly run` whole.

use std::collections::BTreeMap;
use std::fs;

use nelly_vmm::sys::signals::Signals;
use serde_json::Value;

use super::child::{ProcessSample, measure_memory, watch};
use super::{Progress, RunnerError, syscalls};
use crate::host::Environment;
use crate::peer::{self, Launch};
use crate::plan::{BootPlan, GuestSetup, Rounds, RunPlan, Vmm};
use crate::record::{GuestRecord, Record, SCHEMA, Sample, Series, Skipped};
use crate::timeline;

/// SIGHUP, SIGINT, SIGTERM.
const SIGNALS: [i32; 3] = [1, 2, 15];
/// The word that makes `rootfs/marker.c` wait behind its marker, far longer than a weighing takes.
const IDLE: &str = "hold_ms=60000";

/// Someone who takes a turn in each round.
struct Contestant {
    name: String,
    launch: Launch,
    /// The marker, or `None` for a process that is measured whole.
    marker: Option<String>,
    /// How it boots a guest that idles behind the marker, and that guest's memory in bytes: to be
    /// weighed.
    idle: Option<(Launch, u64)>,
    samples: Vec<Sample>,
    failures: Vec<String>,
}

impl Contestant {
    fn new(name: &str, launch: Launch, marker: Option<String>) -> Self {
        Self { name: name.to_owned(), launch, marker, idle: None, samples: Vec::new(), failures: Vec::new() }
    }

    /// One start.
    fn start(&self, rounds: &Rounds, signals: &Signals) -> Result<Sample, RunnerError> {
        if let Some(result) = &self.launch.result {
            // What an earlier start wrote must not be taken for this one's.
            let _ = fs::remove_file(result);
        }
        let seen = watch(&self.launch, self.marker.as_deref(), rounds.limit, signals)?;
        let said = self.launch.result.as_ref().and_then(|path| fs::read(path).ok());
        let said = said.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
        Ok(sample(&seen, &said, if self.marker.is_some() { "marker" } else { "process_gone" }))
    }
}

/// A sample of what was seen from outside and what the process said of itself.
fn sample(seen: &ProcessSample, said: &Value, end: &str) -> Sample {
    // `nelly run` has its timeline among its timings.
    let mut timeline = timeline::read(said).or_else(|| timeline::read(said.get("timings")?));
    if !seen.stamps.is_empty() {
        // Of a monitor that does not tell of itself, everything until the guest's first stamp is
        // one phase.
        let timeline = timeline.get_or_insert(timeline::begun_at(seen.start_ns));
        timeline::add_ages(timeline, &seen.stamps, seen.end_ns);
    }
    let phases = timeline.map(|timeline| timeline::phases(&timeline, seen.start_ns, end, seen.end_ns));
    Sample {
        round: 0,
        total_ns: seen.end_ns - seen.start_ns,
        teardown_ns: seen.teardown_ns,
        user_ns: Some(seen.usage.user_ns),
        system_ns: Some(seen.usage.system_ns),
        minor_faults: Some(seen.usage.minor_faults),
        major_faults: Some(seen.usage.major_faults),
        peak_rss_bytes: seen.peak_rss_bytes,
        exits: exits(said),
        unattributed_ns: phases.as_ref().map(|phases| phases.unattributed_ns),
        phases: phases.map(|phases| phases.phases).unwrap_or_default(),
    }
}

/// Exits by reason out of an outcome.
pub(super) fn exits(said: &Value) -> Option<BTreeMap<String, u64>> {
    serde_json::from_value(said.get("exits")?.clone()).ok()
}

/// Boots the guest in `nelly-monitor` and in every peer that is there, turn by turn, to the marker
/// on the serial console. With `count_syscalls` each boots once more under strace, untimed.
///
/// # Errors
/// The host failed, or a signal came. That a contestant failed is in the record; it is left out of
/// the rounds that follow.
pub fn boot(
    plan: &BootPlan,
    environment: Environment,
    count_syscalls: bool,
    progress: Progress<'_>,
) -> Result<Record, RunnerError> {
    let signals = Signals::block(&SIGNALS).map_err(RunnerError::host("cannot wait for signals"))?;
    let scratch = tempfile::Builder::new().prefix("nelly-bench-").tempdir();
    let scratch = scratch.map_err(RunnerError::host("cannot make a directory for temporary files"))?;
    // Our own init waits so long behind its marker; any other takes the word as it takes any.
    let idle =
        GuestSetup { command_line: format!("{} {IDLE}", plan.guest.command_line), ..plan.guest.clone() };
    let contestant = |vmm: Vmm, program: &std::path::Path| {
        let launch = |guest| peer::launch(vmm, program, guest, scratch.path());
        let mut contestant = Contestant::new(vmm.name(), launch(&plan.guest), Some(plan.marker.clone()));
        contestant.idle = Some((launch(&idle), idle.memory.get()));
        contestant
    };
    let mut contestants = vec![contestant(Vmm::Nelly, &plan.monitor)];
    let mut skipped = Vec::new();
    for peer in &plan.peers {
        match peer::find(peer) {
            Ok(program) => contestants.push(contestant(peer.vmm, &program)),
            Err(why) => {
                progress(&format!("{} is skipped: {why}", peer.vmm));
                skipped.push(Skipped { name: peer.vmm.name().to_owned(), why });
            }
        }
    }
    let guest = GuestRecord {
        kernel: plan.guest.kernel.display().to_string(),
        initrd: plan.guest.initrd.as_ref().map(|path| path.display().to_string()),
        command_line: plan.guest.command_line.clone(),
        cpus: plan.guest.cpus.get(),
        memory_bytes: plan.guest.memory.get(),
    };
    let mut record = record("boot", "marker", &plan.rounds, guest, environment);
    record.skipped = skipped;
    measure(&mut record, contestants, &plan.rounds, count_syscalls, &signals, progress)?;
    Ok(record)
}

/// Runs `nelly run` whole, from its start to its end.
///
/// # Errors
/// As [`boot`].
pub fn run(
    plan: &RunPlan,
    guest: GuestRecord,
    environment: Environment,
    count_syscalls: bool,
    progress: Progress<'_>,
) -> Result<Record, RunnerError> {
    let signals = Signals::block(&SIGNALS).map_err(RunnerError::host("cannot wait for signals"))?;
    let scratch = tempfile::Builder::new().prefix("nelly-bench-").tempdir();
    let scratch = scratch.map_err(RunnerError::host("cannot make a directory for temporary files"))?;
    let result = scratch.path().join("result.json");
    let mut arguments =
        vec!["run".to_owned(), "--rm".to_owned(), "--result".to_owned(), result.display().to_string()];
    arguments.extend(plan.flags.iter().cloned());
    arguments.push("--".to_owned());
    arguments.extend(plan.command.iter().cloned());
    let launch = Launch {
        program: plan.program.clone(),
        arguments,
        result: Some(result),
        ours: true,
        ends_itself: true,
        ..Launch::default()
    };
    let contestants = vec![Contestant::new("nelly", launch, None)];
    let mut record = record("run", "process_gone", &plan.rounds, guest, environment);
    measure(&mut record, contestants, &plan.rounds, count_syscalls, &signals, progress)?;
    Ok(record)
}

/// A record without samples.
pub(super) fn record(
    bench: &str,
    until: &str,
    rounds: &Rounds,
    guest: GuestRecord,
    environment: Environment,
) -> Record {
    Record {
        schema: SCHEMA,
        bench: bench.to_owned(),
        until: until.to_owned(),
        rounds: rounds.counted,
        warm_up_rounds: rounds.warm_up,
        guest,
        environment,
        warnings: Vec::new(),
        skipped: Vec::new(),
        series: Vec::new(),
        steps: Vec::new(),
    }
}

/// Takes every turn.
fn measure(
    record: &mut Record,
    mut contestants: Vec<Contestant>,
    rounds: &Rounds,
    count_syscalls: bool,
    signals: &Signals,
    progress: Progress<'_>,
) -> Result<(), RunnerError> {
    for (round, who) in rounds.turns(contestants.len()) {
        let contestant = &mut contestants[who];
        if !contestant.failures.is_empty() {
            continue;
        }
        let number = round + 1;
        progress(&format!("round {number} of {}: {}", rounds.warm_up + rounds.counted, contestant.name));
        match contestant.start(rounds, signals) {
            Ok(mut sample) => {
                if let Some(counted) = round.checked_sub(rounds.warm_up) {
                    sample.round = counted;
                    contestant.samples.push(sample);
                }
            }
            Err(stop @ (RunnerError::Interrupted(_) | RunnerError::Host { .. })) => return Err(stop),
            Err(error) => contestant.failures.push(format!("round {number}: {}", error.chain())),
        }
    }
    for contestant in contestants {
        let (mut syscalls, mut held) = (None, None);
        if count_syscalls && contestant.failures.is_empty() {
            progress(&format!("counting system calls: {}", contestant.name));
            let marker = contestant.marker.as_deref();
            let count = syscalls::count(&contestant.launch, marker, rounds.limit, signals);
            syscalls = beside(record, &contestant.name, "system calls were not counted", count)?;
        }
        if let (Some((launch, bytes)), Some(marker), []) =
            (&contestant.idle, &contestant.marker, &contestant.failures[..])
        {
            progress(&format!("measuring memory use: {}", contestant.name));
            let weighed = measure_memory(launch, marker, *bytes, rounds.limit, signals);
            held = beside(record, &contestant.name, "memory use was not measured", weighed)?;
        }
        let command = contestant.launch.command();
        let series = Series::new(contestant.name, command, contestant.samples, contestant.failures);
        record.series.push(Series { syscalls, held, ..series });
    }
    record.finish();
    Ok(())
}

/// What was found out in a start that is not timed; that it could not be is a warning, and no more.
fn beside<T>(
    record: &mut Record,
    name: &str,
    not: &str,
    found: Result<T, RunnerError>,
) -> Result<Option<T>, RunnerError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(RunnerError::Interrupted(number)) => Err(RunnerError::Interrupted(number)),
        Err(error) => {
            record.warnings.push(format!("{name}: {not}: {}", error.chain()));
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use nelly_vmm::config::{CpuCount, MemorySize, Platform};

    use super::*;
    use crate::plan::{GuestSetup, Peer};

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Boots with scripts in the monitors' places, in a thread whose blocked signals go with it.
    fn booted(monitor: PathBuf, peers: Vec<Peer>, counted: u32) -> (Record, Vec<String>) {
        let guest = GuestSetup {
            kernel: "/k".into(),
            initrd: None,
            command_line: "quiet".into(),
            cpus: CpuCount::default(),
            memory: MemorySize::default(),
            platform: Platform::Auto,
        };
        let rounds = Rounds { counted, warm_up: 1, limit: Duration::from_secs(30) };
        let plan = BootPlan { guest, monitor, peers, rounds, marker: "M!".into() };
        let booted = std::thread::spawn(move || {
            let mut said = Vec::new();
            let record = boot(&plan, Environment::default(), false, &mut |line| said.push(line.to_owned()));
            (record.unwrap(), said)
        });
        booted.join().unwrap()
    }

    #[test]
    fn contestants_take_turns_and_say_what_they_know() {
        let directory = tempfile::tempdir().unwrap();
        // Its four arguments are --config FILE --result FILE.
        let ours = script(
            directory.path(),
            "ours",
            r#"echo M!; at=$((NELLY_ORIGIN_NS + 1000)); printf '{"exits":{"pio_write":3},"timeline":{"clock":"CLOCK_MONOTONIC","origin_ns":%s,"stamps":[{"name":"main","at_ns":%s}]}}' "$NELLY_ORIGIN_NS" $at >"$4""#,
        );
        let theirs =
            script(directory.path(), "theirs", "[ -z \"$NELLY_ORIGIN_NS\" ] || exit 9; sleep 0.1; echo M!");
        let peers = vec![
            Peer { vmm: Vmm::Qemu, program: Some(theirs) },
            Peer { vmm: Vmm::Alioth, program: Some("/no/such/alioth".into()) },
        ];
        let (record, said) = booted(ours, peers, 3);
        assert_eq!(record.skipped[0].name, "alioth");
        assert!(record.skipped[0].why.contains("/no/such/alioth"));
        assert!(said.iter().any(|line| line.contains("alioth is skipped")), "{said:?}");
        assert!(said.iter().any(|line| line == "round 4 of 4: qemu"), "{said:?}");
        let [nelly, qemu] = &record.series[..] else { panic!("{:?}", record.series) };
        assert!(record.went_well(), "{:?} {:?}", nelly.failures, qemu.failures);
        assert_eq!((nelly.samples.len(), qemu.samples.len()), (3, 3));
        for sample in &nelly.samples {
            assert_eq!(sample.exits.as_ref().unwrap()["pio_write"], 3);
            assert_eq!(sample.phases[0].duration_ns, 1000);
            let sum: u64 = sample.phases.iter().map(|phase| phase.duration_ns).sum();
            assert_eq!((sum, sample.unattributed_ns), (sample.total_ns, Some(0)));
            assert_eq!(sample.phases.last().unwrap().name, "marker");
        }
        assert!(qemu.samples.iter().all(|sample| sample.phases.is_empty() && sample.exits.is_none()));
        assert!(qemu.summary_ns.as_ref().unwrap().min >= 100_000_000);
    }

    #[test]
    fn who_fails_once_is_out_and_the_others_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let ours = script(directory.path(), "ours", "echo M!");
        let theirs = script(directory.path(), "theirs", "echo bad kernel; exit 1");
        let (record, _) = booted(ours, vec![Peer { vmm: Vmm::Firecracker, program: Some(theirs) }], 2);
        let [nelly, firecracker] = &record.series[..] else { panic!("{:?}", record.series) };
        assert_eq!((nelly.samples.len(), firecracker.samples.len()), (2, 0));
        assert_eq!(firecracker.failures.len(), 1);
        assert!(
            firecracker.failures[0].contains("round 1") && firecracker.failures[0].contains("bad kernel")
        );
        assert!(firecracker.summary_ns.is_none() && !record.went_well());
    }
}
