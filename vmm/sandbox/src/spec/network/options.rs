//! A network as a user says it, option by option: flags of the command, methods of the library.

use std::path::PathBuf;

use nelly_net::config::{Publish, is_domain};
use nelly_net::control::MAX_PORTS;

use super::{Network, secret};

/// What is said of a network. Nothing of it: the network is another's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// The network, as `--net` has it.
    pub net: Option<String>,
    /// Names on a network of machines.
    pub aliases: Vec<String>,
    /// Ports, each as `[BIND:]HOST:GUEST[/udp]`, or ranges.
    pub publish: Vec<String>,
    /// Rules of what may be reached.
    pub allow: Vec<String>,
    /// Rules of what may not.
    pub deny: Vec<String>,
    /// Resolvers to ask.
    pub dns: Vec<String>,
    /// Domains to search.
    pub search: Vec<String>,
    /// The file of the log.
    pub log: Option<PathBuf>,
    /// Secrets, each as `NAME[=env:VARIABLE|=file:PATH]@HOST[:PORT]`.
    pub secrets: Vec<String>,
    /// A file of authorities for their hosts.
    pub secret_ca: Option<PathBuf>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkOption {
    /// [`NetworkOptions::net`].
    Net,
    /// [`NetworkOptions::aliases`].
    Alias,
    /// [`NetworkOptions::publish`].
    Publish,
    /// [`NetworkOptions::allow`].
    Allow,
    /// [`NetworkOptions::deny`].
    Deny,
    /// [`NetworkOptions::dns`].
    Dns,
    /// [`NetworkOptions::search`].
    Search,
    /// [`NetworkOptions::log`].
    Log,
    /// [`NetworkOptions::secrets`].
    Secret,
    /// [`NetworkOptions::secret_ca`].
    SecretCa,
}

/// What is wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Its value, or what it is together with others.
    #[error("{what}")]
    Value {
        /// The option.
        option: NetworkOption,
        /// What is wrong.
        what: String,
    },
    /// The network has no such.
    #[error("it is for the user-mode network, and the network is {word}")]
    OfUser {
        /// The option.
        option: NetworkOption,
        /// What the network is.
        word: &'static str,
    },
}

impl OptionError {
    /// The option.
    #[must_use]
    pub fn option(&self) -> NetworkOption {
        match self {
            Self::Value { option, .. } | Self::OfUser { option, .. } => *option,
        }
    }
}

/// Says which option an error is of.
fn of<E: ToString>(option: NetworkOption) -> impl Fn(E) -> OptionError {
    move |error| OptionError::Value { option, what: error.to_string() }
}

impl NetworkOptions {
    /// An option that says something of the user-mode network.
    fn of_user(&self) -> Option<NetworkOption> {
        let given = [
            (NetworkOption::Alias, &self.aliases),
            (NetworkOption::Publish, &self.publish),
            (NetworkOption::Allow, &self.allow),
            (NetworkOption::Deny, &self.deny),
            (NetworkOption::Dns, &self.dns),
            (NetworkOption::Search, &self.search),
            (NetworkOption::Secret, &self.secrets),
        ];
        let list = given.into_iter().find(|(_, values)| !values.is_empty()).map(|(option, _)| option);
        let list = list.or(self.log.as_ref().map(|_| NetworkOption::Log));
        list.or(self.secret_ca.as_ref().map(|_| NetworkOption::SecretCa))
    }

    /// The first option that is given.
    #[must_use]
    pub fn given(&self) -> Option<NetworkOption> {
        if self.net.is_some() { Some(NetworkOption::Net) } else { self.of_user() }
    }

    /// The network: `default` if nothing is said. What is said of the user-mode network alone means
    /// that one.
    ///
    /// # Errors
    /// A value that is wrong, or options that do not go together.
    pub fn network(&self, default: Network) -> Result<Network, OptionError> {
        use NetworkOption as Is;
        let mut network: Network = match (&self.net, self.of_user()) {
            (Some(text), _) => text.parse().map_err(of(Is::Net))?,
            (None, Some(_)) => Network::User(Box::default()),
            (None, None) => return Ok(default),
        };
        if let Network::Unix(socket) | Network::VhostUser(socket) = &mut network {
            socket.path = std::path::absolute(&socket.path).map_err(of(Is::Net))?;
        }
        let (word, option) = (network.word(), self.of_user());
        let Some(user) = network.user_mut() else {
            return match option {
                Some(option) => Err(OptionError::OfUser { option, word }),
                None => Ok(network),
            };
        };
        user.allow = parsed(&self.allow).map_err(of(Is::Allow))?;
        user.deny = parsed(&self.deny).map_err(of(Is::Deny))?;
        user.publish = ports(&self.publish).map_err(of(Is::Publish))?;
        user.dns = parsed(&self.dns).map_err(of(Is::Dns))?;
        if let Some(bad) = self.search.iter().find(|domain| !is_domain(domain)) {
            return Err(of(Is::Search)(format!("{bad:?} is not the name of a domain")));
        }
        user.search.extend(self.search.iter().cloned());
        user.log = self.log.as_ref().map(std::path::absolute).transpose().map_err(of(Is::Log))?;
        user.secrets = secret::parse(&self.secrets).map_err(of(Is::Secret))?;
        user.check_secrets().map_err(of(Is::Secret))?;
        if self.secret_ca.is_some() && self.secrets.is_empty() {
            return Err(of(Is::SecretCa)("it is for the hosts of secrets, and there is no secret"));
        }
        user.secret_ca =
            self.secret_ca.as_ref().map(std::path::absolute).transpose().map_err(of(Is::SecretCa))?;
        match &mut user.member {
            Some(member) => {
                self.aliases.iter().try_for_each(|name| member.add_alias(name)).map_err(of(Is::Alias))?;
            }
            None if !self.aliases.is_empty() => {
                let what = "it is a name on a network of machines, and no network is named";
                return Err(of(Is::Alias)(what));
            }
            None => {}
        }
        Ok(network)
    }
}

fn parsed<T: std::str::FromStr<Err = String>>(values: &[String]) -> Result<Vec<T>, String> {
    values.iter().map(|text| text.parse()).collect()
}

/// Ports, no two of which are the same one of the host.
fn ports(values: &[String]) -> Result<Vec<Publish>, String> {
    let ports = values.iter().map(|text| Publish::all(text)).collect::<Result<Vec<_>, _>>()?.concat();
    if ports.len() > MAX_PORTS {
        return Err(format!("{} ports are more than {MAX_PORTS}", ports.len()));
    }
    for (at, port) in ports.iter().enumerate() {
        let same = |one: &&Publish| (one.bind, one.protocol) == (port.bind, port.protocol);
        if port.bind.port() != 0
            && let Some(other) = ports[..at].iter().find(same)
        {
            return Err(format!("{other} and {port} are the same port of this host"));
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(net: &str, change: impl FnOnce(&mut NetworkOptions)) -> Result<Network, OptionError> {
        let net = (!net.is_empty()).then(|| net.to_owned());
        let mut options = NetworkOptions { net, ..NetworkOptions::default() };
        change(&mut options);
        options.network(Network::None)
    }

    #[test]
    fn options_of_the_user_network_mean_it() {
        assert_eq!(said("", |_| ()), Ok(Network::None));
        let network = said("", |options| options.publish.push("8080:80".into())).unwrap();
        assert_eq!(network.word(), "user");
        let network = said("dev", |options| options.aliases.push("db".into())).unwrap();
        assert_eq!(network.member().unwrap().aliases, ["db"]);
    }

    #[test]
    fn an_error_is_of_its_option() {
        type Change = fn(&mut NetworkOptions);
        let table: [(&str, Change, NetworkOption, &str); 12] = [
            ("none", |o| o.secrets.push("K@a.b".into()), NetworkOption::Secret, "the network is none"),
            ("", |o| o.secrets.push("K@192.0.2.1".into()), NetworkOption::Secret, "is an address"),
            ("", |o| o.secret_ca = Some("x".into()), NetworkOption::SecretCa, "there is no secret"),
            ("bridge", |_| (), NetworkOption::Net, "docker's networks"),
            ("none", |o| o.publish.push("80:80".into()), NetworkOption::Publish, "the network is none"),
            ("tap=t", |o| o.log = Some("x".into()), NetworkOption::Log, "the network is tap"),
            ("", |o| o.publish.push("80".into()), NetworkOption::Publish, ""),
            ("", |o| o.allow.push("host".into()), NetworkOption::Allow, ""),
            ("", |o| o.deny.push("example".into()), NetworkOption::Deny, ""),
            ("", |o| o.dns.push("dns".into()), NetworkOption::Dns, "not an address of a resolver"),
            ("", |o| o.search.push("a b".into()), NetworkOption::Search, "not the name of a domain"),
            ("", |o| o.aliases.push("db".into()), NetworkOption::Alias, "no network is named"),
        ];
        for (net, change, option, words) in table {
            let error = said(net, change).unwrap_err();
            assert_eq!(error.option(), option, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
