//! Values with their sources, and how they are looked up.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::HydraError;
use crate::variables::{Decision, VARIABLES, looks_like_one, variable};

/// The host that a machine shall run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its operating system, and on Linux whose command this is.
    pub platform: Platform,
    /// Its architecture as Debian calls it: `amd64`, `arm64`.
    pub architecture: &'static str,
}

/// An operating system, as the scripts tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// macOS.
    Darwin,
    /// Linux, by root.
    LinuxRoot,
    /// Linux, by another user.
    LinuxUser,
    /// Any other.
    Other,
}

/// Which of the scripts' environments a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The one that manages others: its own directory, a larger disk, ports of Kubernetes.
    Host,
    /// The one that is managed: what the variables alone say.
    Isolated,
    /// The same with a kernel and an initrd in the place of a cloud image.
    IsolatedBare,
}

impl Profile {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Isolated => "isolated",
            Self::IsolatedBare => "isolated-bare",
        }
    }

    /// The variables that it sets unless the environment does.
    #[must_use]
    pub fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Isolated => &[],
            Self::IsolatedBare => {
                &[("DEFAULT_DIR_IMAGE", "image-hydra-isolated-bare"), ("RUN_BARE_KERNEL", "1")]
            }
            Self::Host => &[
                ("DEFAULT_DIR_IMAGE", "image-host"),
                ("DEFAULT_KVM_DISK_SIZE", "25"),
                (
                    "DEFAULT_KVM_PORTS_REDIRECT",
                    "6443:6443;30123:30123;31883:31883;30443:443;30080:80;30700:30700;30900:30900",
                ),
                ("DISABLE_9P_KUBELET_MOUNTS", "1"),
                ("DISABLE_CONTAINERD_CSI_PROXY", "1"),
                ("ENABLE_K3S_DIOD", "1"),
            ],
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This variable of the environment.
    Variable(&'static str),
    /// The profile.
    Profile(Profile),
    /// The scripts' own default.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "${name}"),
            Self::Profile(profile) => write!(f, "profile {}", profile.name()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub source: Source,
}

impl<T> Setting<T> {
    pub(crate) fn with<U>(&self, value: U) -> Setting<U> {
        Setting { value, source: self.source }
    }
}

/// Looks values up: in the environment, in the profile, in the table of defaults.
pub(crate) struct Reader<'a> {
    environment: &'a BTreeMap<String, String>,
    profile: Profile,
    pub(crate) host: Host,
    /// What a user has to know, in order.
    pub(crate) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Warns of all variables that are set and do nothing.
    pub(crate) fn new(environment: &'a BTreeMap<String, String>, profile: Profile, host: Host) -> Self {
        let mut reader = Self { environment, profile, host, warnings: Vec::new() };
        for known in VARIABLES {
            let Some(value) = reader.given(known.name) else { continue };
            // A switch that is off asks for nothing.
            if known.default == "0" && value.bytes().all(|digit| digit == b'0') {
                continue;
            }
            match known.decision {
                Decision::Sets(_) => {}
                Decision::Nothing(reason) => {
                    reader.warnings.push(format!("{} has no meaning here: {reason}", known.name));
                }
                Decision::Later(reason) => {
                    reader.warnings.push(format!("{} has no effect yet: {reason}", known.name));
                }
            }
        }
        for name in environment.keys().filter(|name| variable(name).is_none() && looks_like_one(name)) {
            reader.warnings.push(format!("{name} is no variable of the Hydra scripts, and has no effect"));
        }
        reader
    }

    /// What the environment says; as in the scripts, an empty value says nothing.
    pub(crate) fn given(&self, name: &'static str) -> Option<&'a str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of a variable, or that of its profile or its default, which may be empty.
    pub(crate) fn text(&self, name: &'static str) -> Setting<String> {
        if let Some(value) = self.given(name) {
            return Setting { value: value.to_owned(), source: Source::Variable(name) };
        }
        let preset = self.profile.variables().iter().find(|(preset, _)| *preset == name);
        if let Some((_, value)) = preset {
            return Setting { value: (*value).to_owned(), source: Source::Profile(self.profile) };
        }
        let default = variable(name).expect("it is one of the table").default;
        Setting { value: default.replace("ARCH", self.host.architecture), source: Source::Default }
    }

    /// The value of a variable; `None` if it is empty.
    pub(crate) fn some(&self, name: &'static str) -> Option<Setting<String>> {
        Some(self.text(name)).filter(|text| !text.value.is_empty())
    }

    /// The value of a variable, as `parse` reads it.
    pub(crate) fn parsed<T, E: ToString>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Setting<T>, HydraError> {
        let text = self.text(name);
        let value = parse(&text.value).map_err(|reason| HydraError::value(name, &text.value, reason))?;
        Ok(text.with(value))
    }

    /// The first of these variables that the environment sets; else the last one.
    pub(crate) fn first_of(&self, first: &'static str, last: &'static str) -> &'static str {
        if self.given(first).is_some() { first } else { last }
    }

    pub(crate) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}
