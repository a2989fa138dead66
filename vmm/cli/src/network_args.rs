//! The flags of a machine's network.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use nelly_sandbox::spec::network::{Network, NetworkOption, NetworkOptions, OptionError};

use crate::fail::Usage;

/// Flags of `run`, `create` and `boot`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NetworkArgs {
    /// Network of the machine: none, user (no privilege needed), tap=NAME, unix=PATH (passt) or
    /// vhost-user=PATH (Linux; whoever listens there gets the guest's memory), with options:
    /// prefix=, ip=, gw=, dns=, search=, mtu= and default=deny for user; ip=, gw=, dns=, search=,
    /// mtu= and mac= for tap, unix and vhost-user, vhost=off for tap; or a network of nelly
    /// network create, NAME[,alias=NAME][,ip=ADDRESS]
    /// [default: user; none for boot, unless it has a flag below]
    #[arg(long, value_name = "NETWORK", alias = "network")]
    pub(crate) net: Option<String>,
    /// Name that leads to the machine on its network of machines, beside the sandbox's own
    #[arg(long, value_name = "NAME")]
    pub(crate) network_alias: Vec<String>,
    /// Let a port of this host, or each of a range, lead to one of the guest; on loopback unless
    /// BIND is given
    #[arg(short = 'p', long, value_name = "[BIND:]HOST:GUEST[/udp]")]
    pub(crate) publish: Vec<String>,
    /// Let the guest reach what is refused otherwise, e.g. host:8080, a port of this host, or
    /// example.org:443, with --net user,default=deny
    #[arg(long, value_name = "RULE")]
    pub(crate) allow: Vec<String>,
    /// Do not let the guest reach this, e.g. 10.0.0.0/8, [fd00::/8]:443, '*:25/tcp', ads.example
    #[arg(long, value_name = "RULE")]
    pub(crate) deny: Vec<String>,
    /// Add a line of JSON to this file for every connection, datagram flow, ping and name that the
    /// guest asks for, allowed or denied
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) net_log: Option<PathBuf>,
    /// Resolver that the guest's names are looked up at [default: those of this host]
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub(crate) dns: Vec<String>,
    /// Domain in which the guest looks up short names
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
}

/// Flags of `run` and `create`: boot's guest has no agent that would tell it whom to trust.
#[derive(Debug, Default, Args)]
pub(crate) struct SecretArgs {
    /// Give the container a placeholder in its variable NAME, and have the value put in its place
    /// in requests to HOST by TLS, e.g. API_KEY@api.example.com. HOST is a name or *.NAME; say it
    /// again for several. The value is that of the variable NAME or VARIABLE here, or the content
    /// of a file, read at each start
    #[arg(long, value_name = "NAME[=env:VARIABLE|=file:PATH]@HOST[:PORT]")]
    pub(crate) secret: Vec<String>,
    /// Check the hosts of secrets with the authorities in this file, too (PEM)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) secret_ca: Option<PathBuf>,
}

impl SecretArgs {
    /// A flag that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [("--secret", !self.secret.is_empty()), ("--secret-ca", self.secret_ca.is_some())];
        given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }
}

impl NetworkArgs {
    /// A flag that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        self.options().given().map(flag)
    }

    fn options(&self) -> NetworkOptions {
        NetworkOptions {
            net: self.net.clone(),
            aliases: self.network_alias.clone(),
            publish: self.publish.clone(),
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            dns: self.dns.clone(),
            search: self.dns_search.clone(),
            log: self.net_log.clone(),
            ..NetworkOptions::default()
        }
    }

    /// The network. If no flag says something of it, it is `default`.
    ///
    /// # Errors
    /// A value that is wrong, or flags that do not go together; the error names the flag.
    pub(crate) fn network(&self, default: Network) -> Result<Network> {
        self.network_with(&SecretArgs::default(), default)
    }

    /// The same with secrets.
    ///
    /// # Errors
    /// As [`Self::network`].
    pub(crate) fn network_with(&self, secrets: &SecretArgs, default: Network) -> Result<Network> {
        let SecretArgs { secret, secret_ca } = secrets;
        let options =
            NetworkOptions { secrets: secret.clone(), secret_ca: secret_ca.clone(), ..self.options() };
        options.network(default).map_err(|error| {
            let flag = flag(error.option());
            Usage::error(match error {
                OptionError::OfUser { word, .. } => {
                    format!("{flag} is for --net user, and --net is {word}")
                }
                OptionError::Value { option: NetworkOption::Alias, what } if self.net.is_none() => {
                    format!("{flag}: {what}: name one with --network")
                }
                OptionError::Value { what, .. } => format!("{flag}: {what}"),
            })
        })
    }
}

/// What an option is on the command line.
fn flag(option: NetworkOption) -> &'static str {
    match option {
        NetworkOption::Net => "--net",
        NetworkOption::Alias => "--network-alias",
        NetworkOption::Publish => "-p",
        NetworkOption::Allow => "--allow",
        NetworkOption::Deny => "--deny",
        NetworkOption::Dns => "--dns",
        NetworkOption::Search => "--dns-search",
        NetworkOption::Log => "--net-log",
        NetworkOption::Secret => "--secret",
        NetworkOption::SecretCa => "--secret-ca",
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn network(words: &[&str]) -> Result<Network> {
        let command = NetworkArgs::augment_args(Command::new("nelly").no_binary_name(true));
        let matches = SecretArgs::augment_args(command).get_matches_from(words);
        let secrets = SecretArgs::from_arg_matches(&matches).unwrap();
        NetworkArgs::from_arg_matches(&matches).unwrap().network_with(&secrets, Network::None)
    }

    #[test]
    fn secrets_are_of_the_user_network_and_of_hosts_that_it_reaches() {
        let words =
            ["--secret", "A=env:B@api.example", "--secret", "A=env:B@*.example:8443", "--secret-ca", "x"];
        let Network::User(user) = network(&words).unwrap() else { panic!("user") };
        assert_eq!((user.secrets.len(), user.secrets[0].hosts.len()), (1, 2));
        assert!(user.secret_ca.unwrap().is_absolute());
        for (words, says) in [
            (&["--net", "none", "--secret", "A@api.example"][..], "--secret is for --net user"),
            (&["--net", "tap=t", "--secret", "A@api.example"], "--secret is for --net user"),
            (&["--secret", "A=hush@api.example"], "--secret: A: a value on the command line is seen"),
            (
                &["--secret", "A@api.example", "--deny", "api.example"],
                "--secret: A: api.example is not reached",
            ),
            (
                &["--net", "user,default=deny", "--secret", "A@api.example"],
                "--secret: A: api.example is not reached",
            ),
            (&["--secret-ca", "x"], "--secret-ca: it is for the hosts of secrets"),
        ] {
            let error = format!("{:#}", network(words).unwrap_err());
            assert!(error.contains(says) && !error.contains("hush"), "{words:?}: {error}");
        }
    }

    #[test]
    fn flags_become_a_network() {
        assert!(network(&[]).unwrap().is_none());
        let user = Network::User(Box::default());
        assert_eq!(NetworkArgs::default().network(user.clone()).unwrap(), user);
        assert!(network(&["--net", "none"]).unwrap().is_none());
        assert_eq!(network(&["--network", "user"]).unwrap().word(), "user");
        let words = [
            "-p",
            "8080:80",
            "--allow",
            "host:5432/tcp",
            "--allow",
            "*.example.org:443",
            "--deny",
            "10.0.0.0/8",
            "--dns",
            "192.0.2.1",
            "--dns-search",
            "lan",
        ];
        let Network::User(user) = network(&words).unwrap() else { panic!("user") };
        assert_eq!((user.publish.len(), user.allow.len(), user.deny.len(), user.dns.len()), (1, 2, 1, 1));
        assert_eq!((&user.search[..], &user.log), (&["lan".to_owned()][..], &None));
        let both = ["--net", "user,search=first,prefix=10.9.0.0/24", "--dns-search", "second"];
        let Network::User(user) = network(&both).unwrap() else { panic!("user") };
        assert_eq!(user.search, ["first", "second"]);
        assert_eq!(user.config("").guest4.to_string(), "10.9.0.15");
        let Network::User(user) = network(&["--net-log", "x"]).unwrap() else { panic!("user") };
        assert!(user.log.unwrap().is_absolute());
        let member = network(&["--network", "dev,alias=a", "--network-alias", "b", "-p", "80:80"]).unwrap();
        assert_eq!(member.member().unwrap().aliases, ["a", "b"]);
        let twice = ["-p", "80:80", "-p", "80:80/udp", "-p", "0:80", "-p", "0:80", "-p", "127.0.0.2:80:80"];
        assert!(network(&twice).is_ok());
        let Network::User(user) = network(&["-p", "8000-8002:80-82"]).unwrap() else { panic!("user") };
        assert_eq!(user.publish.iter().map(|port| port.guest).collect::<Vec<_>>(), [80, 81, 82]);
        let Network::Unix(unix) = network(&["--net", "unix=passt.sock"]).unwrap() else { panic!("unix") };
        assert!(unix.path.is_absolute());
        let Network::VhostUser(peer) = network(&["--net", "vhost-user=ovs.sock,mtu=9000"]).unwrap() else {
            panic!("vhost-user")
        };
        assert!(peer.path.is_absolute());
    }

    #[test]
    fn a_wrong_value_names_its_flag() {
        for (words, flag) in [
            (&["--net", "bridge"][..], "--net"),
            (&["--net", "none", "-p", "80:80"], "-p is for --net user"),
            (&["--net", "tap=t", "--net-log", "x"], "--net-log is for --net user"),
            (&["--net", "tap=t", "--dns", "1.1.1.1"], "--dns is for --net user"),
            (&["-p", "80"], "-p"),
            (&["-p", "80-81:80"], "2 ports of the host cannot lead to 1 of the guest"),
            (&["-p", "80-90:80-90", "-p", "90:80"], "are the same port"),
            (
                &["-p", "0:1-200", "-p", "0:1-256", "-p", "0:1-256", "-p", "0:1-256", "-p", "0:1-256"],
                "-p: 1224 ports are more than 1024",
            ),
            (
                &["-p", "80:80", "-p", "80:81"],
                "127.0.0.1:80:80/tcp and 127.0.0.1:80:81/tcp are the same port",
            ),
            (&["--allow", "host"], "--allow"),
            (&["--deny", "example"], "--deny"),
            (&["--dns", "dns"], "--dns"),
            (&["--dns-search", "a b"], "--dns-search"),
            (&["--network-alias", "db"], "--network-alias"),
            (&["--net", "none", "--network-alias", "db"], "--network-alias is for --net user"),
            (&["--net", "dev", "--network-alias", "D B"], "--network-alias"),
        ] {
            let error = format!("{:#}", network(words).unwrap_err());
            assert!(error.contains(flag), "{words:?}: {error}");
        }
    }
}
