//! `nelly wait`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::state::SandboxDir;
use tokio::time::{Instant, sleep};

use super::args::WaitArgs;
use super::stop::grace;
use super::{each, ended, keeper, sandboxes, target};
use crate::context::Context;
use crate::fail::Usage;

/// How often it is asked for an agent.
const ASK: Duration = Duration::from_millis(200);

/// Waits until sandboxes have ended for good, restarts included, and prints their exit codes; or
/// until their agents answer.
pub(crate) fn wait(args: &WaitArgs, context: &Context) -> Result<ExitCode> {
    let sandboxes = sandboxes(context)?;
    let time = grace(args.time.as_deref())?;
    if args.agent {
        // One time for all of them.
        let until = time.map(|time| (Instant::now() + time, time));
        return each(&args.names.names, |word| {
            if !target(word).1.is_empty() {
                return Err(Usage::error("--agent is for a sandbox as a whole"));
            }
            super::runtime()?.block_on(agent(&sandboxes.find(word)?, word, until)).map(|()| None)
        });
    }
    each(&args.names.names, |word| {
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

/// Waits until the agent of a sandbox that runs answers.
async fn agent(sandbox: &SandboxDir, word: &str, until: Option<(Instant, Duration)>) -> Result<()> {
    let connection = super::connect(sandbox).await?;
    loop {
        let state = connection.state().await;
        let state = state.with_context(|| format!("sandbox {word} ended before its agent answered"))?;
        match (state.agent.as_str(), state.status.as_str()) {
            ("there", _) => return Ok(()),
            ("none", _) => {
                bail!("the machine {word} has no agent of Nelly: start it with `nelly boot -d --agent`")
            }
            ("", "running" | "paused") => {
                bail!("the process that holds {word} is of another version of Nelly, and does not tell")
            }
            _ => {}
        }
        if let Some((at, time)) = until
            && Instant::now() >= at
        {
            bail!(
                "the agent of {word} did not answer within {} s; `nelly logs {word}` shows how far its guest is",
                time.as_secs_f32()
            );
        }
        sleep(ASK).await;
    }
}
