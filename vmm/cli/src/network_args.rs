//! The flags of a machine's network.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use nelly_net::config::{Publish, is_domain};
use nelly_net::control::MAX_PORTS;
use nelly_sandbox::spec::network::{Network, UserNetwork};

use crate::fail::{OfFlag as _, Usage};

/// Flags of `run`, `create` and `boot`.
#[derive(Debug, Default, Args)]
pub(crate) struct NetworkArgs {
    /// Network of the machine: none, user (no privilege needed), tap=NAME or unix=PATH (passt),
    /// with options: user,default=deny,mtu=BYTES; ip=, gw=, dns=, search=, mtu= and mac= for tap
    /// and unix; or a network of nelly network create, NAME[,alias=NAME][,ip=ADDRESS]
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

impl NetworkArgs {
    /// A flag that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        if self.net.is_some() { Some("--net") } else { self.of_user() }
    }

    /// A flag that says something of the user-mode network.
    fn of_user(&self) -> Option<&'static str> {
        let given = [
            ("--network-alias", &self.network_alias),
            ("-p", &self.publish),
            ("--allow", &self.allow),
            ("--deny", &self.deny),
            ("--dns", &self.dns),
            ("--dns-search", &self.dns_search),
        ];
        let list = given.into_iter().find(|(_, values)| !values.is_empty()).map(|(flag, _)| flag);
        list.or(self.net_log.as_ref().map(|_| "--net-log"))
    }

    /// The network. If no flag says something of it, it is `default`.
    ///
    /// # Errors
    /// A value that is wrong, or flags that do not go together; the error names the flag.
    pub(crate) fn network(&self, default: Network) -> Result<Network> {
        let mut network: Network = match (&self.net, self.of_user()) {
            (Some(text), _) => text.parse().of_flag("--net")?,
            (None, Some(_)) => Network::User(UserNetwork::default()),
            (None, None) => return Ok(default),
        };
        if let Network::Unix(unix) = &mut network {
            unix.path = std::path::absolute(&unix.path).of_flag("--net")?;
        }
        let (word, flag) = (network.word(), self.of_user());
        let Some(user) = network.user_mut() else {
            return match flag {
                Some(flag) => Err(Usage::error(format!("{flag} is for --net user, and --net is {word}"))),
                None => Ok(network),
            };
        };
        let parsed =
            |values: &[String]| values.iter().map(|text| text.parse()).collect::<Result<Vec<_>, String>>();
        user.allow = parsed(&self.allow).map_err(anyhow::Error::msg).of_flag("--allow")?;
        user.deny = parsed(&self.deny).map_err(anyhow::Error::msg).of_flag("--deny")?;
        let publish = self.publish.iter().map(|text| Publish::all(text)).collect::<Result<Vec<_>, String>>();
        user.publish = publish.map_err(anyhow::Error::msg).of_flag("-p")?.concat();
        if user.publish.len() > MAX_PORTS {
            return Err(Usage::error(format!("-p: {} ports are more than {MAX_PORTS}", user.publish.len())));
        }
        for (at, port) in user.publish.iter().enumerate() {
            let same = |one: &&Publish| (one.bind, one.protocol) == (port.bind, port.protocol);
            if port.bind.port() != 0
                && let Some(other) = user.publish[..at].iter().find(same)
            {
                return Err(Usage::error(format!("-p: {other} and {port} are the same port of this host")));
            }
        }
        let dns = self.dns.iter().map(|text| text.parse()).collect::<Result<Vec<_>, String>>();
        user.dns = dns.map_err(anyhow::Error::msg).of_flag("--dns")?;
        if let Some(bad) = self.dns_search.iter().find(|domain| !is_domain(domain)) {
            return Err(Usage::error(format!("--dns-search: {bad:?} is not the name of a domain")));
        }
        user.search.clone_from(&self.dns_search);
        user.log = self.net_log.as_ref().map(std::path::absolute).transpose().of_flag("--net-log")?;
        match &mut user.member {
            Some(member) => {
                let added = self.network_alias.iter().try_for_each(|name| member.add_alias(name));
                added.map_err(anyhow::Error::msg).of_flag("--network-alias")?;
            }
            None if !self.network_alias.is_empty() => {
                return Err(Usage::error(
                    "--network-alias is a name on a network of machines: name one with --network",
                ));
            }
            None => {}
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn network(words: &[&str]) -> Result<Network> {
        let command = NetworkArgs::augment_args(Command::new("nelly").no_binary_name(true));
        NetworkArgs::from_arg_matches(&command.get_matches_from(words)).unwrap().network(Network::None)
    }

    #[test]
    fn flags_become_a_network() {
        assert!(network(&[]).unwrap().is_none());
        let user = Network::User(UserNetwork::default());
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
