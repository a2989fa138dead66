//! `nelly rm`, `rename` and `gc`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use nelly_sandbox::state::{Name, SandboxDir, Sandboxes, StateError};

use super::args::{RenameArgs, RmArgs};
use super::force::end_by_force;
use super::{each, lock, sandboxes};
use crate::context::Context;
use crate::fail::OfFlag as _;
use crate::out;

/// How often a removal by force begins anew, because another command was faster.
const AGAIN: usize = 5;

/// Removes sandboxes with everything in them.
pub(crate) fn rm(args: &RmArgs, context: &Context) -> Result<ExitCode> {
    let Some(sandboxes) = Sandboxes::open(&context.places.sandboxes())? else {
        return each(&args.names.names, |word| {
            if args.force { Ok(nothing()) } else { bail!("there is no sandbox {word:?}") }
        });
    };
    each(&args.names.names, |word| {
        let mut again = if args.force { AGAIN } else { 0 };
        loop {
            match remove(&sandboxes, word, args.force) {
                // What is not there need not be removed.
                Ok(false) => return Ok(nothing()),
                Ok(true) => return Ok(None),
                // One that was just being started lives now.
                Err(error) if again > 0 && error.downcast_ref().is_some_and(is_busy) => again -= 1,
                Err(error) => return Err(error),
            }
        }
    })
}

/// Nothing was done, so nothing is printed.
fn nothing() -> Option<String> {
    Some(String::new())
}

fn is_busy(error: &StateError) -> bool {
    matches!(error, StateError::Busy { .. })
}

/// Removes one. `false`: with `force` it was not there any more.
fn remove(sandboxes: &Sandboxes, word: &str, force: bool) -> Result<bool> {
    let sandbox = match sandboxes.find(word) {
        Err(StateError::Missing { .. }) if force => return Ok(false),
        found => found?,
    };
    match remove_found(sandboxes, &sandbox, word, force) {
        Ok(()) => Ok(true),
        // It removed itself at its end, or another command was faster: nothing said of it holds.
        Err(_) if force && sandboxes.by_id(sandbox.id())?.is_none() => Ok(true),
        Err(error) => Err(error),
    }
}

fn remove_found(sandboxes: &Sandboxes, sandbox: &SandboxDir, word: &str, force: bool) -> Result<()> {
    // Before a keeper of a newer version is ended: only that knows what may be done with it.
    sandbox.refuse_newer()?;
    // Of a damaged one only the lock tells whether it lives.
    let live = match sandbox.condition() {
        Ok(condition) => condition.is_live(),
        Err(_) => sandbox.is_locked()?,
    };
    if live && !force {
        bail!(
            "sandbox {word} runs: stop it first (`nelly stop {word}`), or remove it as it is with `nelly rm -f {word}`"
        );
    }
    if live {
        end_by_force(sandbox)?;
    }
    let lock = lock(sandboxes, sandbox)?;
    Ok(sandboxes.remove(sandbox, lock)?)
}

/// Gives a sandbox another name.
pub(crate) fn rename(args: &RenameArgs, context: &Context) -> Result<ExitCode> {
    let name: Name = args.new.parse().of_flag("NEW")?;
    let sandboxes = sandboxes(context)?;
    sandboxes.rename(&sandboxes.find(&args.sandbox)?, &name)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes what killed commands and keepers left.
pub(crate) fn gc(context: &Context) -> Result<ExitCode> {
    if let Some(sandboxes) = Sandboxes::open(&context.places.sandboxes())? {
        for cleaned in sandboxes.clean()? {
            out::line(format_args!("removed {cleaned}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
