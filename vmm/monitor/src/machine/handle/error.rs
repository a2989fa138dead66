//! Why a machine did not start, and why a request to one failed.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::machine::wire;

/// A sentence of the monitor, and the one below it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct MonitorError {
    sentence: String,
    source: Option<Box<MonitorError>>,
}

impl MonitorError {
    /// What is refused before the monitor is asked.
    pub(super) fn of(error: &dyn std::error::Error) -> Self {
        Self::from_chain(wire::chain(error))
    }

    pub(super) fn from_chain(chain: Vec<String>) -> Self {
        let below = |source, sentence| Some(Box::new(Self { sentence, source }));
        match chain.into_iter().rev().fold(None, below) {
            Some(error) => *error,
            None => Self { sentence: "the monitor refused without a word".into(), source: None },
        }
    }
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config contradicts itself.
    #[error("the machine's configuration is refused")]
    Config(#[from] ConfigError),
    /// The monitor could not be started.
    #[error("cannot start {}", .monitor.display())]
    Spawn {
        /// The program.
        monitor: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The connection to the monitor failed.
    #[error("cannot talk to the monitor")]
    Talk(#[source] io::Error),
    /// The monitor ended before it answered.
    #[error("the monitor ended before the machine started: {0}")]
    Died(String),
    /// The machine was refused, or the host could not make it.
    #[error("cannot start the machine")]
    Refused(#[source] MonitorError),
}

/// Why a request to a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The machine ended.
    #[error("the machine has ended")]
    Ended,
    /// The connection to the monitor failed.
    #[error("cannot talk to the monitor")]
    Talk(#[source] io::Error),
    /// The monitor refused or failed.
    #[error("the machine refused")]
    Refused(#[source] MonitorError),
    /// Its guest was told of no power button.
    #[error("the machine has no power button, which only machines with ACPI have")]
    NoPowerButton,
    /// The machine goes on, but this one request was lost.
    #[error(
        "the machine did not answer: its monitor has no room for more descriptors, raise its limit on open files"
    )]
    Unanswered,
    /// The stream of the answer did not arrive.
    #[error(
        "the stream did not arrive: this process has no room for more descriptors, raise the limit on open files"
    )]
    Descriptor,
    /// The answer was not one to this question.
    #[error("the monitor's answer makes no sense")]
    Confused,
}
