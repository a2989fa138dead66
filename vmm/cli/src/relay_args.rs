//! The flags of relays: connections between this host and a container that need no network.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use nelly_sandbox::spec::Relay;
use nelly_sandbox::spec::relay::SSH_AGENT;

use crate::fail::{OfFlag as _, Usage};

/// Where a program finds the SSH agent.
const AUTH_SOCK: &str = "SSH_AUTH_SOCK";

/// Flags of `run` and `create`.
#[derive(Debug, Default, Args)]
pub(crate) struct RelayArgs {
    /// Listen on this host and join each connection with one in the container; no network is
    /// needed. Each side is unix:PATH, /PATH or a loopback port: tcp:PORT or PORT
    #[arg(long, value_name = "HOST=GUEST")]
    pub(crate) relay: Vec<String>,
    /// Listen in the container and join each connection with one on this host
    #[arg(long, value_name = "GUEST=HOST")]
    pub(crate) relay_out: Vec<String>,
    /// Let the container use the SSH agent of SSH_AUTH_SOCK; its keys stay on this host
    #[arg(long)]
    pub(crate) ssh_agent: bool,
}

/// Flags of `boot`, whose guest is reached through its agent.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct BootRelayArgs {
    /// With --agent: listen on this host, once the guest's agent is there, and join each connection
    /// with one in the guest, such as ./containerd.sock=/run/containerd/containerd.sock. Each side
    /// is unix:PATH, /PATH or a loopback port: tcp:PORT or PORT
    #[arg(long, value_name = "HOST=GUEST", requires = "agent")]
    relay: Vec<String>,
    /// With --agent: listen in the guest, where every user can connect who reaches the path, and
    /// join each connection with one on this host
    #[arg(long, value_name = "GUEST=HOST", requires = "agent")]
    relay_out: Vec<String>,
}

impl BootRelayArgs {
    /// The relays.
    ///
    /// # Errors
    /// As [`RelayArgs::relays`].
    pub(crate) fn relays(&self) -> Result<Vec<Relay>> {
        let Self { relay, relay_out } = self.clone();
        RelayArgs { relay, relay_out, ssh_agent: false }.relays(|_| None)
    }
}

impl RelayArgs {
    /// A flag that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--relay", !self.relay.is_empty()),
            ("--relay-out", !self.relay_out.is_empty()),
            ("--ssh-agent", self.ssh_agent),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// The relays, where `get` knows the environment.
    ///
    /// # Errors
    /// A value that is wrong, or no SSH agent; the error names the flag.
    pub(crate) fn relays(&self, get: impl Fn(&str) -> Option<PathBuf>) -> Result<Vec<Relay>> {
        let inward = self.relay.iter().map(|text| Relay::inward(text)).collect::<Result<Vec<_>, _>>();
        let outward = self.relay_out.iter().map(|text| Relay::outward(text)).collect::<Result<Vec<_>, _>>();
        let mut relays = [inward.of_flag("--relay")?, outward.of_flag("--relay-out")?].concat();
        if self.ssh_agent {
            relays.push(Relay::ssh_agent(&ssh_agent(get(AUTH_SOCK))?));
        }
        Relay::check_all(&relays).of_flag("--relay, --relay-out, --ssh-agent")?;
        Ok(relays)
    }

    /// What the container's environment has of it, `NAME=VALUE`; before what a person says.
    pub(crate) fn environment(&self) -> Option<String> {
        self.ssh_agent.then(|| format!("{AUTH_SOCK}={SSH_AGENT}"))
    }
}

/// The socket of the user's SSH agent.
fn ssh_agent(path: Option<PathBuf>) -> Result<PathBuf> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        bail!("--ssh-agent: {AUTH_SOCK} is not set: no SSH agent runs here; `eval $(ssh-agent)` starts one");
    };
    match path.metadata() {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => bail!("--ssh-agent: {AUTH_SOCK} is {}, which is no socket", path.display()),
        Err(error) => bail!("--ssh-agent: {AUTH_SOCK} is {}: {error}", path.display()),
    }
    if path.to_str().is_none() {
        bail!("--ssh-agent: {AUTH_SOCK} is {}, which is not UTF-8", path.display());
    }
    std::path::absolute(&path).map_err(|error| Usage::error(format!("--ssh-agent: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};
    use nelly_sandbox::spec::RelayAddress;
    use nelly_sandbox::spec::relay::Side;

    use super::*;

    fn parsed(words: &[&str]) -> RelayArgs {
        let command = RelayArgs::augment_args(Command::new("nelly").no_binary_name(true));
        RelayArgs::from_arg_matches(&command.get_matches_from(words)).unwrap()
    }

    #[test]
    fn flags_become_relays() {
        assert_eq!(parsed(&[]).relays(|_| None).unwrap(), []);
        let args = parsed(&["--relay", "./a=/b", "--relay", "0=80", "--relay-out", "5432=tcp:5432"]);
        let relays = args.relays(|_| None).unwrap();
        let sides: Vec<_> = relays.iter().map(|relay| relay.listens).collect();
        assert_eq!(sides, [Side::Host, Side::Host, Side::Guest]);
        assert!(matches!(&relays[0].listen, RelayAddress::Unix(path) if path.is_absolute()));
        assert_eq!((args.given(), args.environment()), (Some("--relay"), None));
    }

    #[test]
    fn an_ssh_agent_has_to_be_there() {
        let args = parsed(&["--ssh-agent"]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let asked = |path: Option<&str>| format!("{:#}", args.relays(|_| path.map(Into::into)).unwrap_err());
        assert!(asked(None).contains("is not set") && asked(Some("")).contains("is not set"));
        assert!(asked(path.to_str()).contains("No such file"));
        std::fs::write(&path, "").unwrap();
        assert!(asked(path.to_str()).contains("no socket"));
        std::fs::remove_file(&path).unwrap();
        let _agent = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let relays = args.relays(|_| Some(path.clone())).unwrap();
        assert_eq!(relays, [Relay::ssh_agent(&path)]);
        assert_eq!(args.environment().as_deref(), Some("SSH_AUTH_SOCK=/dev/ssh-agent.sock"));
    }

    #[test]
    fn a_wrong_value_names_its_flag() {
        for (words, flag) in [
            (&["--relay", "80"][..], "--relay:"),
            (&["--relay", "a=80"], "--relay:"),
            (&["--relay-out", "80=0"], "--relay-out:"),
            (&["--relay", "80=80", "--relay", "80=81"], "--relay,"),
        ] {
            let error = format!("{:#}", parsed(words).relays(|_| None).unwrap_err());
            assert!(error.contains(flag), "{words:?}: {error}");
        }
    }
}
