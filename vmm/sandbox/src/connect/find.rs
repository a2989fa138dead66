//! The way from a sandbox's state directory to its keeper.

use std::time::{Duration, Instant};

use super::{ConnectError, Connection};
use crate::state::{Condition, SandboxDir};

/// How long a keeper may take to make its sockets, or to make them anew.
const SOCKETS: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

impl Connection {
    /// Connects to the keeper of a sandbox. One that has just begun, or makes its sockets anew, is
    /// waited for, at most five seconds.
    ///
    /// # Errors
    /// The sandbox does not run, or its keeper cannot be reached.
    pub async fn to(sandbox: &SandboxDir) -> Result<Self, ConnectError> {
        let until = Instant::now() + SOCKETS;
        loop {
            let condition = sandbox.condition().map_err(ConnectError::State)?;
            if !condition.is_live() {
                return Err(ConnectError::NotRunning { id: sandbox.id(), condition });
            }
            let state = sandbox.state().map_err(ConnectError::State)?;
            let failure = match &state.runtime_dir {
                Some(runtime) => match Self::open(runtime).await {
                    Ok(connection) => return Ok(connection),
                    // It has waited for as long as a keeper may take.
                    Err(error @ ConnectError::Silent) => return Err(error),
                    Err(error) => error,
                },
                None => ConnectError::NoSockets(sandbox.id()),
            };
            // It makes them at its start, and anew when they vanish.
            if Instant::now() >= until {
                return Err(failure);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

pub(super) fn shown(condition: Condition) -> &'static str {
    match condition {
        Condition::Unclean => "exited, unclean",
        condition => condition.word(),
    }
}
