//! Tells events as they happen.

use std::time::Duration;

use nelly_image::trusted::Watch;

use super::{Event, Look};
use crate::state::error::io_error;
use crate::state::{SandboxDir, Sandboxes, StateError, Timestamp};

/// How long a wait lasts at most: after it, locks are asked for again, should a keeper have gone
/// unnoticed.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The same after something was closed: the system tells that before it gives a lock back.
const SHORT_WAIT: Duration = Duration::from_millis(5);
/// How often in a row the wait is short then.
const SHORT_WAITS: u32 = 20;

/// Gives events to `each` in order, first those of the past that the files still tell of, of
/// `since` and later if that is given, then each as it happens, until the time `until`.
///
/// What the system tells of a directory only says that there is something to look at: so however
/// much of it is lost in a flood, nothing that still stands in the files is missed.
///
/// # Errors
/// The directory cannot be read or watched, or those of `each`.
pub fn watch<E: From<StateError>>(
    sandboxes: &Sandboxes,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    mut each: impl FnMut(&Event) -> Result<(), E>,
) -> Result<(), E> {
    let in_time = |event: &Event| until.is_none_or(|until| event.time < until);
    let mut watched: Vec<SandboxDir> = Vec::new();
    let mut watch: Option<Watch> = None;
    let mut before: Option<Look> = None;
    let mut short = 0;
    loop {
        let now = Timestamp::now();
        // Watched before they are looked at, so that nothing is missed in between.
        let there = sandboxes.directories()?;
        let same = watched.len() == there.len()
            && watched.iter().zip(&there).all(|(one, other)| one.id() == other.id());
        let mut gone = Vec::new();
        if watch.is_none() || !same {
            watch = Some(watching(sandboxes, &there)?);
            gone = std::mem::replace(&mut watched, there);
        }
        let none = Look::default();
        let look = Look::new(sandboxes.list()?, before.as_ref().unwrap_or(&none));
        let events = match (&before, since) {
            (Some(before), _) if !gone.is_empty() => {
                // Their last states are there for as long as their files are.
                let last = gone.iter().filter(|gone| !look.has(gone.id()));
                let last = last.filter_map(|gone| Some((gone.id(), gone.state().ok()?)));
                let last = last.fold(before.clone(), |look, (id, state)| look.with_last(id, state));
                let mut events = last.since(before, Timestamp::now());
                events.extend(look.since(&last, Timestamp::now()));
                events
            }
            (Some(before), _) => look.since(before, Timestamp::now()),
            (None, Some(since)) => {
                let mut past = look.past();
                past.retain(|event| event.time >= since);
                past
            }
            (None, None) => Vec::new(),
        };
        events.iter().filter(|event| in_time(event)).try_for_each(&mut each)?;
        before = Some(look);
        let longest = if short > 0 { SHORT_WAIT } else { LONGEST_WAIT };
        let left = until.map(|until| until.since(now));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        let wait = left.map_or(longest, |left| left.min(longest));
        let changed = watch.as_ref().expect("it was made above").wait(wait);
        let changed = changed.map_err(|source| io_error("watch", sandboxes.path(), source))?;
        short = if changed { SHORT_WAITS } else { u32::saturating_sub(short, 1) };
    }
}

fn watching(sandboxes: &Sandboxes, directories: &[SandboxDir]) -> Result<Watch, StateError> {
    let all = directories.iter().map(SandboxDir::dir);
    let all: Vec<_> = std::iter::once(sandboxes.dir()).chain(all).collect();
    Watch::new(&all).map_err(|source| io_error("watch", sandboxes.path(), source))
}
