//! `nelly rm`, `rename` and `gc`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::state::{Name, Sandboxes, StateError};

use super::args::{RenameArgs, RmArgs};
use super::force::end_by_force;
use super::{each, lock, sandboxes};
use crate::context::Context;
use crate::out;

/// Removes sandboxes with everything in them.
pub(crate) fn rm(args: &RmArgs, context: &Context) -> Result<ExitCode> {
    let Some(sandboxes) = Sandboxes::open(&context.places.sandboxes())? else {
        return each(&args.names.names, |word| {
            if args.force { Ok(None) } else { bail!("there is no sandbox {word:?}") }
        });
    };
    each(&args.names.names, |word| {
        let sandbox = match sandboxes.find(word) {
            // What is not there need not be removed.
            Err(StateError::Missing { .. }) if args.force => return Ok(None),
            found => found?,
        };
        // Of a damaged one only the lock tells whether it lives.
        let live = match sandbox.condition() {
            Ok(condition) => condition.is_live(),
            Err(_) => sandbox.is_locked()?,
        };
        if live {
            if !args.force {
                bail!(
                    "sandbox {word} runs: stop it first (`nelly stop {word}`), or remove it as it is with `nelly rm -f {word}`"
                );
            }
            end_by_force(&sandbox)?;
        }
        match lock(&sandboxes, &sandbox).and_then(|lock| Ok(sandboxes.remove(&sandbox, lock)?)) {
            Ok(()) => Ok(None),
            // One that removes itself at its end was faster.
            Err(_) if live && sandboxes.by_id(sandbox.id())?.is_none() => Ok(None),
            Err(error) => Err(error),
        }
    })
}

/// Gives a sandbox another name.
pub(crate) fn rename(args: &RenameArgs, context: &Context) -> Result<ExitCode> {
    let name: Name = args.new.parse().context("NEW")?;
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
