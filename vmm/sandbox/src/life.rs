//! The life of one container in the foreground: signals and resizes in, an exit out.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::agent::ProcessId;
use crate::instance::{Sandbox, SandboxError};
use crate::state::Exit;
use crate::state::outcome::TIMED_OUT;
use crate::timeline::name;

/// What reaches a process from outside while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A signal by Linux's number.
    Signal(u32),
    /// The terminal's new size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// End the machine now; the exit is 128 + this signal.
    Kill(u32),
}

/// Waits for a process's end and passes on what comes through `requests` meanwhile. At `limit` the machine is killed.
///
/// # Errors
/// The agent's connection broke, which is how a machine that ends looks from here.
pub async fn attend(
    sandbox: &Sandbox,
    id: ProcessId<'_>,
    requests: &mut UnboundedReceiver<Request>,
    limit: Option<Duration>,
) -> Result<Exit, SandboxError> {
    let deadline = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let wait = sandbox.agent().wait(id);
    tokio::pin!(deadline, wait);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            done = &mut wait => {
                let done = done?;
                sandbox.recorder().stamp(name::EXIT);
                let reason = match (done.oom_killed, done.signal) {
                    (true, _) => "oom_killed",
                    (false, 0) => "exited",
                    (false, _) => "signaled",
                };
                return Ok(Exit { code: u8::try_from(done.exit_code & 0xff).unwrap_or(u8::MAX), reason });
            }
            () = &mut deadline => {
                sandbox.machine().kill();
                return Ok(Exit { code: TIMED_OUT, reason: "timeout" });
            }
            request = requests.recv(), if open => match request {
                None => open = false,
                Some(Request::Kill(signal)) => {
                    sandbox.machine().kill();
                    return Ok(Exit { code: u8::try_from(128 + signal).unwrap_or(u8::MAX), reason: "killed" });
                }
                // A process that has just ended cannot be told: its exit is on the way.
                Some(Request::Signal(signal)) => drop(sandbox.agent().signal(id, signal).await),
                Some(Request::Resize { rows, columns }) => drop(sandbox.agent().resize(id, rows, columns).await),
            },
        }
    }
}
