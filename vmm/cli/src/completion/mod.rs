//! `nelly completion SHELL`, and the hidden verb that the scripts ask for what fits: verbs and
//! flags come from the definition of the command line, names from the state directory and the local
//! store. No keeper is asked, so no machine that hangs can delay it.
//!
//! The scripts of the crate `clap_complete` know no names of sandboxes and images; its engine that
//! does is not stable, and offers sandboxes for each word of `nelly exec web ls`.

mod words;

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use nelly_image::LocalStore;
use nelly_sandbox::state::Sandboxes;

use crate::args::{Cli, Shell};
use crate::boot_kept;
use crate::context::Context;
use crate::out;

/// The hidden verb: `nelly __complete -- WORD...`, with the words after `nelly` up to the one that
/// is being typed. Prints one candidate a line, with its description after a tab.
pub(crate) const VERB: &str = "__complete";

/// Prints the script of a shell.
pub(crate) fn script(shell: Shell) -> Result<ExitCode> {
    let text = match shell {
        Shell::Bash => include_str!("nelly.bash"),
        Shell::Zsh => include_str!("nelly.zsh"),
        Shell::Fish => include_str!("nelly.fish"),
    };
    out::line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the hidden verb on the words after it. What cannot be read completes to nothing: a message
/// would stand in the middle of what somebody types.
pub(crate) fn complete(words: &[String]) -> ExitCode {
    let words = words.strip_prefix(&["--".to_owned()][..]).unwrap_or(words);
    let mut command = Cli::command();
    command.build();
    let names = Installed(Context::load(boot_kept::MACHINES).ok());
    let found = words::candidates(&command, words, &names);
    // There is nobody to tell of a failure.
    ExitCode::from(u8::from(out::columns(found).is_err()))
}

/// What there is on this host.
struct Installed(Option<Context>);

impl words::Names for Installed {
    fn sandboxes(&self) -> Vec<(String, String)> {
        let all = self.0.as_ref().and_then(|context| Sandboxes::open(&context.places.sandboxes()).ok()?);
        let all = all.and_then(|all| all.list().ok()).unwrap_or_default();
        let row = |one: nelly_sandbox::state::Listed| {
            let details = one.details.ok()?;
            Some((details.record.name.to_string(), details.record.image.reference))
        };
        all.into_iter().filter_map(row).collect()
    }

    fn images(&self) -> Vec<(String, String)> {
        let store = self.0.as_ref().and_then(|context| LocalStore::open(context.places.images()).ok());
        let all = store.and_then(|store| store.list().ok()).unwrap_or_default();
        all.into_iter().filter_map(|image| Some((image.name?.familiar(), String::new()))).collect()
    }
}
