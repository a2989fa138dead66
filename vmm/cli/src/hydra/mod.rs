//! `nelly isolated` and `nelly host`: the machines of the Hydra scripts, which environment
//! variables describe, started by `nelly boot`.

mod files;
mod line;
mod show;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use nelly_hydra::{Boots, Host, Machine, Missing, Platform, Profile, Share, Source};
pub(crate) use show::show;

use crate::args::{Cli, Verb};
use crate::boot_args::BootArgs;
use crate::context::Context;
use crate::fail::Usage;
use crate::hydra_args::HydraArgs;
use crate::{boot_seed, out};
use line::{Found, Line};

/// The arguments of `nelly boot` for a machine of this profile; `None` after a dry run, which only
/// prints them.
///
/// # Errors
/// A variable has a value that it cannot have, or a file that is needed is not there.
pub(crate) fn boot_args(
    args: &HydraArgs,
    profile: Profile,
    context: &Context,
) -> Result<Option<Box<BootArgs>>> {
    let machine = machine(profile)?;
    let dry_run = args.dry_run || machine.dry_run.value;
    // That of boot makes nothing, either.
    let makes = !dry_run && args.boot.iter().all(|flag| flag != "--dry-run");
    if !dry_run {
        files::needed(&machine, makes, context)?;
    }
    let usual = match &machine.boots {
        Boots::Image(image) if image.keys.usual => boot_seed::first_usual_key(),
        _ => None,
    };
    let disk = match &machine.boots {
        Boots::Bare(bare) => {
            let file = machine.directory.value.join(&bare.disk.value);
            bare.disk.source != Source::Default || file.exists()
        }
        Boots::Image(_) => false,
    };
    let found = Found { shares: shares(&machine, makes)?, key: usual.as_deref(), disk };
    let line = Line::of(&machine, &found, &args.boot);
    let boot = parsed(&line)?;
    if dry_run {
        out::line(line.command())?;
        return Ok(None);
    }
    if let (Boots::Image(image), Some(port)) = (&machine.boots, machine.ssh_port()) {
        let anywhere = port.bind.is_loopback() || port.bind.is_unspecified();
        let host = if anywhere { "localhost".to_owned() } else { port.bind.to_string() };
        let user = image.user.value.as_str();
        let seed = &boot.seed;
        let no_key = seed.keys.is_empty() && seed.ssh_key.is_empty() && seed.ssh_dir.is_none();
        // In the background, it has keys of its own.
        if seed.no_ssh_password && no_key && seed.user_data.is_none() && !boot.detach {
            out::message(
                "ssh lets nobody in: set VM_SSH_KEY_FILENAME or VM_PASSWORD; the console takes the password",
            );
        } else {
            out::message(format_args!("once the guest is up: ssh -p {} {user}@{host}", port.host));
        }
    }
    Ok(Some(boot))
}

/// The machine that the environment describes. What a user has to know is said.
fn machine(profile: Profile) -> Result<Machine> {
    let machine = Machine::read(&environment()?, profile, host())?;
    for warning in &machine.warnings {
        out::message(format_args!("warning: {warning}"));
    }
    Ok(machine)
}

/// All variables. One of the scripts' has to be text.
fn environment() -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => {
                environment.insert(name, value);
            }
            Err(_) if nelly_hydra::variable(&name).is_some() => {
                return Err(anyhow!("the value of {name} is no text in UTF-8"));
            }
            Err(_) => {}
        }
    }
    Ok(environment)
}

fn host() -> Host {
    let platform = match std::env::consts::OS {
        "macos" => Platform::Darwin,
        "linux" if rustix::process::geteuid().is_root() => Platform::LinuxRoot,
        "linux" => Platform::LinuxUser,
        _ => Platform::Other,
    };
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Host { platform, architecture }
}

/// The shares whose directories are there, or have been made.
fn shares(machine: &Machine, makes: bool) -> Result<Vec<&Share>> {
    let mut shares = Vec::new();
    for share in machine.shares.iter().map(|share| &share.value) {
        let path = share.host.display();
        match share.missing {
            Missing::Skip if !share.host.exists() => {
                out::message(format_args!("{path} is not shared with the guest, since it is not there"));
                continue;
            }
            Missing::Create if makes => std::fs::create_dir_all(&share.host)
                .with_context(|| format!("cannot make {path}, which is to be shared with the guest"))?,
            Missing::Refuse if share.tag == nelly_hydra::K3S && !share.host.is_file() => {
                bail!("{path} is no file, and it is to be the program of k3s");
            }
            Missing::Refuse | Missing::Skip | Missing::Create => {}
        }
        shares.push(share);
    }
    Ok(shares)
}

/// What `nelly boot` makes of a line.
fn parsed(line: &Line) -> Result<Box<BootArgs>> {
    let mut words = vec!["nelly".to_owned(), "boot".to_owned()];
    words.extend(line.words.iter().cloned());
    let cli = Cli::from_words(&words).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Usage::error(format!("the flags for nelly boot: {first}"))
    })?;
    let Verb::Boot(mut boot) = cli.verb else { unreachable!("the verb is boot") };
    boot.seed.keys.clone_from(&line.keys);
    Ok(boot)
}
