//! `nelly generate systemd`: units that start and stop sandboxes through nelly.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use nelly_sandbox::spec::Network;
use nelly_sandbox::spec::network::SecretSource;
use nelly_sandbox::state::{SandboxDir, SandboxRecord};

use super::args::SystemdArgs;
use super::{each, sandboxes};
use crate::context::Context;
use crate::fail::Usage;
use crate::out;

/// Variables that say where sandboxes lie: a unit has them as they are now.
const VARIABLES: [&str; 4] = ["NELLY_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"];

/// What a stop may take beyond the grace time: the SIGKILL, the flush of the disk, the keeper's
/// end.
const BEYOND_GRACE_SECONDS: u64 = 20;

/// Prints the unit of a sandbox, or writes the units of several into files.
pub(crate) fn systemd(args: &SystemdArgs, context: &Context) -> Result<ExitCode> {
    if args.names.names.len() > 1 && !args.files {
        return Err(Usage::error("several units do not fit into one file: --files writes a file for each"));
    }
    let sandboxes = sandboxes(context)?;
    each(&args.names.names, |word| {
        let sandbox = sandboxes.find(word)?;
        let record = sandbox.record()?;
        let text = unit(args.name, &sandbox, &record, context)?;
        if !args.files {
            out::line(text.trim_end())?;
            return Ok(Some(String::new()));
        }
        let path = PathBuf::from(format!("nelly-{}.service", record.name));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(path.display().to_string()))
    })
}

fn unit(by_name: bool, sandbox: &SandboxDir, record: &SandboxRecord, context: &Context) -> Result<String> {
    let program = path(&context.program)?;
    let word = if by_name { record.name.to_string() } else { record.id.to_string() };
    let directory = path(sandbox.dir().path())?;
    let variables = VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut environment = String::new();
    for (name, value) in variables {
        let _ = writeln!(environment, "Environment={}", quoted(&format!("{name}={}", word_of(value)?)));
    }
    let stop_seconds = record.stop_grace_ms.div_ceil(1000).saturating_add(BEYOND_GRACE_SECONDS);
    let Secrets { variables, files } = secrets(record)?;
    let mut forget = String::new();
    if !variables.is_empty() {
        let file = path(&context.places.config.join(format!("{}.env", record.name)))?;
        let _ = writeln!(environment, "# A line {}=VALUE each, of mode 0600:", variables.join("=VALUE, "));
        let _ = writeln!(environment, "EnvironmentFile={}", file.replace('%', "%%"));
        // What waits has no use for them, and shows its environment to whoever is this user.
        forget = format!("unset {} && ", variables.join(" "));
    }
    let mounts =
        [directory].into_iter().chain(files.iter().map(|file| path(file)).collect::<Result<Vec<_>>>()?);
    let mounts = mounts.map(|path| quoted(&path)).collect::<Vec<_>>().join(" ");
    // A shell, because what a step before ExecStart leaves running is ended by systemd.
    let script = format!("\"$0\" start \"$1\" && {forget}exec \"$0\" wait \"$1\" >/dev/null");
    Ok(format!(
        "# nelly-{name}.service, by nelly {version}\n\
         # For your own sandboxes: put it into ~/.config/systemd/user, then\n\
         #   systemctl --user daemon-reload && systemctl --user enable --now nelly-{name}\n\
         #   loginctl enable-linger    # starts it with the host, and keeps it after a logout\n\
         [Unit]\n\
         Description=Nelly sandbox {name}\n\
         Documentation=man:nelly(1)\n\
         RequiresMountsFor={mounts}\n\
         \n\
         [Service]\n\
         Type=exec\n\
         {environment}\
         ExecStart=/bin/sh -c {script} {program} {word}\n\
         ExecStop={program} stop {word}\n\
         TimeoutStopSec={stop_seconds}\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n",
        name = record.name,
        version = env!("CARGO_PKG_VERSION"),
        script = quoted(&script.replace('$', "$$")),
        program = quoted(&program.replace('$', "$$")),
    ))
}

/// What a start needs for the secrets of a sandbox.
#[derive(Default)]
struct Secrets {
    /// Variables that have values, each once.
    variables: Vec<String>,
    /// Files that have values, or authorities.
    files: Vec<PathBuf>,
}

fn secrets(record: &SandboxRecord) -> Result<Secrets> {
    let Network::User(user) = &record.machine.network else { return Ok(Secrets::default()) };
    let mut found = Secrets { variables: Vec::new(), files: user.secret_ca.iter().cloned().collect() };
    for secret in &user.secrets {
        match &secret.source {
            SecretSource::File(file) => found.files.push(file.clone()),
            SecretSource::Env(variable) if !is_variable(variable) => bail!(
                "secret {}: systemd sets no variable that is called {variable:?}; make the sandbox with \
                 --secret {}=file:PATH@HOST or another variable",
                secret.name,
                secret.name
            ),
            SecretSource::Env(variable) if found.variables.contains(variable) => {}
            SecretSource::Env(variable) => found.variables.push(variable.clone()),
        }
    }
    Ok(found)
}

/// Whether systemd and a shell take it as the name of a variable.
fn is_variable(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(fits) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// A path as text: a unit has no other form.
fn path(path: &Path) -> Result<String> {
    word_of(path.as_os_str().to_owned())
}

fn word_of(value: OsString) -> Result<String> {
    let text = value.into_string().ok().filter(|text| !text.contains(char::is_control));
    text.context("a path that is not plain text cannot stand in a unit")
}

/// A word in systemd's quotes, with its specifiers as they are.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_for_systemd() {
        assert_eq!(quoted("/a b/%h\"\\"), "\"/a b/%%h\\\"\\\\\"");
        assert!(word_of("a\nExecStart=/bin/false".into()).is_err());
    }
}
