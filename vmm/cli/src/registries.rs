//! The `[registry."HOST"]` tables of `config.toml`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use nelly_registry::HostOptions;

/// The keys of such a table, with their descriptions.
const KEYS: [(&str, &str); 3] = [
    ("mirrors", "where to look first when pulling"),
    ("plain_http", "without TLS"),
    ("ca", "PEM file with further authorities to trust"),
];

/// Reads the tables.
///
/// # Errors
/// An unknown key, or a value of another type, by name.
pub(crate) fn parse(tables: toml::Value) -> Result<BTreeMap<String, HostOptions>> {
    let toml::Value::Table(tables) = tables else {
        bail!("registry is not a table; write [registry.\"HOST\"]");
    };
    tables
        .into_iter()
        .map(|(host, table)| {
            let options = host_options(table).with_context(|| format!("[registry.\"{host}\"]"))?;
            Ok((host, options))
        })
        .collect()
}

fn host_options(table: toml::Value) -> Result<HostOptions> {
    let toml::Value::Table(table) = table else { bail!("it is not a table; write [registry.\"HOST\"]") };
    let mut options = HostOptions::default();
    for (key, value) in table {
        match (key.as_str(), value) {
            ("mirrors", toml::Value::Array(mirrors)) => {
                let text = |value: toml::Value| match value {
                    toml::Value::String(mirror) => Ok(mirror),
                    _ => bail!("mirrors is not a list of strings"),
                };
                options.mirrors = mirrors.into_iter().map(text).collect::<Result<_>>()?;
            }
            ("plain_http", toml::Value::Boolean(plain)) => options.plain_http = plain,
            ("ca", toml::Value::String(path)) if path.starts_with('/') => options.ca = Some(path.into()),
            ("mirrors", _) => bail!("mirrors is not a list of strings"),
            ("plain_http", _) => bail!("plain_http is neither true nor false"),
            ("ca", _) => bail!("ca is not an absolute path"),
            (other, _) => {
                let known = KEYS.map(|(key, _)| key).join(", ");
                bail!("unknown setting {other:?}; the known settings are {known}")
            }
        }
    }
    Ok(options)
}

/// Each setting of each registry: its key, value and description.
pub(crate) fn rows(registries: &BTreeMap<String, HostOptions>) -> Vec<(String, String, &'static str)> {
    let mut rows = Vec::new();
    for (host, options) in registries {
        let values = [
            options.mirrors.join(" "),
            if options.plain_http { "true".to_owned() } else { String::new() },
            options.ca.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        ];
        for ((key, about), value) in KEYS.into_iter().zip(values).filter(|(_, value)| !value.is_empty()) {
            rows.push((format!("registry.\"{host}\".{key}"), value, about));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, HostOptions>> {
        let table: toml::Table = text.parse().unwrap();
        parse(table["registry"].clone())
    }

    #[test]
    fn tables_of_registries() {
        let text = "[registry.\"docker.io\"]\nmirrors = [\"http://m:5000\", \"n\"]\n\
            [registry.\"r.example:5000\"]\nplain_http = true\nca = \"/etc/ca.pem\"\n";
        let registries = read(text).unwrap();
        assert_eq!(registries["docker.io"].mirrors, ["http://m:5000", "n"]);
        let other = &registries["r.example:5000"];
        assert!(other.plain_http && other.ca.as_deref() == Some("/etc/ca.pem".as_ref()));
        let shown: Vec<_> =
            rows(&registries).into_iter().map(|(key, value, _)| format!("{key}={value}")).collect();
        assert_eq!(
            shown,
            [
                "registry.\"docker.io\".mirrors=http://m:5000 n",
                "registry.\"r.example:5000\".plain_http=true",
                "registry.\"r.example:5000\".ca=/etc/ca.pem"
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, needle) in [
            ("registry = 1", "not a table"),
            ("[registry]\nh = 1", "registry.\"h\""),
            ("[registry.h]\nmirror = \"x\"", "\"mirror\"; the known settings are mirrors, plain_http, ca"),
            ("[registry.h]\nmirrors = \"x\"", "list of strings"),
            ("[registry.h]\nmirrors = [1]", "list of strings"),
            ("[registry.h]\nplain_http = \"yes\"", "neither true nor false"),
            ("[registry.h]\nca = \"ca.pem\"", "absolute path"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(needle), "{text}: {error}");
        }
    }
}
