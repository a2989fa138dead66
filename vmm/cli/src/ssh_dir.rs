//! The directory of `--ssh-dir`: keys of one machine alone, and what ssh has to be told of it.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nelly_disk::NewFile;
use nelly_seed::KeyPair;
use nelly_vmm::sys::files::{self, Accept};
use nelly_vmm::sys::random;

use crate::fail::Hint;

/// The key that ssh logs in with. The public one is in the file with `.pub` behind.
const CLIENT: &str = "id_ed25519";
/// The key that ssh knows the machine by, as sshd calls it.
const HOST: &str = "ssh_host_ed25519_key";
/// The public keys of hosts, of which there is one.
const KNOWN_HOSTS: &str = "known_hosts";
/// What `ssh -F` reads.
const CONFIG: &str = "config";
/// Bytes of a private key's file at most.
const KEY_MAX: u64 = 16 << 10;

/// The keys of a machine.
#[derive(Debug)]
pub(crate) struct SshDir {
    path: PathBuf,
    /// The key to log in with.
    pub(crate) client: KeyPair,
    /// The machine's own key.
    pub(crate) host: KeyPair,
}

impl SshDir {
    /// Reads the keys, and makes those that are not there. In a `dry_run` the latter are made in
    /// memory alone.
    ///
    /// # Errors
    /// The directory or a key cannot be read or made, or others may write to the directory.
    pub(crate) fn open(path: &Path, dry_run: bool) -> Result<Self> {
        let failed = || format!("--ssh-dir: cannot use {}", path.display());
        if !dry_run {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(failed);
                }
                _ => check_owner(path)?,
            }
        }
        let path = std::path::absolute(path).with_context(failed)?;
        let pair = |name: &str, comment: &str| {
            pair(&path.join(name), comment, dry_run).with_context(|| format!("--ssh-dir: {name}"))
        };
        Ok(Self { client: pair(CLIENT, "nelly")?, host: pair(HOST, "nelly machine")?, path })
    }

    /// Writes what ssh reads: `ssh -F DIR/config NAME` logs in as `user` by `port` of this host, if
    /// the guest's ssh has one. Returns the path of that file.
    ///
    /// # Errors
    /// A file cannot be written, or the directory's path cannot stand in it.
    pub(crate) fn configure(&self, name: &str, user: &str, port: Option<u16>) -> Result<PathBuf> {
        let known = format!("{name} {}\n", self.host.public().without_comment());
        replace(&self.path.join(KNOWN_HOSTS), &known)?;
        let mut config = format!(
            "Host {name}\n    User {user}\n    IdentityFile {}\n    IdentitiesOnly yes\n    \
             UserKnownHostsFile {}\n    HostKeyAlias {name}\n    StrictHostKeyChecking yes\n",
            quoted(&self.path.join(CLIENT))?,
            quoted(&self.path.join(KNOWN_HOSTS))?,
        );
        if let Some(port) = port {
            config.push_str(&format!("    HostName 127.0.0.1\n    Port {port}\n"));
        }
        let path = self.path.join(CONFIG);
        replace(&path, &config)?;
        Ok(path)
    }
}

/// Refuses a directory in which another user could put keys.
fn check_owner(path: &Path) -> Result<()> {
    let failed = || format!("--ssh-dir: cannot use {}", path.display());
    let meta = std::fs::metadata(path).with_context(failed)?;
    let mine = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_dir() || !mine || meta.mode() & 0o022 != 0 {
        return Err(Hint::error(
            format!("--ssh-dir: {} is no directory that only you can write to", path.display()),
            "name another one, which is made if it is not there; or chmod 700 it",
        ));
    }
    Ok(())
}

/// The pair whose private key is in the file at `path`.
fn pair(path: &Path, comment: &str, dry_run: bool) -> Result<KeyPair> {
    let mut made = None;
    // Somebody else may make the file at the same time: then that one counts.
    for _ in 0..2 {
        match files::open(path, OpenOptions::new().read(true), Accept::Regular) {
            Ok(file) => return read(file).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        let mut secret = [0; 32];
        random(&mut secret).context("cannot get random bytes for a key")?;
        let pair = KeyPair::of(&secret, comment);
        if dry_run {
            return Ok(pair);
        }
        match create(path, &pair) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => made = Some(error),
            created => {
                return created.map(|()| pair).with_context(|| format!("cannot create {}", path.display()));
            }
        }
    }
    let error = made.expect("the second round ends otherwise, or like the first one");
    Err(error).with_context(|| format!("cannot create {}", path.display()))
}

fn read(file: File) -> Result<KeyPair> {
    let mut text = String::new();
    file.take(KEY_MAX).read_to_string(&mut text)?;
    Ok(KeyPair::read(&text)?)
}

/// Creates the two files of a pair. The private one, which comes last, has its name when it is
/// whole.
fn create(path: &Path, pair: &KeyPair) -> io::Result<()> {
    let file = NewFile::begin(path)?;
    file.file().set_permissions(Permissions::from_mode(0o600))?;
    file.file().write_all(pair.private().as_bytes())?;
    file.finish()?;
    let public = path.with_extension("pub");
    replace_io(&public, &format!("{}\n", pair.public().as_str()))
}

/// Puts a file in the place of another one, if they differ.
fn replace(path: &Path, text: &str) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    replace_io(path, text).with_context(|| format!("--ssh-dir: cannot write {}", path.display()))
}

fn replace_io(path: &Path, text: &str) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}", std::process::id()));
    let part = PathBuf::from(part);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(part, path)
}

/// A path as a value in a configuration of ssh: `%` begins what ssh replaces.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(|c: char| c == '"' || c == '\\' || c.is_control()));
    let refused = || {
        Hint::error(
            format!("--ssh-dir: ssh cannot be told of {}", path.display()),
            "name a directory whose path has no quotation marks, backslashes and control characters",
        )
    };
    Ok(format!("\"{}\"", text.ok_or_else(refused)?.replace('%', "%%")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn keys_are_made_once_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a 100% key");
        SshDir::open(&path, true).unwrap();
        assert!(!path.exists(), "a dry run makes nothing");
        let first = SshDir::open(&path, false).unwrap();
        let again = SshDir::open(&path, false).unwrap();
        assert_eq!((&first.client, &first.host), (&again.client, &again.host));
        assert_ne!(first.client, first.host);
        let other = SshDir::open(&directory.path().join("other"), false).unwrap();
        assert_ne!(other.client, first.client);
        for (name, mode) in [("", 0o700), (CLIENT, 0o600), (HOST, 0o600)] {
            let meta = std::fs::metadata(path.join(name)).unwrap();
            assert_eq!(meta.mode() & 0o777, mode, "{name}");
        }
        let public = std::fs::read_to_string(path.join("id_ed25519.pub")).unwrap();
        assert_eq!(public.trim_end(), first.client.public().as_str());
        // ssh itself says what it understood.
        let config = first.configure("web", "ada", Some(2222)).unwrap();
        assert_eq!(first.configure("web", "ada", Some(2222)).unwrap(), config);
        let said = Command::new("ssh").arg("-G").arg("-F").arg(&config).arg("web").output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let said = String::from_utf8(said.stdout).unwrap();
        let absolute = std::path::absolute(&path).unwrap();
        for line in [
            "user ada".to_owned(),
            "hostname 127.0.0.1".to_owned(),
            "port 2222".to_owned(),
            "stricthostkeychecking true".to_owned(),
            "hostkeyalias web".to_owned(),
            "identitiesonly yes".to_owned(),
        ] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        let identity = said.lines().find(|line| line.starts_with("identityfile ")).unwrap();
        assert!(identity.replace("%%", "%").contains(absolute.to_str().unwrap()), "{identity}");
        let known = path.join(KNOWN_HOSTS);
        let found = Command::new("ssh-keygen").args(["-F", "web", "-f"]).arg(&known).output().unwrap();
        assert!(found.status.success(), "ssh-keygen finds the host");
    }

    #[test]
    fn what_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        let error = SshDir::open(directory.path(), false).unwrap_err().to_string();
        assert!(error.contains("only you"), "{error}");
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        std::fs::write(directory.path().join(CLIENT), "no key").unwrap();
        let error = format!("{:#}", SshDir::open(directory.path(), false).unwrap_err());
        assert!(error.contains(CLIENT) && error.contains("no private key"), "{error}");
        assert!(quoted(Path::new("/a\"b")).is_err());
    }
}
