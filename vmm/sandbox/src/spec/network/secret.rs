//! Secrets that a guest never has: what was asked for, as plain data that the record keeps, and the
//! values, which it does not.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nelly_net::addressee::{Claim, Speaks};
use nelly_net::config::{
    MOST_SECRETS, PLACEHOLDER, Secret, SecretHost, SecretValue, SecretsConfig, Verdict, is_secret_name,
};
use nelly_net::policy::{Check, Naming, Policy};
use serde::{Deserialize, Serialize};

use super::{Network, UserNetwork};

/// The list of authorities in a container, to which the machine's own is added.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Variables by which programs find such a list.
const VARIABLES: [&str; 4] = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
/// Most bytes of the file of a value, and of one of authorities.
const MOST: u64 = 128 << 10;

/// Where a value comes from, at each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// A variable of the environment of whoever starts the sandbox.
    Env(String),
    /// A file, absolute; a line break at its end is no part of the value.
    File(PathBuf),
}

/// A secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSpec {
    /// The variable of the container that has the placeholder.
    pub name: String,
    /// Where its value comes from.
    pub source: SecretSource,
    /// Whom it is for.
    pub hosts: Vec<SecretHost>,
    /// What the container has in its place.
    pub placeholder: String,
}

/// Why a value cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not set.
    #[error("secret {name}: the environment variable {variable} is not set here")]
    Unset {
        /// The secret.
        name: String,
        /// The variable.
        variable: String,
    },
    /// The file cannot be read.
    #[error("{what}: cannot read {}", .path.display())]
    File {
        /// What it is of.
        what: String,
        /// The file.
        path: PathBuf,
        /// The system's error, or what the file is instead.
        #[source]
        source: std::io::Error,
    },
    /// It can stand in no request.
    #[error("secret {name}: {what}")]
    Value {
        /// The secret.
        name: String,
        /// What is wrong, without the value.
        what: String,
    },
}

/// The values of the secrets of a machine, in their order. Nothing prints them, and nothing writes
/// them to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretValues {
    values: Vec<SecretValue>,
    /// Certificates of authorities to trust beside those of this host, in PEM form.
    authorities: Option<String>,
    /// Variables of the environment that values came from.
    #[serde(skip)]
    variables: Vec<String>,
}

impl SecretValues {
    /// The variables that values came from, which no process that is started has to have.
    pub(crate) fn variables(&self) -> &[String] {
        &self.variables
    }

    /// Whether there is any.
    pub(crate) fn any(&self) -> bool {
        !self.values.is_empty()
    }

    /// Reads those of a network, with `get` as the environment. None of one without secrets.
    ///
    /// # Errors
    /// One cannot be had.
    pub fn read(network: &Network, get: impl Fn(&str) -> Option<OsString>) -> Result<Self, SecretError> {
        let Network::User(user) = network else { return Ok(Self::default()) };
        let values = user.secrets.iter().map(|secret| secret.value(&get)).collect::<Result<_, _>>()?;
        let authorities = user.secret_ca.as_deref().map(|path| read(path, "--secret-ca")).transpose()?;
        let variable = |secret: &SecretSpec| match &secret.source {
            SecretSource::Env(variable) => Some(variable.clone()),
            SecretSource::File(_) => None,
        };
        let variables = user.secrets.iter().filter_map(variable).collect();
        Ok(Self { values, authorities, variables })
    }

    /// What `nelly-secrets` is told of a network with these values; `None`: it has no secrets.
    #[must_use]
    pub fn config(&self, network: &UserNetwork) -> Option<SecretsConfig> {
        if network.secrets.is_empty() {
            return None;
        }
        let secret = |(spec, value): (&SecretSpec, &SecretValue)| Secret {
            name: spec.name.clone(),
            placeholder: spec.placeholder.clone(),
            value: value.clone(),
            hosts: spec.hosts.clone(),
        };
        Some(SecretsConfig {
            schema: nelly_net::config::SCHEMA,
            secrets: network.secrets.iter().zip(&self.values).map(secret).collect(),
            authorities: self.authorities.iter().cloned().collect(),
            confine: nelly_net::config::Confine::On,
        })
    }
}

fn read(path: &Path, what: &str) -> Result<String, SecretError> {
    let failed = |source| SecretError::File { what: what.to_owned(), path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MOST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MOST {
        return Err(failed(std::io::Error::other(format!("it is longer than {MOST} bytes"))));
    }
    Ok(text)
}

impl SecretSpec {
    fn value(&self, get: &impl Fn(&str) -> Option<OsString>) -> Result<SecretValue, SecretError> {
        let wrong = |what: String| SecretError::Value { name: self.name.clone(), what };
        let value = match &self.source {
            SecretSource::Env(variable) => {
                let unset = || SecretError::Unset { name: self.name.clone(), variable: variable.clone() };
                let value = get(variable).ok_or_else(unset)?;
                value.into_string().map_err(|_| wrong("the value is no UTF-8".to_owned()))?
            }
            SecretSource::File(path) => {
                let mut text = read(path, &format!("secret {}", self.name))?;
                let line =
                    text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
                text.truncate(line.len());
                text
            }
        };
        SecretValue::new(value).map_err(wrong)
    }

    /// Reads `NAME[=env:VARIABLE|=file:PATH]@HOST[:PORT]`, without a placeholder.
    fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write NAME@HOST, NAME=env:VARIABLE@HOST or NAME=file:PATH@HOST";
        let (what, host) = text.rsplit_once('@').ok_or_else(|| {
            // What stands there may be a value.
            let name = text.split('=').next().unwrap_or_default();
            format!("{name:?} has no @HOST; {FORM}")
        })?;
        let (name, source) = what.split_once('=').map_or((what, None), |(name, source)| (name, Some(source)));
        if !is_secret_name(name) {
            return Err(format!("{name:?} is no name of a variable; {FORM}"));
        }
        let source = match source.map(|source| source.split_once(':').unwrap_or((source, ""))) {
            None => SecretSource::Env(name.to_owned()),
            Some(("env", variable)) if !variable.is_empty() && !variable.contains(['=', '\0']) => {
                SecretSource::Env(variable.to_owned())
            }
            Some(("file", path)) if !path.is_empty() => {
                SecretSource::File(std::path::absolute(path).map_err(|error| format!("{name}: {error}"))?)
            }
            Some(("env" | "file", _)) => return Err(format!("{name}: nothing is named; {FORM}")),
            Some(_) => {
                return Err(format!(
                    "{name}: a value on the command line is seen by every user of this host; {FORM}"
                ));
            }
        };
        let hosts = vec![host.parse().map_err(|error| format!("{name}: {error}"))?];
        Ok(Self { name: name.to_owned(), source, hosts, placeholder: String::new() })
    }
}

/// Reads secrets. One that is named again is for one host more, and has the same value.
///
/// # Errors
/// What is wrong with one, or with all.
pub(super) fn parse(texts: &[String]) -> Result<Vec<SecretSpec>, String> {
    let mut all: Vec<SecretSpec> = Vec::new();
    for text in texts {
        let mut one = SecretSpec::parse(text)?;
        match all.iter_mut().find(|other| other.name == one.name) {
            Some(other) if other.source != one.source => {
                return Err(format!("{} is given with two sources", one.name));
            }
            Some(other) if other.hosts.contains(&one.hosts[0]) => {
                return Err(format!("{} is given twice for {}", one.name, one.hosts[0]));
            }
            Some(other) => other.hosts.append(&mut one.hosts),
            None => {
                one.placeholder = placeholder(&one.name).map_err(|error| error.to_string())?;
                all.push(one);
            }
        }
    }
    if all.len() > MOST_SECRETS || all.iter().any(|secret| secret.hosts.len() > MOST_SECRETS) {
        return Err(format!("more than {MOST_SECRETS} secrets, or hosts of one"));
    }
    if let Some(taken) = all.iter().find(|secret| VARIABLES.contains(&&*secret.name)) {
        return Err(format!("{} says where the authorities of the container are", taken.name));
    }
    Ok(all)
}

/// What stands for a secret in one container, and in no other.
fn placeholder(name: &str) -> std::io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{PLACEHOLDER}{name}-{:032x}", u128::from_be_bytes(bytes)))
}

impl UserNetwork {
    /// Whether the guest may reach the hosts of its secrets, by its rules.
    ///
    /// # Errors
    /// The first that it may not.
    pub(super) fn check_secrets(&self) -> Result<(), String> {
        let policy = Policy::new(&self.config(""));
        for secret in &self.secrets {
            for host in &secret.hosts {
                let text = host.domain.to_string();
                // Any of those below it stands for all.
                let name = if text.starts_with("*.") {
                    format!("x.{}", host.domain.name())
                } else {
                    host.domain.name().to_owned()
                };
                let check = Check { speaks: Speaks::Tls, must: self.default == Verdict::Deny };
                let asked = matches!(policy.name(&name), Naming::Allowed(_));
                let all = self.allow.iter().any(|rule| rule.target == nelly_net::config::Target::Any);
                let let_out =
                    all && asked || policy.passes(check, &Claim::Name(name), host.port) == Some(true);
                if !asked || !let_out {
                    return Err(format!(
                        "{}: {host} is not reached by the rules of --allow and --deny",
                        secret.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// What the container's environment has of the secrets, each `NAME=VALUE`: the placeholders,
    /// and where the authorities are; before what a person says.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        if self.secrets.is_empty() {
            return Vec::new();
        }
        let trust = VARIABLES.iter().map(|variable| format!("{variable}={BUNDLE}"));
        trust
            .chain(self.secrets.iter().map(|secret| format!("{}={}", secret.name, secret.placeholder)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Result<Vec<SecretSpec>, String> {
        parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_secret_is_a_name_a_source_and_hosts() {
        let all = parsed(&[
            "KEY@api.example",
            "KEY@*.api.example:8443",
            "OTHER=env:THEIRS@b.example",
            "FILE=file:/run/a@b@c.example",
        ])
        .unwrap();
        let [key, other, file] = &all[..] else { panic!("{all:?}") };
        assert_eq!((&key.source, key.hosts.len()), (&SecretSource::Env("KEY".into()), 2));
        assert_eq!(other.source, SecretSource::Env("THEIRS".into()));
        assert_eq!(file.source, SecretSource::File("/run/a@b".into()));
        assert_eq!(key.placeholder.len(), "nelly-secret-KEY-".len() + 32);
        assert_ne!(key.placeholder, parsed(&["KEY@api.example"]).unwrap()[0].placeholder);
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Vec<SecretSpec>>(&json).unwrap(), all);
        let user = UserNetwork { secrets: all, ..UserNetwork::default() };
        let environment = user.environment();
        assert!(environment.contains(&format!("KEY={}", user.secrets[0].placeholder)));
        assert!(environment.contains(&"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt".to_owned()));
        assert_eq!(UserNetwork::default().environment(), [""; 0]);
    }

    #[test]
    fn what_is_no_secret_is_refused_without_telling_it() {
        for (texts, words) in [
            (&["KEY"][..], "no @HOST"),
            (&["KEY=hush"], "no @HOST"),
            (&["KEY=hush@api.example"], "on the command line"),
            (&["KEY=hu:sh@api.example"], "on the command line"),
            (&["KEY=env:@api.example"], "nothing is named"),
            (&["KEY=file:@api.example"], "nothing is named"),
            (&["1KEY@api.example"], "no name of a variable"),
            (&["@api.example"], "no name of a variable"),
            (&["KEY@192.0.2.1"], "is an address"),
            (&["KEY@api.example:80"], "plain HTTP"),
            (&["KEY@"], "not a name"),
            (&["KEY@a.example", "KEY=env:B@b.example"], "two sources"),
            (&["KEY@a.example", "KEY@a.example"], "twice"),
            (&["SSL_CERT_FILE@a.example"], "authorities"),
        ] {
            let error = parsed(texts).unwrap_err();
            assert!(error.contains(words) && !error.contains("hush"), "{texts:?}: {error}");
        }
    }

    #[test]
    fn values_come_from_where_they_are_said_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let network = |source: &str, ca: Option<PathBuf>| {
            let secrets = parsed(&[&format!("KEY={source}@a.example")]).unwrap();
            Network::User(Box::new(UserNetwork { secrets, secret_ca: ca, ..UserNetwork::default() }))
        };
        let get = |name: &str| match name {
            "SET" => Some("hush".into()),
            "EMPTY" => Some("".into()),
            "LINES" => Some("hush\nhush".into()),
            _ => None,
        };
        let file = format!("file:{}", path.display());
        let read = |source: &str| SecretValues::read(&network(source, None), get);
        let error = |source: &str| read(source).unwrap_err().to_string();
        assert_eq!(read("env:SET").unwrap().values[0].reveal(), "hush");
        assert_eq!(read("env:SET").unwrap().variables(), ["SET"]);
        assert!(error("env:UNSET").contains("UNSET is not set"));
        assert!(error("env:EMPTY").contains("empty"));
        assert!(error("env:LINES").contains("more than one line") && !error("env:LINES").contains("hush"));
        assert!(error(&file).contains("cannot read"));
        for text in ["hush", "hush\n", "hush\r\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&file).unwrap().values[0].reveal(), "hush");
        }
        for text in ["hush\n\n", "", "\n", &"x".repeat(200_000)] {
            std::fs::write(&path, text).unwrap();
            assert!(read(&file).is_err());
        }
        let missing = SecretValues::read(&network("env:SET", Some("/nowhere/ca.pem".into())), get);
        assert!(missing.unwrap_err().to_string().contains("--secret-ca: cannot read /nowhere/ca.pem"));
        let shown = format!("{:?}", read("env:SET").unwrap());
        assert!(!shown.contains("hush"), "{shown}");
        assert_eq!(SecretValues::read(&Network::None, get).unwrap(), SecretValues::default());
    }

    #[test]
    fn a_host_that_is_not_reached_is_refused() {
        let check = |secret: &str, allow: &[&str], deny: &[&str], default| {
            let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let secrets = parsed(&[secret]).unwrap();
            UserNetwork { secrets, allow: rules(allow), deny: rules(deny), default, ..UserNetwork::default() }
                .check_secrets()
                .is_ok()
        };
        let (allow, deny) = (Verdict::Allow, Verdict::Deny);
        assert!(check("KEY@api.example", &[], &[], allow));
        assert!(check("KEY@api.example", &[], &["api.example:8443"], allow));
        assert!(!check("KEY@api.example", &[], &["api.example"], allow));
        assert!(!check("KEY@api.example", &[], &["api.example:443"], allow));
        assert!(!check("KEY@*.api.example", &[], &["*.api.example"], allow));
        assert!(!check("KEY@api.example", &[], &[], deny));
        assert!(!check("KEY@api.example", &["api.example:8443"], &[], deny));
        assert!(check("KEY@api.example", &["api.example:443"], &[], deny));
        assert!(check("KEY@*.api.example:8443", &["*.api.example"], &[], deny));
        assert!(check("KEY@api.example", &["*"], &[], deny));
    }
}
