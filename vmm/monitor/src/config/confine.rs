//! What the monitor of a machine gives up before its guest runs, and whose process it is then.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Endpoint, MachineConfig};

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

/// The user that a monitor becomes which root has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorUser {
    /// Its number; not root's.
    pub uid: u32,
    /// The number of its only group; not root's.
    pub gid: u32,
}

impl MonitorUser {
    /// Whether it can be a machine's, and does not keep the monitor from serving the machine.
    pub(super) fn validate(self, config: &MachineConfig) -> Result<(), ConfigError> {
        let refuse = |reason: &str| Err(ConfigError::new("monitor_user", reason.to_owned()));
        for (field, number) in [("uid", self.uid), ("gid", self.gid)] {
            if number == 0 || number == u32::MAX {
                let reason = format!("{field} {number} is not the number of an ordinary one");
                return Err(ConfigError::new("monitor_user", reason));
            }
        }
        if config.confine == Confine::Off {
            return refuse("confine is off: the monitor is to keep its rights");
        }
        if !config.shares.is_empty() {
            return refuse(
                "the machine has shared directories, in which the guest acts on files of all users",
            );
        }
        // Root would open it in a directory where the user could have put a link meanwhile.
        if [&config.serial, &config.console].iter().any(|endpoint| matches!(endpoint, Endpoint::Log(_))) {
            return refuse("a console has a log, which is reached by its name");
        }
        if config.vsock.as_ref().is_some_and(|vsock| vsock.unix_socket.is_some()) {
            return refuse("vsock has a unix_socket, which is reached by its name");
        }
        Ok(())
    }
}
