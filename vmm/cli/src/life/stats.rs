//! `nelly stats`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::args::StatsArgs;
use super::{connect, runtime, sandboxes};
use crate::context::Context;
use crate::out;

/// Prints what sandboxes use, once.
pub(crate) fn stats(args: &StatsArgs, context: &Context) -> Result<ExitCode> {
    let (sandboxes, runtime) = (sandboxes(context)?, runtime()?);
    let mut all = Vec::new();
    for word in &args.names.names {
        let sandbox = sandboxes.find(word)?;
        let stats = runtime.block_on(async { anyhow::Ok(connect(&sandbox).await?.stats().await?) });
        let stats = stats.with_context(|| format!("sandbox {word}"))?;
        all.push((sandbox.record()?.name, sandbox.id(), stats));
    }
    if args.json {
        let all: Vec<_> = all
            .into_iter()
            .map(|(name, id, stats)| {
                json!({ "schema": 1, "id": id.to_string(), "name": name.as_str(), "cpu_usage_ns": stats.cpu_usage_ns,
                    "memory_current_bytes": stats.memory_current_bytes, "memory_peak_bytes": stats.memory_peak_bytes,
                    "pids_current": stats.pids_current, "oom_kills": stats.oom_kills,
                    "guest_memory_total_bytes": stats.guest_memory_total_bytes,
                    "guest_memory_available_bytes": stats.guest_memory_available_bytes, "monitor_pid": stats.monitor_pid })
            })
            .collect();
        out::json(format_args!("{:#}", serde_json::Value::from(all)))?;
        return Ok(ExitCode::SUCCESS);
    }
    out::line("NAME                 CPU SECONDS  MEMORY MiB  PEAK MiB  GUEST FREE MiB  PIDS")?;
    for (name, _, stats) in all {
        let seconds = std::time::Duration::from_nanos(stats.cpu_usage_ns);
        out::line(format_args!(
            "{:<20} {:>11.3} {:>11} {:>9} {:>15} {:>5}",
            name.as_str(),
            seconds.as_secs_f64(),
            stats.memory_current_bytes >> 20,
            stats.memory_peak_bytes >> 20,
            stats.guest_memory_available_bytes >> 20,
            stats.pids_current
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
