//! What the monitor of a machine gives up before its guest runs.

use serde::{Deserialize, Serialize};

/// Whether the monitor gives up what a machine does not need: rights, files, system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confine {
    /// As far as the host can.
    #[default]
    On,
    /// Wholly: a host that lacks a layer refuses the machine, and names the layer.
    Strict,
    /// Not at all: the monitor keeps all rights of the user who started it.
    Off,
}

impl Confine {
    /// Whether it is what is done if nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
