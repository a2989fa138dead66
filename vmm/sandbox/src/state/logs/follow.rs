//! Follows a log while the sandbox lives.

use std::time::Duration;

use nelly_image::trusted::{TrustedDir, Watch};

use super::{LogReader, Record};
use crate::state::error::io_error;
use crate::state::{SandboxDir, StateError};

/// How long a wait lasts at most: after it, the lock is asked for again, should its holder have
/// gone unnoticed.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The same after something was closed: the system tells that before it gives the lock back.
const SHORT_WAIT: Duration = Duration::from_millis(5);
/// How often in a row the wait is short then.
const SHORT_WAITS: u32 = 20;

/// Gives the records of the log in `dir` to `each` until nobody holds the lock of `sandbox` any
/// more, or `over` says that the log is complete, and everything was read. `paused` is called
/// whenever the present end is reached.
///
/// # Errors
/// As [`LogReader::read`], or those of `paused`.
pub fn follow<E: From<StateError>>(
    sandbox: &SandboxDir,
    dir: &TrustedDir,
    reader: &mut LogReader,
    mut over: impl FnMut() -> Result<bool, StateError>,
    mut each: impl FnMut(Record<'_>) -> Result<(), E>,
    mut paused: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let unable = |source| io_error("watch", sandbox.dir().path(), source);
    let watch = Watch::new(&[sandbox.dir(), dir]).map_err(unable)?;
    let mut short = 0;
    loop {
        // In this order: what was written by a holder that is gone now is read.
        let lives = sandbox.is_locked()? && !over()?;
        reader.read(&mut each)?;
        paused()?;
        if !lives {
            return Ok(());
        }
        let wait = if short > 0 { SHORT_WAIT } else { LONGEST_WAIT };
        short = if watch.wait(wait).map_err(unable)? { SHORT_WAITS } else { short.saturating_sub(1) };
    }
}
