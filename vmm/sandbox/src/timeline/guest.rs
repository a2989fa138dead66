//! The guest's stamps, as raw as it took them, and their way to the host's clock.

use nelly_vmm::timeline::GuestCounter;

use super::{Who, name};

/// What the agent tells when it is asked: names and raw clocks of a guest that nobody needs to
/// believe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStamps {
    /// The agent's own, by the processor's counter.
    pub agent: Vec<(String, u64)>,
    /// The kernel's, by its scheduler clock, in nanoseconds.
    pub kernel: Vec<(String, u64)>,
    /// The counter when the kernel's clock showed `clock_ns`; 0 when the agent could not relate
    /// them.
    pub counter: u64,
    /// See `counter`.
    pub clock_ns: u64,
}

const AGENT: [&str; 3] = [name::AGENT_MAIN, name::AGENT_LISTENING, name::AGENT_READY];
const KERNEL: [&str; 2] = [name::KERNEL_ENTRY, name::INIT];

impl GuestStamps {
    /// Those with a known name, on the host's CLOCK_MONOTONIC in nanoseconds. What lies outside of
    /// the clocks is left out.
    pub(super) fn on_the_host<'a>(
        &'a self,
        counter: &'a GuestCounter,
    ) -> impl Iterator<Item = (Who, &'static str, u64)> + 'a {
        let agent = AGENT.into_iter().filter_map(move |name| {
            let raw = find(&self.agent, name)?;
            Some((Who::Agent, name, counter.host_ns(raw)?))
        });
        let kernel = KERNEL.into_iter().filter_map(move |name| {
            let elapsed = self.clock_ns.checked_sub(find(&self.kernel, name)?)?;
            let raw = counter.before(self.counter, elapsed).filter(|_| self.counter != 0)?;
            Some((Who::Kernel, name, counter.host_ns(raw)?))
        });
        agent.chain(kernel)
    }
}

fn find(stamps: &[(String, u64)], name: &str) -> Option<u64> {
    stamps.iter().find(|(other, _)| other == name).map(|(_, at)| *at)
}
