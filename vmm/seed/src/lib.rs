//! Seeds for cloud-init's data source NoCloud: a small disk with the label `cidata` that says what
//! a machine is told at its first start.
//!
//! Pure: plain data becomes bytes, the same bytes for the same data. Whoever has a machine attaches
//! them as a disk; whoever has files reads them. Format:
//! <https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html>.

mod agent;
mod document;
mod error;
mod given;
mod keys;
mod names;
mod password;
mod volume;

pub use document::{Growth, GuestFile, Settings};
pub use error::SeedError;
pub use given::{TEXT_MAX, check_user_data, check_yaml};
pub use keys::{KeyPair, PublicKey};
pub use names::{HostName, MacAddress, PackageName, UserName};
pub use password::{Password, Salt};
use sha2::{Digest as _, Sha256};

/// Texts of the user's own, in the place of those that come of [`Settings`].
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// User data, of any kind that cloud-init knows.
    pub user_data: Option<Vec<u8>>,
    /// Metadata, in YAML or JSON.
    pub meta_data: Option<Vec<u8>>,
    /// The network's configuration, version 1 or 2.
    pub network_config: Option<Vec<u8>>,
}

/// The files of a seed.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    user_data: Vec<u8>,
    meta_data: Vec<u8>,
    network_config: Option<Vec<u8>>,
    agent: Option<Vec<u8>>,
}

impl std::fmt::Debug for Seed {
    /// Not what it says: it may hold a private key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Seed({} bytes of user data)", self.user_data.len())
    }
}

impl Seed {
    /// The seed of these settings and texts.
    ///
    /// The metadata has an `instance-id` that is a digest of all the rest and of
    /// [`Settings::machine`]: a machine that has seen this seed does nothing at its next start, and
    /// does all again when anything of it has changed.
    ///
    /// # Errors
    /// A text is none that cloud-init takes; or one stands where a setting would have to go.
    pub fn new(settings: &Settings, texts: Texts) -> Result<Self, SeedError> {
        if let Some(text) = &texts.user_data {
            check_user_data(text)?;
            if settings.in_user_data() {
                return Err(SeedError::Together(
                    "user data that is given as it is takes no users, passwords, keys, files, packages and commands",
                ));
            }
        }
        for text in [&texts.meta_data, &texts.network_config].into_iter().flatten() {
            check_yaml(text)?;
        }
        if texts.meta_data.is_some() && settings.host_name.is_some() {
            return Err(SeedError::Together("metadata that is given as it is takes no host name"));
        }
        if texts.network_config.is_some() && !settings.interfaces.is_empty() {
            return Err(SeedError::Together(
                "a network configuration that is given as it is takes no addresses",
            ));
        }
        let user_data = texts.user_data.map_or_else(|| settings.user_data(), Ok)?;
        let network_config = texts.network_config.or_else(|| settings.network_config());
        let host_name = settings.host_name.as_ref();
        let id = || {
            let network = network_config.as_deref().unwrap_or_default();
            instance_id(&[&user_data, network, host(host_name), settings.machine.as_bytes()])
        };
        let meta_data = texts.meta_data.unwrap_or_else(|| document::meta_data(&id(), host_name));
        Ok(Self { user_data, meta_data, network_config, agent: None })
    }

    /// The same with an agent, a static program for the guest's processor, which a guest with
    /// systemd starts as a service at each of its starts. It is no part of what makes an instance.
    ///
    /// # Errors
    /// It has more than 16 MiB.
    pub fn with_agent(self, agent: Vec<u8>) -> Result<Self, SeedError> {
        if agent.len() > agent::AGENT_MAX {
            return Err(SeedError::TooLarge { bytes: agent.len() as u64, most: agent::AGENT_MAX as u64 });
        }
        Ok(Self { agent: Some(agent), ..self })
    }

    /// The user data.
    #[must_use]
    pub fn user_data(&self) -> &[u8] {
        &self.user_data
    }

    /// The metadata.
    #[must_use]
    pub fn meta_data(&self) -> &[u8] {
        &self.meta_data
    }

    /// The network's configuration, when it is not the image's.
    #[must_use]
    pub fn network_config(&self) -> Option<&[u8]> {
        self.network_config.as_deref()
    }

    /// The bytes of a disk without partitions: a FAT file system with the label `cidata`. A
    /// multiple of 64 KiB, at least 256 KiB.
    ///
    /// # Errors
    /// It would have more than 64 MiB.
    pub fn disk(&self) -> Result<Vec<u8>, SeedError> {
        let mut files = vec![("user-data", &*self.user_data), ("meta-data", &*self.meta_data)];
        files.extend(self.network_config.as_deref().map(|text| ("network-config", text)));
        if let Some(agent) = &self.agent {
            files.push(("vendor-data", agent::VENDOR_DATA.as_bytes()));
            files.push((agent::FILE, agent));
        }
        volume::volume(&files)
    }
}

fn host(name: Option<&HostName>) -> &[u8] {
    name.map_or(b"", |name| name.as_str().as_bytes())
}

/// A name for all of `parts`: each is digested with its length, so that none can be moved into
/// another.
fn instance_id(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new_with_prefix(b"nelly seed 1\0");
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digits = digest.finalize();
    digits.iter().take(16).fold("nelly-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seed: &Seed) -> String {
        let data: serde_json::Value = serde_json::from_slice(seed.meta_data()).unwrap();
        data["instance-id"].as_str().unwrap().to_owned()
    }

    #[test]
    fn the_instance_is_new_when_and_only_when_a_setting_is() {
        let user = |name| Settings { user: Some(UserName::new(name).unwrap()), ..Settings::default() };
        let named = |name| Settings { host_name: Some(HostName::new(name).unwrap()), ..user("ada") };
        let seed = |settings: &Settings| Seed::new(settings, Texts::default()).unwrap();
        let interface = Settings { interfaces: vec![MacAddress::new([2; 6])], ..user("ada") };
        let copy = Settings { machine: "of a copied disk".to_owned(), ..user("ada") };
        let all = [Settings::default(), user("ada"), user("bob"), named("a"), named("b"), interface, copy];
        let mut ids: Vec<_> = all.iter().map(|settings| id(&seed(settings))).collect();
        assert!(ids.iter().all(|id| id.len() == "nelly-".len() + 32));
        assert_eq!(ids, all.iter().map(|settings| id(&seed(settings))).collect::<Vec<_>>());
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), all.len());
        assert_eq!(seed(&named("a")).disk().unwrap(), seed(&named("a")).disk().unwrap());
        assert!(!format!("{:?}", seed(&named("a"))).contains("ada"));
    }

    #[test]
    fn an_agent_is_no_part_of_the_instance() {
        let seed = || Seed::new(&Settings::default(), Texts::default()).unwrap();
        let with = |bytes: &[u8]| seed().with_agent(bytes.to_vec()).unwrap();
        assert_eq!(id(&seed()), id(&with(b"one")));
        assert_eq!(with(b"one").disk().unwrap(), with(b"one").disk().unwrap());
        assert_ne!(with(b"one").disk().unwrap(), with(b"two").disk().unwrap());
        assert_ne!(with(b"").disk().unwrap(), seed().disk().unwrap());
        assert!(seed().with_agent(vec![0; agent::AGENT_MAX + 1]).is_err());
    }

    #[test]
    fn texts_are_taken_as_they_are() {
        let texts = Texts {
            user_data: Some(b"#!/bin/sh\n".to_vec()),
            meta_data: Some(b"instance-id: mine\n".to_vec()),
            network_config: Some(b"version: 1\nconfig: disabled\n".to_vec()),
        };
        let seed = Seed::new(&Settings::default(), texts.clone()).unwrap();
        assert_eq!(seed.user_data(), b"#!/bin/sh\n");
        assert_eq!(seed.meta_data(), b"instance-id: mine\n");
        assert_eq!(seed.network_config(), texts.network_config.as_deref());
        let own = Texts { user_data: texts.user_data.clone(), ..Texts::default() };
        let other = Texts { user_data: Some(b"#!/bin/bash\n".to_vec()), ..Texts::default() };
        let of = |texts: Texts| id(&Seed::new(&Settings::default(), texts).unwrap());
        assert_ne!(of(own.clone()), of(other));
        // What would have no place is refused.
        let user = Settings { user: Some(UserName::new("ada").unwrap()), ..Settings::default() };
        let host = Settings { host_name: Some(HostName::new("web").unwrap()), ..Settings::default() };
        let interface = Settings { interfaces: vec![MacAddress::new([2; 6])], ..Settings::default() };
        for (settings, what) in [(&user, "users"), (&host, "host name"), (&interface, "addresses")] {
            let error = Seed::new(settings, texts.clone()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(Seed::new(&host, own).is_ok(), "a host name stands in metadata");
        let wrong = Texts { user_data: Some(b"hello\n".to_vec()), ..Texts::default() };
        assert!(Seed::new(&Settings::default(), wrong).is_err());
    }
}
