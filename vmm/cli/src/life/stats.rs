//! `nelly stats`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nelly_sandbox::state::{Condition, Sandboxes, Status};
use serde_json::json;

use super::args::StatsArgs;
use super::{connect, runtime};
use crate::context::Context;
use crate::{fail, out};

/// Prints what sandboxes use, once.
pub(crate) fn stats(args: &StatsArgs, context: &Context) -> Result<ExitCode> {
    let sandboxes = Sandboxes::open(&context.places.sandboxes())?;
    let runtime = runtime()?;
    let mut all = Vec::new();
    let mut failed = false;
    let words = match &sandboxes {
        Some(sandboxes) if args.names.is_empty() => running(sandboxes)?,
        _ => args.names.clone(),
    };
    for word in &words {
        let sandboxes = sandboxes.as_ref().with_context(|| super::NONE);
        let one = sandboxes.and_then(|sandboxes| Ok(sandboxes.find(word)?)).and_then(|sandbox| {
            let stats = runtime.block_on(async { anyhow::Ok(connect(&sandbox).await?.stats().await?) })?;
            Ok((sandbox.record()?.name, sandbox.id(), stats))
        });
        match one.with_context(|| format!("sandbox {word}")) {
            Ok(one) => all.push(one),
            // One that hangs keeps none of the others.
            Err(error) => {
                fail::report(&error, false, 1);
                failed = true;
            }
        }
    }
    if args.json {
        let all: Vec<_> = all
            .into_iter()
            .map(|(name, id, stats)| {
                json!({ "schema": 1, "id": id.to_string(), "name": name.as_str(), "cpu_usage_ns": stats.cpu_usage_ns,
                    "memory_current_bytes": stats.memory_current_bytes, "memory_peak_bytes": stats.memory_peak_bytes,
                    "pids_current": stats.pids_current, "oom_kills": stats.oom_kills,
                    "guest_memory_total_bytes": stats.guest_memory_total_bytes,
                    "guest_memory_available_bytes": stats.guest_memory_available_bytes,
                    "memory_limit_bytes": stats.memory_limit_bytes, "disk_read_bytes": stats.disk_read_bytes,
                    "disk_written_bytes": stats.disk_written_bytes, "monitor_pid": stats.monitor_pid,
                    "monitor_cpu_ns": stats.monitor_cpu_ns,
                    "monitor_resident_bytes": stats.monitor_resident_bytes })
            })
            .collect();
        out::json(format_args!("{:#}", serde_json::Value::from(all)))?;
        return Ok(ExitCode::from(u8::from(failed)));
    }
    out::line(
        "NAME                 CPU SECONDS  MEMORY MiB  LIMIT MiB  PEAK MiB  READ MiB  WRITTEN MiB  PIDS  GUEST FREE MiB  HOST CPU SECONDS  HOST MEMORY MiB",
    )?;
    let seconds = |nanoseconds| std::time::Duration::from_nanos(nanoseconds).as_secs_f64();
    for (name, _, stats) in all {
        let limit = Some(stats.memory_limit_bytes >> 20).filter(|limit| *limit > 0);
        out::line(format_args!(
            "{:<20} {:>11.3} {:>11} {:>10} {:>9} {:>9} {:>12} {:>5} {:>15} {:>17.3} {:>16}",
            name.as_str(),
            seconds(stats.cpu_usage_ns),
            stats.memory_current_bytes >> 20,
            limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
            stats.memory_peak_bytes >> 20,
            stats.disk_read_bytes >> 20,
            stats.disk_written_bytes >> 20,
            stats.pids_current,
            stats.guest_memory_available_bytes >> 20,
            seconds(stats.monitor_cpu_ns),
            stats.monitor_resident_bytes >> 20,
        ))?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// The ids of all sandboxes that run or are paused, and have an agent that could tell: machines of
/// `nelly boot` have none.
fn running(sandboxes: &Sandboxes) -> Result<Vec<String>> {
    let live = sandboxes.list()?.into_iter().filter(|one| {
        one.details.as_ref().is_ok_and(|details| {
            details.record.boot.is_none()
                && matches!(details.condition, Condition::Status(Status::Running | Status::Paused))
        })
    });
    Ok(live.map(|one| one.id.to_string()).collect())
}
