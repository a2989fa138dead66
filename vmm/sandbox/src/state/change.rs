//! What can be changed of a sandbox that exists, whether it runs or not.

use nelly_vmm::config::MemorySize;

use super::record::{RestartPolicy, SandboxRecord};
use crate::spec::quantity;

/// The least limit of a container's memory, in bytes. It is docker's, too: below it not even a
/// small program starts.
pub const LEAST_MEMORY: u64 = 6 << 20;

/// A change. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The restart policy.
    pub restart: Option<RestartPolicy>,
    /// Limit of the first container's memory in bytes, from [`LEAST_MEMORY`] to the machine's
    /// memory; `Some(None)` removes it.
    pub memory_limit: Option<Option<u64>>,
}

/// Why a change cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// See [`LEAST_MEMORY`].
    #[error("a container's memory cannot be limited to {}: the least is 6M", quantity::show_bytes(*.0))]
    Little(u64),
    /// More than there is.
    #[error(
        "a container's memory cannot be limited to {}: the whole machine has {}, which is chosen when the sandbox is made",
        quantity::show_bytes(*.limit),
        quantity::show_bytes(*.machine)
    )]
    Much {
        /// The limit that was asked for.
        limit: u64,
        /// The machine's memory.
        machine: u64,
    },
}

impl Change {
    /// Whether it can be made of a sandbox whose machine has so much memory.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn check(&self, machine: MemorySize) -> Result<(), ChangeError> {
        let machine = machine.get();
        match self.memory_limit.flatten() {
            Some(limit) if limit < LEAST_MEMORY => Err(ChangeError::Little(limit)),
            Some(limit) if limit > machine => Err(ChangeError::Much { limit, machine }),
            _ => Ok(()),
        }
    }

    /// Writes it into a record.
    pub fn apply(&self, record: &mut SandboxRecord) {
        record.restart = self.restart.unwrap_or(record.restart);
        let options = &mut record.container.options;
        options.memory_limit = self.memory_limit.unwrap_or(options.memory_limit);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::example;
    use super::*;

    #[test]
    fn limits_are_between_the_least_and_the_machine() {
        let machine = MemorySize::new(512 << 20).unwrap();
        let limited = |limit| Change { memory_limit: Some(limit), ..Change::default() };
        for good in [None, Some(6 << 20), Some(512 << 20)] {
            assert_eq!(limited(good).check(machine), Ok(()), "{good:?}");
        }
        assert_eq!(limited(Some(5 << 20)).check(machine), Err(ChangeError::Little(5 << 20)));
        let much = limited(Some(1 << 30)).check(machine).unwrap_err().to_string();
        assert!(much.contains("1G") && much.contains("512M"), "{much}");
        assert_eq!(Change::default().check(machine), Ok(()));
    }

    #[test]
    fn what_is_not_named_stays() {
        let mut record = example("web");
        let before = record.clone();
        Change::default().apply(&mut record);
        assert_eq!(record, before);
        Change { restart: Some(RestartPolicy::Always), memory_limit: Some(Some(64 << 20)) }
            .apply(&mut record);
        assert_eq!(record.restart, RestartPolicy::Always);
        assert_eq!(record.container.options.memory_limit, Some(64 << 20));
        Change { restart: None, memory_limit: Some(None) }.apply(&mut record);
        assert_eq!((record.restart, record.container.options.memory_limit), (RestartPolicy::Always, None));
    }
}
