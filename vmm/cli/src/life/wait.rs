//! `nelly wait`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use nelly_sandbox::state::SandboxDir;

use super::args::NamesArgs;
use super::{each, ended, keeper, sandboxes, target};
use crate::context::Context;

/// Waits until sandboxes have ended for good, restarts included, and prints their exit codes.
pub(crate) fn wait(args: &NamesArgs, context: &Context) -> Result<ExitCode> {
    let sandboxes = sandboxes(context)?;
    each(&args.names, |word| {
        let (word, container) = target(word);
        let sandbox = sandboxes.find(word)?;
        if !container.is_empty() {
            return container_exit(&sandbox, container).map(|code| Some(code.to_string()));
        }
        // The handle first: what ends after this is waited for, what ended before is written down.
        // With --rm the directory is gone then, and the exit with it: so it is asked for, too.
        let keeper = keeper(&sandbox)?;
        if let Some(keeper) = keeper.filter(|_| sandbox.condition().is_ok_and(|now| now.is_live())) {
            let runtime = super::runtime()?;
            let asked = runtime.block_on(async {
                super::connect(&sandbox).await?.wait("").await.map_err(anyhow::Error::from)
            });
            if let Ok(report) = asked {
                return Ok(Some(report.exit.code.to_string()));
            }
            ended(&keeper, None)?;
        }
        match sandbox.state()?.exit {
            Some(exit) if !sandbox.condition()?.is_live() => Ok(Some(exit.code.to_string())),
            _ => bail!(
                "sandbox {word} has no exit code: it was never started, or the process that held it was killed"
            ),
        }
    })
}

/// Waits until a further container has ended. Of a sandbox that does not run any more, what its
/// keeper wrote is known.
fn container_exit(sandbox: &SandboxDir, container: &str) -> Result<u8> {
    if sandbox.condition()?.is_live() {
        let report = super::runtime()?.block_on(async {
            let connection = super::connect(sandbox).await?.of_container(container);
            connection.wait("").await.map_err(anyhow::Error::from)
        });
        return Ok(report?.exit.code);
    }
    let found = sandbox.state()?.container(container).and_then(|one| one.exit.as_ref().map(|exit| exit.code));
    match found {
        Some(code) => Ok(code),
        None => bail!("no exit code of a container {container} of sandbox {} is known", sandbox.id().short()),
    }
}
