//! `nelly metrics`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nelly_sandbox::metrics::{Scrape, Seen, Told};
use nelly_sandbox::state::{Condition, SandboxDir, Sandboxes, Status};
use tokio::task::JoinSet;

use super::args::MetricsArgs;
use super::{connect, runtime};
use crate::context::Context;
use crate::{fail, out};

/// How long a keeper and the monitor of its machine may take to tell.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sandbox that is asked.
struct Asked {
    dir: SandboxDir,
    id: String,
    name: String,
}

/// Prints what the machines of sandboxes count. All are asked at once; one that hangs holds up
/// none.
pub(crate) fn metrics(args: &MetricsArgs, context: &Context) -> Result<ExitCode> {
    let sandboxes = Sandboxes::open(&context.places.sandboxes())?;
    let (asked, mut failed) = match &sandboxes {
        None if args.names.is_empty() => (Vec::new(), false),
        _ => named(sandboxes.as_ref(), &args.names)?,
    };
    let runtime = runtime()?;
    let mut scrape = Scrape::default();
    let all = runtime.block_on(async {
        let mut asking = JoinSet::new();
        for one in asked {
            asking.spawn(async move {
                let begins_or_ends = one.dir.condition().is_ok_and(begins_or_ends);
                let told = if begins_or_ends {
                    Err(anyhow!("it has no machine to ask"))
                } else {
                    let told = tokio::time::timeout(PATIENCE, told(&one.dir)).await;
                    let silent = |_| Err(anyhow!("it does not answer within {} s", PATIENCE.as_secs()));
                    told.unwrap_or_else(silent)
                };
                (told, begins_or_ends, one)
            });
        }
        asking.join_all().await
    });
    for (told, not_asked, Asked { dir, id, name }) in all {
        let (condition, state) = (dir.condition(), dir.state());
        // It may have begun to end while it was asked.
        let excused = not_asked || condition.as_ref().is_ok_and(|condition| begins_or_ends(*condition));
        let told = match told.with_context(|| format!("sandbox {name}")) {
            Ok(told) => Some(told),
            Err(error) => {
                if !excused {
                    fail::report(&error, false, 1);
                    failed = true;
                }
                None
            }
        };
        // What cannot be read any more was removed meanwhile.
        let (Ok(condition), Ok(state)) = (condition, state) else { continue };
        let (status, restarts) = (condition.word(), state.restarts);
        let seen = Seen { id: &id, name: &name, status, restarts, told: told.as_ref() };
        if told.is_none() && excused {
            scrape.mention(&seen);
        } else {
            scrape.add(&seen);
        }
    }
    let text = scrape.to_string();
    if !text.is_empty() {
        out::line(text.trim_end())?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// Whether a sandbox has no machine yet that could be asked, or none any more in a moment.
fn begins_or_ends(condition: Condition) -> bool {
    matches!(condition, Condition::Status(Status::Starting | Status::Stopping))
}

/// What the keeper of a sandbox tells.
async fn told(sandbox: &SandboxDir) -> Result<Told> {
    let answer = connect(sandbox).await?.machine().await?;
    let inspection =
        serde_json::from_str(&answer.inspection).context("cannot read what its monitor shows")?;
    Ok(Told { inspection, cpu_ns: answer.cpu_ns, resident_bytes: answer.resident_bytes })
}

/// The sandboxes of these words, or all that run; and whether a word names none.
fn named(sandboxes: Option<&Sandboxes>, words: &[String]) -> Result<(Vec<Asked>, bool)> {
    let sandboxes = sandboxes.context(super::NONE)?;
    let (mut asked, mut failed) = (Vec::new(), false);
    let running: Vec<String>;
    let words = if words.is_empty() {
        let live = sandboxes.list()?.into_iter();
        let live = live.filter(|one| one.details.as_ref().is_ok_and(|details| details.condition.is_live()));
        running = live.map(|one| one.id.to_string()).collect();
        &running
    } else {
        words
    };
    for word in words {
        let found = sandboxes.find(word).map_err(anyhow::Error::from).and_then(|dir| {
            let (id, name) = (dir.id().to_string(), dir.record()?.name.as_str().to_owned());
            Ok(Asked { dir, id, name })
        });
        match found.with_context(|| format!("sandbox {word}")) {
            Ok(one) if asked.iter().any(|other: &Asked| other.id == one.id) => {}
            Ok(one) => asked.push(one),
            Err(error) => {
                fail::report(&error, false, 1);
                failed = true;
            }
        }
    }
    Ok((asked, failed))
}
