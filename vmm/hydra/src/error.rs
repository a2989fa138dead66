//! Why the variables make no machine.

use nelly_seed::SeedError;

/// Characters of a value that are shown at most.
const SHOWN: usize = 80;

/// Why the variables make no machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HydraError {
    /// A variable has a value that it cannot have.
    #[error("{name}={value}: {reason}")]
    Value {
        /// The variable.
        name: &'static str,
        /// Its value, cut after 80 characters.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A secret has a value that it cannot have; the value is not repeated.
    #[error("{name}: {reason}")]
    Secret {
        /// The variable.
        name: &'static str,
        /// What is wrong with its value.
        reason: SeedError,
    },
    /// Two ports or two directories are in each other's way.
    #[error("{first} and {second} {what}")]
    Together {
        /// A variable.
        first: &'static str,
        /// Another one, or the same.
        second: &'static str,
        /// What they do.
        what: String,
    },
}

impl HydraError {
    pub(crate) fn value(name: &'static str, value: &str, reason: impl ToString) -> Self {
        Self::Value { name, value: value.chars().take(SHOWN).collect(), reason: reason.to_string() }
    }
}
