//! What was measured, as it is written to JSON (`schema` 1, units in names, fields only ever added)
//! and read back to be compared.

use std::collections::BTreeMap;

use nelly_vmm::sys::at_most;
use serde::{Deserialize, Serialize};

use crate::host::Environment;
use crate::memory_use::MemoryUse;
use crate::stats::Summary;
use crate::timeline::PhaseDuration;

/// The schema that this build writes and reads.
pub const SCHEMA: u32 = 1;

/// One start, or one exec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The round, from 0, warm-up not counted.
    pub round: u32,
    /// From start to end.
    pub total_ns: u64,
    /// From the last that the guest said to the process's own end; `None` where it was ended, or is
    /// not a process.
    pub teardown_ns: Option<u64>,
    /// Processor time of the process (and what it waited for), whole life.
    pub user_ns: Option<u64>,
    /// Of the kernel for it; what guests take is in here or in `user_ns`, as the host counts.
    pub system_ns: Option<u64>,
    /// Page faults without a read.
    pub minor_faults: Option<u64>,
    /// Page faults with one.
    pub major_faults: Option<u64>,
    /// Most resident memory until the end, the guest's included.
    pub peak_rss_bytes: Option<u64>,
    /// What made vCPUs leave the guest, by reason; `None` for those who do not say.
    pub exits: Option<BTreeMap<String, u64>>,
    /// Phases by the timeline; empty without one.
    #[serde(default)]
    pub phases: Vec<PhaseDuration>,
    /// What phases leave out; `None` without a timeline.
    pub unattributed_ns: Option<u64>,
}

/// One phase over all samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseSummary {
    /// Its name.
    pub name: String,
    /// Mean over the samples, so that phases add up to the mean whole.
    pub mean_ns: u64,
    /// Median.
    pub p50_ns: u64,
}

/// Everything about one contestant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// The program and its arguments, or what stands for them.
    pub command: String,
    /// Of `total_ns`, in nanoseconds; `None` when every start failed.
    pub summary_ns: Option<Summary>,
    /// Phases by time; empty without a timeline.
    pub phases: Vec<PhaseSummary>,
    /// Mean of what phases leave out.
    pub unattributed_mean_ns: Option<u64>,
    /// System calls of one more start, which is not timed; `None` where they were not counted.
    #[serde(default)]
    pub syscalls: Option<u64>,
    /// What it holds when the guest has come to the end of a start, and idles; `None` where it was
    /// not weighed.
    #[serde(default)]
    pub held: Option<MemoryUse>,
    /// Raw, in order.
    pub samples: Vec<Sample>,
    /// Why it has no more samples; empty when all went well.
    pub failures: Vec<String>,
}

impl Series {
    /// Adds up `samples`.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        command: String,
        samples: Vec<Sample>,
        failures: Vec<String>,
    ) -> Self {
        let totals: Vec<u64> = samples.iter().map(|sample| sample.total_ns).collect();
        let unattributed: Vec<u64> = samples.iter().filter_map(|sample| sample.unattributed_ns).collect();
        Self {
            name: name.into(),
            command,
            summary_ns: Summary::of(&totals),
            phases: phases(&samples),
            unattributed_mean_ns: mean(&unattributed),
            syscalls: None,
            held: None,
            samples,
            failures,
        }
    }

    /// The totals, in order.
    #[must_use]
    pub fn totals(&self) -> Vec<u64> {
        self.samples.iter().map(|sample| sample.total_ns).collect()
    }

    /// A figure's median over the samples that have it.
    #[must_use]
    pub fn median_of(&self, figure: impl Fn(&Sample) -> Option<u64>) -> Option<u64> {
        let values: Vec<u64> = self.samples.iter().filter_map(figure).collect();
        (!values.is_empty()).then(|| crate::stats::median(&values))
    }
}

pub(crate) fn mean(values: &[u64]) -> Option<u64> {
    values.iter().sum::<u64>().checked_div(values.len() as u64)
}

/// Phases in the order of the first sample that has any; a phase that a sample lacks took no time
/// in it.
fn phases(samples: &[Sample]) -> Vec<PhaseSummary> {
    let mut names: Vec<&str> = Vec::new();
    for name in samples.iter().flat_map(|sample| &sample.phases).map(|phase| phase.name.as_str()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // The benchmark's own stamp ends every sample, wherever the others were first seen.
    if let Some(last) = samples.iter().find_map(|sample| sample.phases.last()) {
        names.retain(|name| *name != last.name);
        names.push(&last.name);
    }
    let timed: Vec<&Sample> = samples.iter().filter(|sample| !sample.phases.is_empty()).collect();
    let summary = |name: &str| {
        let of = |sample: &&Sample| {
            sample.phases.iter().filter(|phase| phase.name == name).map(|phase| phase.duration_ns).sum()
        };
        let values: Vec<u64> = timed.iter().map(of).collect();
        PhaseSummary {
            name: name.to_owned(),
            mean_ns: mean(&values).unwrap_or(0),
            p50_ns: crate::stats::median(&values),
        }
    };
    names.into_iter().map(summary).collect()
}

/// The guest, as a report names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    /// Kernel.
    pub kernel: String,
    /// Initramfs.
    pub initrd: Option<String>,
    /// Command line.
    pub command_line: String,
    /// vCPUs.
    pub cpus: u8,
    /// Memory.
    pub memory_bytes: u64,
}

/// A contestant that was asked for and is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

/// One more machine of `bench density`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DensityStep {
    /// Machines that run, this one included.
    pub machines: u32,
    /// From its start to its agent's answer.
    pub start_ns: u64,
    /// What it holds, once all that it shares is shared.
    #[serde(flatten)]
    pub held: MemoryUse,
    /// All machines together, shared pages by their share.
    pub all_pss_bytes: u64,
    /// By how much that grew with this machine.
    pub marginal_pss_bytes: i64,
    /// What the host has left.
    pub available_bytes: u64,
}

/// A benchmark's whole result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `boot`, `run`, `exec` or `density`.
    pub bench: String,
    /// What ends a sample.
    pub until: String,
    /// Rounds that count.
    pub rounds: u32,
    /// Rounds before them.
    pub warm_up_rounds: u32,
    /// The guest.
    pub guest: GuestRecord,
    /// The host.
    pub environment: Environment,
    /// Why to read with care.
    pub warnings: Vec<String>,
    /// Contestants that are not there.
    pub skipped: Vec<Skipped>,
    /// Contestants, ourselves first. Empty for `density`.
    pub series: Vec<Series>,
    /// Of `density`; else empty.
    #[serde(default)]
    pub steps: Vec<DensityStep>,
}

/// A spread of this much between the median and nine of ten samples is noise of the host, in
/// permille of the median.
const NOISY_PERMILLE: u64 = 250;

impl Record {
    /// Ends the measuring: takes the load, and says what is noisy or does not add up.
    pub fn finish(&mut self) {
        self.environment.finish();
        self.warnings.extend(self.environment.warnings());
        for series in &self.series {
            let Some(summary) = &series.summary_ns else { continue };
            let spread = permille(summary.p90 - summary.p50, summary.p50);
            if spread > NOISY_PERMILLE {
                let spread = spread / 10;
                self.warnings.push(format!(
                    "{}: the samples are noisy: the 90th percentile is {spread} % above the median",
                    series.name
                ));
            }
            if let Some(rest) = series.unattributed_mean_ns {
                let rest = permille(rest, mean(&series.totals()).unwrap_or(0));
                if rest >= 20 {
                    let percent = crate::host::hundredths(rest * 10);
                    self.warnings.push(format!(
                        "{}: {percent} % of the time is not covered by any phase",
                        series.name
                    ));
                }
            }
        }
    }

    /// Whether every start went well.
    #[must_use]
    pub fn went_well(&self) -> bool {
        self.series.iter().all(|series| series.failures.is_empty())
    }
}

/// `part` in permille of `whole`; 0 of nothing.
#[must_use]
pub(crate) fn permille(part: u64, whole: u64) -> u64 {
    let permille = u128::from(part) * 1000;
    permille.checked_div(u128::from(whole)).map_or(0, |value| at_most(value, u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(total_ns: u64, phases: &[(&str, u64)], unattributed_ns: u64) -> Sample {
        let phase = |(name, duration_ns): &(&str, u64)| PhaseDuration {
            name: (*name).to_owned(),
            duration_ns: *duration_ns,
        };
        Sample {
            total_ns,
            phases: phases.iter().map(phase).collect(),
            unattributed_ns: Some(unattributed_ns),
            ..Sample::default()
        }
    }

    #[test]
    fn mean_phases_and_the_rest_add_up_to_the_mean_whole() {
        let samples = vec![
            sample(100, &[("main", 10), ("marker", 88)], 2),
            sample(200, &[("main", 20), ("init", 80), ("marker", 98)], 2),
        ];
        let series = Series::new("nelly", String::new(), samples, Vec::new());
        let names: Vec<_> = series.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["main", "init", "marker"]);
        let sum: u64 = series.phases.iter().map(|phase| phase.mean_ns).sum();
        assert_eq!(sum + series.unattributed_mean_ns.unwrap(), 150);
        assert_eq!(series.median_of(|sample| Some(sample.total_ns)), Some(150));
        assert_eq!(series.median_of(|sample| sample.user_ns), None);
    }

    #[test]
    fn a_record_warns_of_noise_and_of_time_in_no_phase() {
        let samples = vec![sample(100, &[("marker", 90)], 10), sample(300, &[("marker", 290)], 10)];
        let mut record = Record {
            schema: SCHEMA,
            bench: "boot".into(),
            until: "marker".into(),
            rounds: 2,
            warm_up_rounds: 0,
            guest: GuestRecord::default(),
            environment: Environment { kvm: "mainstream".into(), cpus: 1000, ..Environment::default() },
            warnings: Vec::new(),
            skipped: Vec::new(),
            series: vec![Series::new("nelly", String::new(), samples, Vec::new())],
            steps: Vec::new(),
        };
        record.finish();
        let all = record.warnings.join("\n");
        assert!(
            all.contains("samples are noisy") && all.contains("5.00 % of the time is not covered"),
            "{all}"
        );
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert!(record.went_well());
    }
}
