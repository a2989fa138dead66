//! Why a sandbox failed, seen from its machine, with the last that its guest said.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nelly_vmm::machine::Machine;
use nelly_vmm::text;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::SandboxError;
use super::waits::{answered, blocking};

/// How long a machine that is ending may take to say so.
const END_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// How long the end of the guest's console may take to be read.
const CONSOLE_TAIL_WAIT: Duration = Duration::from_secs(2);

/// How long the guest's console is silent when all that was said is read: the machine may go on.
const CONSOLE_SILENCE: Duration = Duration::from_millis(50);

/// Most bytes of the guest's console that are read to find its end.
const CONSOLE_BYTES: usize = 64 << 10;

/// Most bytes of the guest's console that an error carries.
const CONSOLE_TAIL_BYTES: usize = 2048;

pub(super) async fn explain(machine: &Arc<Machine>, error: SandboxError) -> SandboxError {
    let console = console_tail(machine).await;
    let asked = Arc::clone(machine);
    let ended = blocking(move || {
        let ended = poll(&mut [PollFd::new(&asked.as_fd(), PollFlags::IN)], Some(&END_WAIT));
        // What has begun to end is at its end soon.
        if ended.is_ok_and(|ready| ready > 0) { Some(asked.wait()) } else { asked.try_wait() }
    });
    let what = match ended.await {
        Some(outcome) => format!("the machine ended: {}", outcome.reason),
        None => text::chain(&error),
    };
    SandboxError::Guest { what, console }
}

/// Why a machine whose monitor's process has ended is none any more.
pub(super) async fn ended(machine: &Arc<Machine>) -> SandboxError {
    let asked = Arc::clone(machine);
    let outcome = blocking(move || asked.wait()).await;
    SandboxError::Guest { what: format!("the machine ended: {}", outcome.reason), console: String::new() }
}

/// The end of what the guest said on its serial port. A hostile guest writes it: [`text::lines`]
/// makes it fit for a terminal.
async fn console_tail(machine: &Arc<Machine>) -> String {
    let mut said = Vec::new();
    // A monitor that does not answer tells nothing of the console.
    let _told = tokio::time::timeout(CONSOLE_TAIL_WAIT, read_console(machine, &mut said)).await;
    String::from_utf8_lossy(&said[said.len().saturating_sub(CONSOLE_TAIL_BYTES)..]).trim().to_owned()
}

/// What the guest's console has said so far, and no more.
async fn read_console(machine: &Arc<Machine>, said: &mut Vec<u8>) -> io::Result<()> {
    let asked = Arc::clone(machine);
    let stream = async {
        let pending = blocking(move || asked.begin_serial()).await?;
        answered(pending).await?.stream()
    };
    let stream = stream.await.map_err(io::Error::other)?;
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let mut chunk = [0; 4096];
    while said.len() <= CONSOLE_BYTES
        && let Ok(ready) = tokio::time::timeout(CONSOLE_SILENCE, stream.readable()).await
    {
        ready?;
        match stream.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => said.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
