//! The container's process: the image's configuration with what the caller overrides, by docker's
//! rules.

use oci_spec::image::Config;
use serde::{Deserialize, Serialize};

use super::Rights;

/// What a container runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments, never empty.
    pub args: Vec<String>,
    /// `NAME=value` words; a name stands once.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `name|uid[:group|gid]`; empty means root.
    pub user: String,
    /// A terminal instead of three pipes.
    pub terminal: bool,
    /// Standard input is connected.
    pub stdin: bool,
    /// What it may do.
    #[serde(default)]
    pub rights: Rights,
}

/// What a caller says beside the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Replaces the image's entrypoint and drops its command, as docker does; an empty word means
    /// none.
    pub entrypoint: Option<String>,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// `NAME=value`, or `NAME` to unset the image's.
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    pub cwd: Option<String>,
    /// Replaces the image's user.
    pub user: Option<String>,
    /// A terminal.
    pub terminal: bool,
    /// Standard input connected.
    pub stdin: bool,
    /// What it may do.
    pub rights: Rights,
}

/// Why a specification is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Neither image nor caller names a program.
    #[error("no command given, and the image has neither entrypoint nor command; name one after IMAGE")]
    NoCommand,
    /// The program's name is an empty word.
    #[error("the name of the program to run is empty")]
    EmptyProgram,
    /// Not absolute.
    #[error("the working directory {0:?} is not an absolute path")]
    Cwd(String),
    /// A NUL byte, an empty name, or no name.
    #[error("the environment variable {0:?} does not have the form NAME=VALUE")]
    Env(String),
    /// A NUL byte.
    #[error("the argument {0:?} contains a NUL byte")]
    Argument(String),
    /// See [`super::quantity`].
    #[error("invalid {what} {text:?}: {hint}")]
    Quantity {
        /// What it was to be.
        what: &'static str,
        /// As written.
        text: String,
        /// What to write.
        hint: String,
    },
    /// See [`super::Network`].
    #[error("invalid network {text:?}: {what}")]
    Network {
        /// As written.
        text: String,
        /// What is wrong, or what to write.
        what: String,
    },
    /// See [`super::SecurityOption`].
    #[error("invalid security option {text:?}: write seccomp=unconfined, or seccomp=FILE with a profile")]
    SecurityOption {
        /// As written.
        text: String,
    },
    /// What a flag of docker's would refuse, too.
    #[error("invalid {what} {text:?}: {hint}")]
    Flag {
        /// What it was to be.
        what: &'static str,
        /// As written.
        text: String,
        /// What to write.
        hint: &'static str,
    },
    /// See [`super::HealthCheck::merge`].
    #[error("the image has no health check that could be changed; write --health-cmd, too")]
    NoHealthCommand,
    /// See [`super::Tmpfs`].
    #[error("invalid tmpfs {text:?}: write PATH[:OPTIONS] with an absolute path other than /")]
    Tmpfs {
        /// As written.
        text: String,
    },
}

/// Where programs are looked up when the image sets no PATH.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl ProcessSpec {
    /// Merges an image's configuration with a caller's overrides.
    ///
    /// # Errors
    /// No command at all, an empty word as program, a relative working directory, an environment
    /// word without a name, NUL bytes.
    pub fn merge(image: &Config, overrides: &Overrides, hostname: &str) -> Result<Self, SpecError> {
        let args = match &overrides.entrypoint {
            Some(entrypoint) => {
                let entrypoint = Some(entrypoint.clone()).filter(|word| !word.is_empty());
                entrypoint.into_iter().chain(overrides.command.iter().cloned()).collect()
            }
            None => {
                let command = Some(&overrides.command).filter(|words| !words.is_empty());
                let command = command.or(image.cmd().as_ref()).into_iter().flatten();
                // `ENTRYPOINT [""]` is how an image lifts the entrypoint of the one that it was
                // made from.
                let entrypoint = image.entrypoint().as_deref().filter(|words| *words != [""]);
                entrypoint.into_iter().flatten().chain(command).cloned().collect::<Vec<_>>()
            }
        };
        match args.first() {
            None => return Err(SpecError::NoCommand),
            Some(program) if program.is_empty() => return Err(SpecError::EmptyProgram),
            Some(_) => {}
        }
        if let Some(bad) = args.iter().find(|word| word.contains('\0')) {
            return Err(SpecError::Argument(bad.clone()));
        }
        let cwd = overrides.cwd.as_ref().or(image.working_dir().as_ref());
        let cwd = cwd.filter(|cwd| !cwd.is_empty()).map_or("/", String::as_str);
        if !cwd.starts_with('/') || cwd.contains('\0') {
            return Err(SpecError::Cwd(cwd.to_owned()));
        }
        if let Some(user) = &overrides.user {
            check_user(user)?;
        }
        let user = overrides.user.as_ref().or(image.user().as_ref()).filter(|user| !user.is_empty());
        // By its number, so that the agent finds root's groups, as other engines do.
        let user = user.map_or_else(|| "0".to_owned(), String::clone);
        Ok(Self {
            args,
            env: environment(image, overrides, hostname)?,
            cwd: cwd.to_owned(),
            user,
            terminal: overrides.terminal,
            stdin: overrides.stdin,
            rights: overrides.rights.clone(),
        })
    }
}

/// The largest number of a user or group; the next one means "unchanged" to the kernel.
const LARGEST_ID: u32 = u32::MAX - 1;

/// Whether a word may be the name or the number of a user or group. Whether there is such a name,
/// the guest alone knows.
fn is_id(word: &str) -> bool {
    let number = word.bytes().all(|byte| byte.is_ascii_digit());
    let fits = !number || word.is_empty() || word.parse::<u32>().is_ok_and(|id| id <= LARGEST_ID);
    fits && !word.contains([':', '\n', '\0'])
}

/// Refuses what can be no `USER[:GROUP]`.
///
/// # Errors
/// A number that is too large, or a word that no file of users can have.
pub fn check_user(text: &str) -> Result<(), SpecError> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    if is_id(user) && is_id(group) {
        return Ok(());
    }
    let hint = "write USER[:GROUP], each a name or a number of at most 4294967294";
    Err(SpecError::Flag { what: "user", text: text.to_owned(), hint })
}

/// Refuses what can be no group.
///
/// # Errors
/// As of [`check_user`].
pub fn check_group(text: &str) -> Result<(), SpecError> {
    if is_id(text) && !text.is_empty() {
        return Ok(());
    }
    let hint = "write a name or a number of at most 4294967294";
    Err(SpecError::Flag { what: "group", text: text.to_owned(), hint })
}

/// PATH, HOSTNAME and TERM as docker sets them, then the image's words, then the caller's; a later
/// word replaces an earlier one in its place. HOME is the agent's: only it can read the container's
/// user database.
fn environment(image: &Config, overrides: &Overrides, hostname: &str) -> Result<Vec<String>, SpecError> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if overrides.terminal {
        env.push("TERM=xterm".to_owned());
    }
    for word in image.env().iter().flatten().chain(&overrides.env) {
        let (name, value) = match word.split_once('=') {
            Some((name, _)) => (name, Some(word)),
            None => (word.as_str(), None),
        };
        if name.is_empty() || word.contains('\0') {
            return Err(SpecError::Env(word.clone()));
        }
        let place = env.iter().position(|have| have.split('=').next() == Some(name));
        match (place, value) {
            (Some(place), Some(word)) => env[place].clone_from(word),
            (None, Some(word)) => env.push(word.clone()),
            (Some(place), None) => drop(env.remove(place)),
            (None, None) => {}
        }
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;

    use super::*;

    #[test]
    fn a_user_that_cannot_be_is_refused() {
        for good in ["0", "web", "web:www", "1000:100", "web:", ":7", "", "4294967294", "7a"] {
            assert_eq!(check_user(good), Ok(()), "{good:?}");
        }
        for bad in ["4294967295", "0:4294967295", "99999999999", "a:b:c", "a\nb", "a\0"] {
            let error = check_user(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("4294967294"), "{error}");
            let overrides =
                Overrides { user: Some(bad.to_owned()), command: words(&["x"]), ..Default::default() };
            assert!(ProcessSpec::merge(&Config::default(), &overrides, "h").is_err());
        }
        assert!(check_group("wheel").is_ok() && check_group("10").is_ok());
        for bad in ["", "4294967295", "a:b"] {
            assert!(check_group(bad).is_err(), "{bad:?}");
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Config {
        let mut config =
            ConfigBuilder::default().env(words(&["PATH=/bin", "A=1"])).user("web:www").working_dir("/srv");
        if !entrypoint.is_empty() {
            config = config.entrypoint(words(entrypoint));
        }
        if !cmd.is_empty() {
            config = config.cmd(words(cmd));
        }
        config.build().unwrap()
    }

    #[test]
    fn commands_merge_as_under_docker() {
        // entrypoint and command of the image, --entrypoint, command of the caller, what runs
        type Row = (
            &'static [&'static str],
            &'static [&'static str],
            Option<&'static str>,
            &'static [&'static str],
            &'static [&'static str],
        );
        let table: &[Row] = &[
            (&[], &["sh"], None, &[], &["sh"]),
            (&[], &["sh"], None, &["ls", "-l"], &["ls", "-l"]),
            (&["/entry"], &["sh"], None, &[], &["/entry", "sh"]),
            (&["/entry"], &["sh"], None, &["x"], &["/entry", "x"]),
            (&["/entry"], &["sh"], Some("/other"), &[], &["/other"]),
            (&["/entry"], &["sh"], Some("/other"), &["x"], &["/other", "x"]),
            (&["/entry"], &["sh"], Some(""), &["x"], &["x"]),
            (&[""], &["sh"], None, &[], &["sh"]),
            (&[""], &["sh"], None, &["x"], &["x"]),
            (&["/entry"], &[], None, &[""], &["/entry", ""]),
        ];
        for (entrypoint, cmd, override_entrypoint, command, expected) in table {
            let overrides = Overrides {
                entrypoint: override_entrypoint.map(str::to_owned),
                command: words(command),
                ..Overrides::default()
            };
            let spec = ProcessSpec::merge(&image(entrypoint, cmd), &overrides, "box").unwrap();
            assert_eq!(
                spec.args,
                words(expected),
                "{entrypoint:?} {cmd:?} {override_entrypoint:?} {command:?}"
            );
        }
        let nothing = ProcessSpec::merge(&image(&[], &[]), &Overrides::default(), "box");
        assert_eq!(nothing, Err(SpecError::NoCommand));
        let nothing = ProcessSpec::merge(&image(&[""], &[]), &Overrides::default(), "box");
        assert_eq!(nothing, Err(SpecError::NoCommand));
        for (entrypoint, command) in [(&[][..], &[""][..]), (&["", "sh"], &[]), (&[""], &["", "x"])] {
            let overrides = Overrides { command: words(command), ..Overrides::default() };
            let empty = ProcessSpec::merge(&image(entrypoint, &["sh"]), &overrides, "box");
            assert_eq!(empty, Err(SpecError::EmptyProgram), "{entrypoint:?} {command:?}");
        }
    }

    #[test]
    fn environment_keeps_places_replaces_and_unsets() {
        let overrides =
            Overrides { env: words(&["A=2", "B=3", "HOSTNAME"]), terminal: true, ..Overrides::default() };
        let spec = ProcessSpec::merge(&image(&[], &["sh"]), &overrides, "box").unwrap();
        assert_eq!(spec.env, words(&["PATH=/bin", "TERM=xterm", "A=2", "B=3"]));
        assert_eq!((spec.user.as_str(), spec.cwd.as_str()), ("web:www", "/srv"));
        for bad in ["=x", "A=\0"] {
            let overrides = Overrides { env: words(&[bad]), ..Overrides::default() };
            assert!(ProcessSpec::merge(&image(&[], &["sh"]), &overrides, "box").is_err());
        }
        let overrides = Overrides { cwd: Some("tmp".into()), ..Overrides::default() };
        assert_eq!(
            ProcessSpec::merge(&image(&[], &["sh"]), &overrides, "b"),
            Err(SpecError::Cwd("tmp".into()))
        );
    }
}
