//! `linux.resources` as values of cgroup v2 files. Pure; a limit that cgroup v2 cannot express is
//! refused by name.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use thiserror::Error;

/// A limit that cannot be enforced, or a value that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LimitError {
    /// cgroup v2 has nothing like it.
    #[error("linux.resources.{0} cannot be enforced by cgroup v2")]
    Unsupported(&'static str),
    /// Out of range or contradictory.
    #[error("linux.resources.{0} has an invalid value")]
    Value(&'static str),
    /// `unified` names something that is no file of a cgroup.
    #[error("linux.resources.unified has the key {0:?}, which is not a cgroup file name")]
    Unified(String),
}

/// One value for one file of the cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupSetting {
    /// File name, without a directory.
    pub file: String,
    /// What is written.
    pub value: String,
    /// The kernel may lack the file when there is nothing to limit (no swap, no such controller's
    /// extra).
    pub optional: bool,
}

fn set(file: &str, value: impl ToString) -> CgroupSetting {
    CgroupSetting { file: file.to_owned(), value: value.to_string(), optional: false }
}

/// `max` for a negative value, the bytes otherwise.
fn bytes(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Turns `linux.resources` (devices aside) into settings in the order in which they must be
/// written.
///
/// # Errors
/// [`LimitError`] names the first limit that would be lost.
pub fn settings(resources: &LinuxResources) -> Result<Vec<CgroupSetting>, LimitError> {
    let mut out = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut out)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut out)?;
    }
    if let Some(pids) = resources.pids() {
        // 0 and less mean "no limit" in every engine's configuration.
        let limit = pids.limit();
        out.push(set("pids.max", if limit > 0 { limit.to_string() } else { "max".to_owned() }));
    }
    if let Some(io) = resources.block_io() {
        io_settings(io, &mut out)?;
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        if !huge.page_size().bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(LimitError::Value("hugepageLimits.pageSize"));
        }
        out.push(set(&format!("hugetlb.{}.max", huge.page_size()), bytes(huge.limit())));
    }
    if let Some(network) = resources.network() {
        let none = network.class_id().unwrap_or(0) == 0
            && network.priorities().as_deref().unwrap_or_default().is_empty();
        if !none {
            return Err(LimitError::Unsupported("network"));
        }
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(LimitError::Unsupported("rdma"));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        let plain = file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !plain || !file.contains('.') || file.starts_with('.') || file.starts_with("cgroup.") {
            return Err(LimitError::Unified(file.clone()));
        }
        out.push(set(file, value));
    }
    Ok(out)
}

fn memory_settings(memory: &LinuxMemory, out: &mut Vec<CgroupSetting>) -> Result<(), LimitError> {
    if memory.kernel().is_some_and(|limit| limit > 0) {
        return Err(LimitError::Unsupported("memory.kernel"));
    }
    if memory.kernel_tcp().is_some_and(|limit| limit > 0) {
        return Err(LimitError::Unsupported("memory.kernelTCP"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(LimitError::Unsupported("memory.disableOOMKiller"));
    }
    if memory.swappiness().is_some() {
        return Err(LimitError::Unsupported("memory.swappiness"));
    }
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        // The spec counts memory and swap together, cgroup v2 counts swap alone.
        let value = match (swap, limit) {
            (..0, _) => "max".to_owned(),
            (_, Some(limit @ 0..)) if swap >= limit => (swap - limit).to_string(),
            _ => return Err(LimitError::Value("memory.swap")),
        };
        out.push(CgroupSetting { optional: true, ..set("memory.swap.max", value) });
    }
    if let Some(limit) = limit {
        out.push(set("memory.max", bytes(limit)));
    }
    if let Some(low) = memory.reservation().filter(|low| *low != 0) {
        out.push(set("memory.low", bytes(low)));
    }
    Ok(())
}

fn cpu_settings(cpu: &LinuxCpu, out: &mut Vec<CgroupSetting>) -> Result<(), LimitError> {
    if cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)
        || cpu.realtime_period().is_some_and(|period| period != 0)
    {
        return Err(LimitError::Unsupported("cpu.realtimeRuntime"));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        out.push(set("cpu.weight", weight_of_shares(shares)));
    }
    if let Some(idle) = cpu.idle() {
        out.push(set("cpu.idle", idle));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or("max".to_owned(), bytes);
        out.push(set("cpu.max", format!("{quota} {}", period.unwrap_or(100_000))));
    }
    if let Some(burst) = cpu.burst() {
        out.push(set("cpu.max.burst", burst));
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            out.push(set(file, list));
        }
    }
    Ok(())
}

/// Shares 2 to 262144 on weights 1 to 10000, linearly, as every engine does it.
fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

fn io_settings(io: &LinuxBlockIo, out: &mut Vec<CgroupSetting>) -> Result<(), LimitError> {
    if io.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(LimitError::Unsupported("blockIO.leafWeight"));
    }
    if io.weight_device().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(LimitError::Unsupported("blockIO.weightDevice"));
    }
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        // 10 to 1000 on 1 to 10000.
        let weight = u64::from(weight.clamp(10, 1000));
        out.push(set("io.weight", format!("default {}", 1 + (weight - 10) * 9999 / 990)));
    }
    let mut throttle = |word: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let value = format!("{}:{} {word}={}", device.major(), device.minor(), device.rate());
            out.push(set("io.max", value));
        }
    };
    throttle("rbps", io.throttle_read_bps_device());
    throttle("wbps", io.throttle_write_bps_device());
    throttle("riops", io.throttle_read_iops_device());
    throttle("wiops", io.throttle_write_iops_device());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<Vec<(String, String)>, LimitError> {
        let resources = serde_json::from_str(json).expect("resources");
        Ok(settings(&resources)?.into_iter().map(|one| (one.file, one.value)).collect())
    }

    #[test]
    fn table_of_limits() {
        for (json, expected) in [
            ("{}", vec![]),
            (r#"{"memory":{"limit":1048576}}"#, vec![("memory.max", "1048576")]),
            (
                r#"{"memory":{"limit":100,"swap":150,"reservation":50}}"#,
                vec![("memory.swap.max", "50"), ("memory.max", "100"), ("memory.low", "50")],
            ),
            (r#"{"memory":{"limit":-1,"swap":-1}}"#, vec![("memory.swap.max", "max"), ("memory.max", "max")]),
            (r#"{"cpu":{"shares":1024}}"#, vec![("cpu.weight", "39")]),
            (r#"{"cpu":{"shares":2}}"#, vec![("cpu.weight", "1")]),
            (r#"{"cpu":{"shares":262144}}"#, vec![("cpu.weight", "10000")]),
            (r#"{"cpu":{"quota":50000}}"#, vec![("cpu.max", "50000 100000")]),
            (r#"{"cpu":{"quota":-1,"period":20000}}"#, vec![("cpu.max", "max 20000")]),
            (
                r#"{"cpu":{"cpus":"0-1","mems":"0","idle":1}}"#,
                vec![("cpu.idle", "1"), ("cpuset.cpus", "0-1"), ("cpuset.mems", "0")],
            ),
            (r#"{"pids":{"limit":32}}"#, vec![("pids.max", "32")]),
            (r#"{"pids":{"limit":-1}}"#, vec![("pids.max", "max")]),
            (
                r#"{"blockIO":{"weight":1000,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}]}}"#,
                vec![("io.weight", "default 10000"), ("io.max", "8:0 rbps=600")],
            ),
            (r#"{"unified":{"memory.high":"9"}}"#, vec![("memory.high", "9")]),
            (r#"{"hugepageLimits":[{"pageSize":"2MB","limit":5}]}"#, vec![("hugetlb.2MB.max", "5")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
            assert_eq!(of(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        for (json, error) in [
            (r#"{"memory":{"swap":5}}"#, LimitError::Value("memory.swap")),
            (r#"{"memory":{"limit":10,"swap":5}}"#, LimitError::Value("memory.swap")),
            (r#"{"memory":{"disableOOMKiller":true}}"#, LimitError::Unsupported("memory.disableOOMKiller")),
            (r#"{"memory":{"swappiness":5}}"#, LimitError::Unsupported("memory.swappiness")),
            (r#"{"network":{"classID":5}}"#, LimitError::Unsupported("network")),
            (r#"{"unified":{"../x.y":"1"}}"#, LimitError::Unified("../x.y".into())),
            (r#"{"unified":{"cgroup.procs":"1"}}"#, LimitError::Unified("cgroup.procs".into())),
        ] {
            assert_eq!(of(json), Err(error), "{json}");
        }
    }
}
