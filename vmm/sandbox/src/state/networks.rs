//! Networks of machines, `$XDG_DATA_HOME/nelly/networks`: a file each, replaced by renaming, so a
//! reader needs no lock.
//!
//! ```text
//! version     the layout of this directory
//! lock        held (flock) by whoever makes or removes a network, gives an address, or joins, and
//!             by a switch that is about to end
//! NAME.json   a network
//! NAME.switch held (flock) by the switch of the network while it runs
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nelly_image::trusted::{TrustError, TrustedDir};
use nelly_net::config::{Prefix4, Prefix6};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::directory::replace;
use super::{Id, StateError, Timestamp};

/// The contents of the `version` file.
const VERSION: &str = "nelly-networks 1\n";
/// The `schema` of each file.
const SCHEMA: u32 = 1;
/// A larger file is not one of ours.
const MOST: u64 = 1 << 20;
/// How long a command waits for the lock.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it asks.
const ASK: Duration = Duration::from_millis(2);
/// What the name of a network's file ends with.
const SUFFIX: &str = ".json";
/// What the name of the file ends with that its switch holds.
const SWITCH: &str = ".switch";
/// How long a switch that has said that it ends may take to.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// 1.
    pub schema: u32,
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its IPv4 prefix.
    pub subnet: Prefix4,
    /// Its IPv6 prefix, a /64.
    pub subnet6: Prefix6,
    /// There is no way out of it.
    #[serde(default)]
    pub isolated: bool,
    /// Words that a user gave it, for filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The directory of its switch's socket, once there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_dir: Option<PathBuf>,
}

impl NetworkRecord {
    /// A network that is new.
    #[must_use]
    pub fn new(id: Id, name: String, subnet: Prefix4, subnet6: Prefix6, isolated: bool) -> Self {
        let (created, labels) = (Timestamp::now(), BTreeMap::new());
        Self { schema: SCHEMA, id, name, created, subnet, subnet6, isolated, labels, runtime_dir: None }
    }
}

/// Why a network cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// A file or the directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// It is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A file is not what it should be.
    #[error("cannot use {}; `nelly network rm` removes the damaged network", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// There is no such network.
    #[error("there is no network {0:?}; `nelly network ls` lists them, `nelly network create {0}` makes it")]
    Missing(String),
    /// There is such a network.
    #[error("there is a network {0} already")]
    Taken(String),
    /// Somebody holds the lock.
    #[error("{} has been locked for {} seconds by another nelly command, which may be stopped: continue or end it", .0.display(), PATIENCE.as_secs())]
    Stuck(PathBuf),
}

/// The directory of networks.
#[derive(Debug)]
pub struct Networks {
    dir: TrustedDir,
}

/// The lock of all networks.
#[derive(Debug)]
pub struct NetworksLock(#[expect(dead_code, reason = "the lock ends when it is closed")] File);

fn io_error(action: &'static str, path: &Path, source: impl Into<io::Error>) -> StateError {
    StateError::Io { action, path: path.to_owned(), source: source.into() }
}

impl Networks {
    /// Opens the directory at `path`; `None` if there is none.
    ///
    /// # Errors
    /// It is of a newer version, or belongs to another user or is writable by others.
    pub fn open(path: &Path) -> Result<Option<Self>, NetworksError> {
        let Some(dir) = TrustedDir::open(path)? else { return Ok(None) };
        Ok(is_known(&dir)?.then_some(Self { dir }))
    }

    /// Opens the directory at `path`, and makes it if there is none.
    ///
    /// # Errors
    /// As [`Networks::open`].
    pub fn make(path: &Path) -> Result<Self, NetworksError> {
        let made = Self { dir: TrustedDir::make(path)? };
        if !is_known(&made.dir)? {
            let _lock = made.lock()?;
            if !is_known(&made.dir)? {
                replace(&made.dir, "version", VERSION.as_bytes())?;
            }
        }
        Ok(made)
    }

    /// The file of the lock, opened once more: whoever is given it may lock for itself.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn lock_file(&self) -> Result<File, NetworksError> {
        Ok(self.dir.open_or_make("lock")?)
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// [`NetworksError::Stuck`].
    pub fn lock(&self) -> Result<NetworksLock, NetworksError> {
        let (file, path) = (self.lock_file()?, self.dir.path().join("lock"));
        let start = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(NetworksLock(file)),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(io_error("lock", &path, error).into()),
            }
            if start.elapsed() > PATIENCE {
                return Err(NetworksError::Stuck(path));
            }
            std::thread::sleep(ASK);
        }
    }

    /// The lock that the switch of a network holds while it runs, for one that is about to start;
    /// `None`: one runs. One that is about to end is waited for, though not for long.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn switch_lock(&self, _lock: &NetworksLock, name: &str) -> Result<Option<File>, NetworksError> {
        let name = format!("{name}{SWITCH}");
        let (file, path) = (self.dir.open_or_make(&name)?, self.dir.path().join(&name));
        let start = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(file)),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(io_error("lock", &path, error).into()),
            }
            if start.elapsed() > ENDS_WITHIN {
                return Ok(None);
            }
            std::thread::sleep(ASK);
        }
    }

    /// The names of all networks, in order.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, NetworksError> {
        let names = self.dir.names().map_err(|source| io_error("list", self.dir.path(), source))?;
        let mut names: Vec<String> =
            names.iter().filter_map(|name| Some(name.to_str()?.strip_suffix(SUFFIX)?.to_owned())).collect();
        names.sort();
        Ok(names)
    }

    /// The network with this name.
    ///
    /// # Errors
    /// [`NetworksError::Missing`], [`NetworksError::Damaged`].
    pub fn find(&self, name: &str) -> Result<NetworkRecord, NetworksError> {
        let missing = || NetworksError::Missing(name.to_owned());
        if name.contains('/') {
            return Err(missing());
        }
        let file = format!("{name}{SUFFIX}");
        let path = self.dir.path().join(&file);
        let mut text = Vec::new();
        let Some(found) = self.dir.read(&file)? else { return Err(missing()) };
        found.take(MOST).read_to_end(&mut text).map_err(|source| io_error("read", &path, source))?;
        let record: NetworkRecord = serde_json::from_slice(&text)
            .map_err(|source| NetworksError::Damaged { path: path.clone(), source })?;
        if record.schema != SCHEMA {
            return Err(StateError::Schema { path, found: record.schema.into() }.into());
        }
        Ok(record)
    }

    /// All networks that can be read, in the order of their names.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn list(&self) -> Result<Vec<NetworkRecord>, NetworksError> {
        Ok(self.names()?.iter().filter_map(|name| self.find(name).ok()).collect())
    }

    /// Makes a network.
    ///
    /// # Errors
    /// [`NetworksError::Taken`].
    pub fn create(&self, lock: &NetworksLock, record: &NetworkRecord) -> Result<(), NetworksError> {
        match self.find(&record.name) {
            Err(NetworksError::Missing(_)) => self.write(lock, record),
            _ => Err(NetworksError::Taken(record.name.clone())),
        }
    }

    /// Writes what has become of a network.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, _lock: &NetworksLock, record: &NetworkRecord) -> Result<(), NetworksError> {
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other);
        let text = text.map_err(|source| io_error("write", self.dir.path(), source))?;
        Ok(replace(&self.dir, &format!("{}{SUFFIX}", record.name), &text)?)
    }

    /// Removes a network's file.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self, _lock: &NetworksLock, name: &str) -> Result<(), NetworksError> {
        // That of one that is killed only now is forgotten with it.
        self.dir.remove(format!("{name}{SWITCH}"))?;
        Ok(self.dir.remove(format!("{name}{SUFFIX}"))?)
    }
}

/// Whether the directory has a version file, which is of this version.
fn is_known(dir: &TrustedDir) -> Result<bool, NetworksError> {
    let Some(file) = dir.read("version")? else { return Ok(false) };
    let path = dir.path().join("version");
    let mut found = Vec::new();
    file.take(64).read_to_end(&mut found).map_err(|source| io_error("read", &path, source))?;
    if found != VERSION.as_bytes() {
        let found = String::from_utf8_lossy(&found).trim_end().to_owned();
        return Err(StateError::Version { path, found }.into());
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_made_once_and_read_as_they_were_written() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("networks");
        assert!(Networks::open(&path).unwrap().is_none());
        let networks = Networks::make(&path).unwrap();
        let (subnet, subnet6) = ("10.89.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap());
        let record = NetworkRecord::new(Id::random().unwrap(), "dev".into(), subnet, subnet6, true);
        let lock = networks.lock().unwrap();
        networks.create(&lock, &record).unwrap();
        assert!(matches!(networks.create(&lock, &record), Err(NetworksError::Taken(_))));
        let again = Networks::open(&path).unwrap().unwrap();
        assert_eq!(again.find("dev").unwrap(), record);
        assert_eq!(again.names().unwrap(), ["dev"]);
        for missing in ["de", "../dev", "dev.json", ""] {
            assert!(matches!(again.find(missing), Err(NetworksError::Missing(_))), "{missing}");
        }
        std::fs::write(path.join("bad.json"), "{}").unwrap();
        assert!(matches!(again.find("bad"), Err(NetworksError::Damaged { .. })));
        assert_eq!(again.list().unwrap(), [record]);
        assert!(matches!(
            again.create(&lock, &NetworkRecord { name: "bad".into(), ..again.find("dev").unwrap() }),
            Err(NetworksError::Taken(_))
        ));
        networks.remove(&lock, "dev").unwrap();
        networks.remove(&lock, "dev").unwrap();
        drop(lock);
        drop(networks.lock().unwrap());
        std::fs::write(path.join("version"), "nelly-networks 2\n").unwrap();
        assert!(Networks::open(&path).unwrap_err().to_string().contains("nelly-networks 2"));
    }
}
