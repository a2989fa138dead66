//! Secrets that a guest never has: what the processes on its way out are told of them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Confine, Domain};

/// What each placeholder begins with.
pub const PLACEHOLDER: &str = "nelly-secret-";
/// The longest value, in bytes.
const MOST_VALUE: usize = 8 << 10;
/// No machine has more secrets.
pub const MOST_SECRETS: usize = 64;
/// The port of a host that is named without one.
const HTTPS: u16 = 443;
/// A port at which clients do not begin with TLS.
const HTTP: u16 = 80;

/// A host that a secret is for: a name, or all names below one, and a port of TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretHost {
    /// The name.
    pub domain: Domain,
    /// The port, at which the host speaks TLS.
    pub port: u16,
}

impl SecretHost {
    /// Whether it is this name, which is in small letters, at this port.
    #[must_use]
    pub fn is_about(&self, name: &str, port: u16) -> bool {
        self.port == port && self.domain.is_about(name)
    }
}

impl FromStr for SecretHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let port = port.parse().ok().filter(|port| *port != 0 && digits);
                (name, port.ok_or_else(|| format!("{text:?} ends with no port, which is a number to 65535"))?)
            }
            None => (text, HTTPS),
        };
        let address = name.trim_start_matches('[').trim_end_matches(']');
        if address.parse::<IpAddr>().is_ok() || text.parse::<IpAddr>().is_ok() {
            return Err(format!(
                "{text:?} is an address, and a secret is for a name, which a certificate can prove"
            ));
        }
        if port == HTTP {
            return Err(format!(
                "{text:?}: port 80 is that of plain HTTP, and a secret is sent by TLS alone"
            ));
        }
        Ok(Self { domain: name.parse()?, port })
    }
}

impl fmt::Display for SecretHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            HTTPS => self.domain.fmt(f),
            port => write!(f, "{}:{port}", self.domain),
        }
    }
}

/// The value of a secret. Nothing prints it, and its memory is overwritten when it goes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretValue(Zeroizing<String>);

impl SecretValue {
    /// A value that can stand in a line of a request.
    ///
    /// # Errors
    /// Why it cannot, in words that do not tell it.
    pub fn new(value: String) -> Result<Self, String> {
        let value = Zeroizing::new(value);
        if value.is_empty() {
            return Err("the value is empty".to_owned());
        }
        if value.len() > MOST_VALUE {
            return Err(format!("the value has {} bytes, which are more than {MOST_VALUE}", value.len()));
        }
        if value.chars().any(|c| matches!(c, '\r' | '\n')) {
            return Err("the value has more than one line, and cannot stand in a header".to_owned());
        }
        if value.chars().any(char::is_control) {
            return Err("the value has a control character, and cannot stand in a header".to_owned());
        }
        if value.trim() != value.as_str() {
            return Err("the value begins or ends with a blank, which a header would lose".to_owned());
        }
        Ok(Self(value))
    }

    /// The value itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue")
    }
}

impl TryFrom<String> for SecretValue {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(text)
    }
}

impl From<SecretValue> for String {
    fn from(value: SecretValue) -> Self {
        value.reveal().to_owned()
    }
}

/// A secret as `nelly-secrets` is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// What the user calls it.
    pub name: String,
    /// What the guest has in its place.
    pub placeholder: String,
    /// What the hosts get.
    pub value: SecretValue,
    /// Whom it is for.
    pub hosts: Vec<SecretHost>,
}

/// A connection that `nelly-usernet` hands over, as JSON in one message, with two descriptors: the
/// stream of the guest, and the socket that is connected to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The name that the guest asked for, and says in its hello, in small letters.
    pub name: String,
    /// The port of the host.
    pub port: u16,
    /// The guest's end.
    pub from: String,
    /// The host's end.
    pub to: String,
}

/// What `nelly-secrets` is told: JSON of schema 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsConfig {
    /// 1.
    pub schema: u32,
    /// The secrets of one machine.
    pub secrets: Vec<Secret>,
    /// Certificates of authorities to trust beside those of this host, each a text in PEM form.
    #[serde(default)]
    pub authorities: Vec<String>,
    /// Whether the program gives up what it does not need before a connection comes.
    #[serde(default)]
    pub confine: Confine,
}

/// Whether `name` can be that of a variable, and so of a secret.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl SecretsConfig {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong, in words that tell no value.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(text).map_err(|error| {
            // What stands there may be a value.
            format!("it cannot be understood ({:?} in line {})", error.classify(), error.line())
        })?;
        if config.schema != super::SCHEMA {
            return Err(format!("schema {} is not known here, only {}", config.schema, super::SCHEMA));
        }
        if config.secrets.is_empty() || config.secrets.len() > MOST_SECRETS {
            return Err(format!("{} secrets are not 1 to {MOST_SECRETS}", config.secrets.len()));
        }
        for (at, secret) in config.secrets.iter().enumerate() {
            let tail = secret.placeholder.strip_prefix(PLACEHOLDER);
            let tail = tail.and_then(|tail| tail.strip_prefix(&*secret.name)?.strip_prefix('-'));
            let hex = |tail: &str| tail.len() == 32 && tail.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_secret_name(&secret.name) || !tail.is_some_and(hex) || secret.hosts.is_empty() {
                return Err(format!("secrets[{at}] is not complete"));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_and_a_port_of_tls() {
        for (text, shown) in [
            ("api.example.com", "api.example.com"),
            ("API.example.com.:443", "api.example.com"),
            ("*.example.com:8443", "*.example.com:8443"),
        ] {
            assert_eq!(text.parse::<SecretHost>().unwrap().to_string(), shown);
        }
        for (text, words) in [
            ("192.0.2.1", "is an address"),
            ("192.0.2.1:443", "is an address"),
            ("::1", "is an address"),
            ("[2001:db8::1]:443", "is an address"),
            ("example.com:80", "plain HTTP"),
            ("example.com:0", "no port"),
            ("example.com:+1", "no port"),
            ("example.com:", "no port"),
            ("example", "one label"),
            ("https://example.com", "no port"),
            ("example.com/x", "not a name"),
            ("", "not a name"),
        ] {
            let error = text.parse::<SecretHost>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let host: SecretHost = "*.example.com".parse().unwrap();
        assert!(host.is_about("a.example.com", 443));
        assert!(!host.is_about("a.example.com", 8443) && !host.is_about("example.com", 443));
    }

    #[test]
    fn a_value_stands_in_one_line_and_is_never_shown() {
        let refused = |text: &str| SecretValue::new(text.to_owned()).unwrap_err();
        assert!(refused("").contains("empty"));
        assert!(refused("hush\r\nX: y").contains("more than one line"));
        assert!(refused("hush\n").contains("more than one line"));
        assert!(refused("hu\u{0}sh").contains("control"));
        assert!(refused(" hush").contains("blank"));
        assert!(!refused(&"hush".repeat(4096)).contains("hush"));
        let value = SecretValue::new("hush é".to_owned()).unwrap();
        assert_eq!((value.reveal(), &*format!("{value:?}")), ("hush é", "SecretValue"));
    }

    #[test]
    fn a_configuration_is_whole_or_refused_without_its_values() {
        let placeholder = format!("{PLACEHOLDER}KEY-{}", "0".repeat(32));
        let secret = Secret {
            name: "KEY".to_owned(),
            placeholder,
            value: SecretValue::new("hush".to_owned()).unwrap(),
            hosts: vec!["example.com".parse().unwrap()],
        };
        let config =
            SecretsConfig { schema: 1, secrets: vec![secret], authorities: Vec::new(), confine: Confine::On };
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(SecretsConfig::from_json(json.as_bytes()).as_ref(), Ok(&config));
        for (from, to) in [
            ("\"schema\":1", "\"schema\":2"),
            ("\"name\":\"KEY\"", "\"name\":\"OTHER\""),
            ("\"name\":\"KEY\"", "\"name\":\"\""),
            ("[\"example.com\"]", "[]"),
            ("\"hush\"", "\"\""),
            ("\"hush\"", "\"hush\\n\""),
            ("\"value\"", "\"hush\""),
            (&json[..], "hush"),
        ] {
            let error = SecretsConfig::from_json(json.replace(from, to).as_bytes()).unwrap_err();
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
