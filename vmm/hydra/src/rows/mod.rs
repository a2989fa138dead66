//! A machine's settings as lines of a table.

use std::fmt::Display;

use crate::grammar::show_size;
use crate::machine::{ArtifactLogin, Boots, Machine};
use crate::setting::{Setting, Source};
use crate::variables::{Decision, VARIABLES};

/// What stands in the place of a secret.
const HIDDEN: &str = "(hidden)";

/// A setting of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name, which [`Decision::Sets`] names.
    pub key: &'static str,
    /// Its value; of a secret only that there is one.
    pub value: String,
    /// Where the value comes from.
    pub source: Source,
}

impl Row {
    /// The variables that say it, or a part of it.
    pub fn variables(&self) -> impl Iterator<Item = &'static str> + use<> {
        let key = self.key;
        VARIABLES
            .iter()
            .filter(move |variable| variable.decision == Decision::Sets(key))
            .map(|variable| variable.name)
    }
}

fn row<T>(key: &'static str, setting: &Setting<T>, value: impl Display) -> Row {
    Row { key, value: value.to_string(), source: setting.source }
}

impl Machine {
    /// All settings that have an effect, in a fixed order. Secrets are hidden.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let directory = &self.directory.value;
        let mut rows = vec![
            row("cpus", &self.cpus, self.cpus.value),
            row("memory", &self.memory, show_size(self.memory.value)),
            row("directory", &self.directory, directory.display()),
            row("bare", &self.bare, self.bare.value),
        ];
        match &self.boots {
            Boots::Image(image) => {
                rows.push(row("image", &image.file, image.file.value.display()));
                rows.push(row("image_url", &image.url, &image.url.value));
                rows.push(row("disk_size", &image.disk_size, show_size(image.disk_size.value)));
                rows.push(row("user", &image.user, image.user.value.as_str()));
                rows.push(row("password", &image.password.hash, HIDDEN));
                rows.push(row("hostname", &image.host_name, image.host_name.value.as_str()));
                let keys = &image.keys;
                if let Some(lines) = &keys.lines {
                    // The comment often says who has it and where.
                    rows.extend(lines.value.iter().map(|key| row("ssh_keys", lines, key.without_comment())));
                }
                rows.extend(keys.file.iter().map(|file| row("ssh_keys", file, file.value.display())));
                if keys.usual {
                    let value = "the first key in ~/.ssh that ssh tries".to_owned();
                    rows.push(Row { key: "ssh_keys", value, source: Source::Default });
                }
                rows.extend(image.kernel.iter().map(|one| row("packages", one, one.value.as_str())));
                rows.extend(image.k3s.iter().map(|one| row("k3s", one, one.value.display())));
            }
            Boots::Bare(bare) => {
                rows.push(row("kernel", &bare.kernel, bare.kernel.value.display()));
                rows.push(row("initrd", &bare.initrd, bare.initrd.value.display()));
                rows.push(row("bare_disk", &bare.disk, bare.disk.value.display()));
                rows.push(row("artifact", &bare.artifact, bare.artifact.value.display()));
                rows.push(row("artifact_url", &bare.artifact_url, &bare.artifact_url.value));
                match &bare.artifact_login {
                    Some(ArtifactLogin::Token(setting) | ArtifactLogin::User(setting, _)) => {
                        rows.push(row("artifact_login", setting, HIDDEN));
                    }
                    None => {}
                }
            }
        }
        if !self.append.value.is_empty() {
            rows.push(row("append", &self.append, &self.append.value));
        }
        rows.extend(self.ports.iter().map(|port| {
            let value = port.value;
            row("ports", port, format_args!("{}:{}:{}", value.bind, value.host, value.guest))
        }));
        rows.extend(self.shares.iter().map(|share| {
            let value = &share.value;
            row("shares", share, format_args!("{}|{}", value.host.display(), value.guest))
        }));
        let network = &self.network;
        rows.push(row("network_prefix", &network.prefix, format_args!("{}/24", network.prefix.value)));
        rows.push(row("device_ip", &network.device, network.device.value));
        rows.push(row("gateway_ip", &network.gateway, network.gateway.value));
        rows.push(row("dns_ip", &network.dns, network.dns.value));
        rows.push(row("dry_run", &self.dry_run, self.dry_run.value));
        rows.push(row("background", &self.background, self.background.value));
        rows.push(row("debug", &self.debug, self.debug.value));
        rows
    }
}

#[cfg(test)]
mod tests;
