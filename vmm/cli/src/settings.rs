//! Settings: a table of names, environment variables and defaults. Values are looked up in the
//! flag, the environment, the configuration file and the default, in this order.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nelly_image::trusted;
use nelly_registry::HostOptions;

use crate::registries;

/// One setting. The table is used by `config show`, to check the keys of the file, and in tests of
/// help.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Key in `config.toml`.
    pub(crate) key: &'static str,
    /// Environment variable.
    pub(crate) env: &'static str,
    /// Flag of `run` (and of `boot`, if it has this flag).
    pub(crate) flag: &'static str,
    /// The default value.
    pub(crate) default: &'static str,
    /// The text that `config show` prints instead of an empty value.
    pub(crate) empty: &'static str,
    /// The description.
    pub(crate) about: &'static str,
}

/// All settings.
pub(crate) const TABLE: [Setting; 7] = [
    Setting {
        key: "cpus",
        env: "NELLY_CPUS",
        flag: "--cpus",
        default: "1",
        empty: "",
        about: "number of vCPUs of a machine",
    },
    Setting {
        key: "memory",
        env: "NELLY_MEMORY",
        flag: "--memory",
        default: "512M",
        empty: "",
        about: "memory size of a machine",
    },
    Setting {
        key: "kernel",
        env: "NELLY_KERNEL",
        flag: "--kernel",
        default: "",
        empty: "(the installed one)",
        about: "kernel for nelly run",
    },
    Setting {
        key: "initrd",
        env: "NELLY_INITRD",
        flag: "--initrd",
        default: "",
        empty: "(the installed one)",
        about: "initramfs with the agent, for nelly run",
    },
    Setting {
        key: "append",
        env: "NELLY_APPEND",
        flag: "--append",
        default: "",
        empty: "(none)",
        about: "text appended to the kernel command line",
    },
    Setting {
        key: "monitor",
        env: "NELLY_MONITOR",
        flag: "",
        default: "",
        empty: "(beside nelly)",
        about: "path of the nelly-monitor program",
    },
    Setting {
        key: "log_level",
        env: "NELLY_LOG",
        flag: "--log-level",
        default: "warn",
        empty: "",
        about: "log level: error, warn, info, debug or trace",
    },
];

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SettingSource {
    Flag(&'static str),
    Environment(&'static str),
    File(PathBuf),
    Default,
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Environment(name) => write!(f, "${name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The values from the environment and the configuration file.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    file: Option<(PathBuf, BTreeMap<String, String>)>,
    /// How to reach registries, by host; of the file alone.
    registries: BTreeMap<String, HostOptions>,
    environment: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Reads the environment with `get`, and `config.toml` in `directory` if it exists.
    pub(crate) fn load(directory: Option<&Path>, get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let environment = TABLE
            .iter()
            .filter_map(|setting| Some((setting.key, get(setting.env).filter(|value| !value.is_empty())?)))
            .collect();
        let file = directory.map(|directory| directory.join("config.toml"));
        let mut registries = BTreeMap::new();
        let file = match file {
            None => None,
            // It names programs to execute, so a file that another user could have written is
            // refused.
            Some(path) => {
                match trusted::open_file(&path).context("refusing to use the configuration file")? {
                    Some(file) => {
                        let text = std::io::read_to_string(file)
                            .with_context(|| format!("cannot read {}", path.display()))?;
                        let values;
                        (values, registries) =
                            parse(&text).with_context(|| format!("cannot use {}", path.display()))?;
                        Some((path, values))
                    }
                    None => None,
                }
            }
        };
        Ok(Self { file, registries, environment })
    }

    /// How to reach registries, by host.
    pub(crate) fn registries(&self) -> &BTreeMap<String, HostOptions> {
        &self.registries
    }

    /// The value of `key` and its source; `flag` is the value of the flag, if it was given. The
    /// value is empty if it is not set and has no default.
    pub(crate) fn get(&self, key: &'static str, flag: Option<&str>) -> (String, SettingSource) {
        let setting = TABLE
            .iter()
            .find(|setting| setting.key == key)
            .unwrap_or_else(|| unreachable!("no setting {key}"));
        if let Some(value) = flag {
            return (value.to_owned(), SettingSource::Flag(setting.flag));
        }
        if let Some(value) = self.environment.get(key) {
            return (value.clone(), SettingSource::Environment(setting.env));
        }
        if let Some((path, value)) =
            self.file.as_ref().and_then(|(path, values)| Some((path, values.get(key)?)))
        {
            return (value.clone(), SettingSource::File(path.clone()));
        }
        (setting.default.to_owned(), SettingSource::Default)
    }

    /// Like [`Settings::get`] for a path; `None` if it is not set.
    pub(crate) fn path(&self, key: &'static str, flag: Option<&Path>) -> Option<(PathBuf, SettingSource)> {
        if let Some(path) = flag {
            let (_, source) = self.get(key, Some(""));
            return Some((path.to_owned(), source));
        }
        let (value, source) = self.get(key, None);
        (!value.is_empty()).then(|| (PathBuf::from(value), source))
    }
}

/// The settings and the registries of a file.
fn parse(text: &str) -> Result<(BTreeMap<String, String>, BTreeMap<String, HostOptions>)> {
    let mut table: toml::Table = text.parse().context("the file is not valid TOML")?;
    let registries = table.remove("registry").map(registries::parse).transpose()?.unwrap_or_default();
    let mut values = BTreeMap::new();
    for (key, value) in table {
        if !TABLE.iter().any(|setting| setting.key == key) {
            let known: Vec<_> = TABLE.iter().map(|setting| setting.key).chain(["registry"]).collect();
            bail!("unknown setting {key:?}; the known settings are {}", known.join(", "));
        }
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            other => {
                bail!("{key} has a value of type {}; a string or an integer is needed", other.type_str())
            }
        };
        values.insert(key, value);
    }
    Ok((values, registries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, "cpus = 2\nmemory = \"1G\"\n").unwrap();
        let settings =
            Settings::load(Some(directory.path()), |name| (name == "NELLY_CPUS").then(|| "3".to_owned()))
                .unwrap();
        assert_eq!(settings.get("cpus", Some("4")), ("4".into(), SettingSource::Flag("--cpus")));
        assert_eq!(settings.get("cpus", None), ("3".into(), SettingSource::Environment("NELLY_CPUS")));
        assert_eq!(settings.get("memory", None), ("1G".into(), SettingSource::File(path)));
        assert_eq!(settings.get("log_level", None), ("warn".into(), SettingSource::Default));
        assert_eq!(settings.path("kernel", None), None);
    }

    #[test]
    fn a_file_with_an_unknown_key_or_a_wrong_type_is_refused_by_name() {
        for (text, needle) in
            [("cpu = 1", "\"cpu\""), ("cpus = [1]", "cpus has a value of type array"), ("cpus", "TOML")]
        {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("config.toml"), text).unwrap();
            let error = Settings::load(Some(directory.path()), |_| None).unwrap_err();
            assert!(format!("{error:#}").contains(needle), "{error:#}");
            assert!(format!("{error:#}").contains("config.toml"), "{error:#}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(Settings::load(Some(empty.path()), |_| None).is_ok());
    }

    #[test]
    fn a_file_that_others_could_have_written_is_refused_by_name() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let refusal = || format!("{:#}", Settings::load(Some(directory.path()), |_| None).unwrap_err());
        std::fs::write(&path, "monitor = \"/tmp/planted\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let message = refusal();
        assert!(message.contains("config.toml is writable by users other"), "{message}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Settings::load(Some(directory.path()), |_| None).is_ok());
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refusal().contains("chmod go-w"));
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(12345), None).unwrap();
            assert!(refusal().contains("config.toml belongs to user 12345"));
        }
    }
}
