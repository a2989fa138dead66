//! Login and logout: changing the files with credentials.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{CredentialStore, Credentials, HUB, read, same_host, server, unusable};
use crate::error::RegistryError;

/// Where a password is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginPlace {
    /// By a credential helper.
    Helper,
    /// In this file, not encrypted.
    File(PathBuf),
}

/// What was forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logout {
    /// Files and helpers that knew the registry.
    pub removed: usize,
    /// Files that still have credentials for it, and which are not ours to change.
    pub left: Vec<PathBuf>,
}

impl fmt::Display for LoginPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Helper => f.write_str("the credential helper"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl CredentialStore {
    fn written(&self) -> Result<&Path, RegistryError> {
        self.written.as_deref().ok_or_else(|| {
            unusable(Path::new("~/.docker/config.json"), "HOME is not set; set it, or REGISTRY_AUTH_FILE")
        })
    }

    /// Keeps a name and a password for a registry: by the credential helper that the file names,
    /// else in `$REGISTRY_AUTH_FILE` or docker's `config.json`, with mode 0600 and its other
    /// contents unchanged.
    ///
    /// # Errors
    /// [`RegistryError::Credentials`]: the file cannot be understood or written, or the helper
    /// fails.
    pub fn login(&self, host: &str, user: &str, password: &str) -> Result<LoginPlace, RegistryError> {
        let path = self.written()?;
        let mut config = read(path)?.unwrap_or_default();
        if let Some(helper) = self.helper_of(&config, host, path)? {
            helper.store(&server(host), user, password, &self.cancel)?;
            return Ok(LoginPlace::Helper);
        }
        let entries = entries_mut(&mut config, path)?;
        entries.retain(|key, _| !same_host(key, host));
        // podman writes Docker Hub's plain name into its own files.
        let podman = path.file_name().is_some_and(|name| name == "auth.json");
        let key = if podman && host == HUB { HUB.to_owned() } else { server(host) };
        entries.insert(key, json!({ "auth": Credentials::encode(user, password) }));
        write(path, &config)?;
        Ok(LoginPlace::File(path.to_owned()))
    }

    /// Forgets what [`CredentialStore::login`] keeps for a registry.
    ///
    /// # Errors
    /// As of login.
    pub fn logout(&self, host: &str) -> Result<Logout, RegistryError> {
        let path = self.written()?;
        let mut done = Logout::default();
        if let Some(mut config) = read(path)? {
            if let Some(helper) = self.helper_of(&config, host, path)?
                && helper.erase(&server(host), &self.cancel)?
            {
                done.removed += 1;
            }
            if config.contains_key("auths") {
                let entries = entries_mut(&mut config, path)?;
                let before = entries.len();
                entries.retain(|key, _| !same_host(key, host));
                if entries.len() < before {
                    write(path, &config)?;
                    done.removed += 1;
                }
            }
        }
        for file in self.files.iter().filter(|file| *file != path) {
            let knows = |config: &Map<String, Value>| {
                let entries = config.get("auths").and_then(Value::as_object);
                entries.is_some_and(|entries| entries.keys().any(|key| same_host(key, host)))
            };
            if read(file)?.as_ref().is_some_and(knows) {
                done.left.push(file.clone());
            }
        }
        Ok(done)
    }
}

fn entries_mut<'a>(
    config: &'a mut Map<String, Value>,
    path: &Path,
) -> Result<&'a mut Map<String, Value>, RegistryError> {
    let entries = config.entry("auths").or_insert_with(|| json!({}));
    entries.as_object_mut().ok_or_else(|| unusable(path, "its `auths` is no JSON object"))
}

/// Replaces the file as a whole, which only its owner can read. A symbolic link stays one.
fn write(path: &Path, config: &Map<String, Value>) -> Result<(), RegistryError> {
    let written = || -> io::Result<()> {
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory)?;
        }
        let mut new = path.clone().into_os_string();
        new.push(format!(".{}.new", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let text = format!("{}\n", serde_json::to_string_pretty(config)?);
        let done = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_data())
            .and_then(|()| fs::rename(&new, &path));
        if done.is_err() {
            let _ = fs::remove_file(&new);
        }
        done
    };
    written().map_err(|error| unusable(path, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::cancel::Cancel;
    use crate::options::Environment;

    fn store(home: &Path) -> CredentialStore {
        let home = home.to_str().unwrap().to_owned();
        let get = move |name: &str| (name == "HOME").then(|| home.clone());
        CredentialStore::new(&Environment::new(get), Cancel::new())
    }

    #[test]
    fn what_login_writes_is_found_and_logout_removes_it_alone() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".docker/config.json");
        let store = store(home.path());
        assert_eq!(store.logout("r.example").unwrap(), Logout::default());
        assert!(!file.exists());
        assert_eq!(store.login("r.example", "u", "p:w").unwrap(), LoginPlace::File(file.clone()));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::write(
            &file,
            fs::read_to_string(&file).unwrap().replacen('{', "{\"HttpHeaders\":{\"a\":\"b\"},", 1),
        )
        .unwrap();
        store.login("docker.io", "hub", "pw").unwrap();
        store.login("r.example", "u2", "p2").unwrap();
        let basic = |user: &str, password: &str| {
            Some(Credentials::Basic { user: user.into(), password: password.into() })
        };
        assert_eq!(store.find("r.example", "a").unwrap(), basic("u2", "p2"));
        assert_eq!(store.find("docker.io", "library/a").unwrap(), basic("hub", "pw"));
        assert!(fs::read_to_string(&file).unwrap().contains("https://index.docker.io/v1/"));
        assert_eq!(store.logout("docker.io").unwrap().removed, 1);
        assert_eq!(store.find("docker.io", "library/a").unwrap(), None);
        assert_eq!(store.find("r.example", "a").unwrap(), basic("u2", "p2"));
        assert!(fs::read_to_string(&file).unwrap().contains("HttpHeaders"));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_symbolic_link_is_followed_and_other_places_are_named() {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path());
        fs::create_dir_all(home.path().join(".docker")).unwrap();
        fs::create_dir_all(home.path().join(".config/containers")).unwrap();
        let target = home.path().join("target.json");
        fs::write(&target, "{}").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&target, home.path().join(".docker/config.json")).unwrap();
        store.login("r.example", "u", "p").unwrap();
        assert!(home.path().join(".docker/config.json").is_symlink());
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o600);
        let other = home.path().join(".config/containers/auth.json");
        fs::write(&other, "{\"auths\":{\"r.example\":{\"auth\":\"dTpw\"}}}").unwrap();
        assert_eq!(store.logout("r.example").unwrap(), Logout { removed: 1, left: vec![other] });
    }
}
