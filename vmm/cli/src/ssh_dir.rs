//! The directory of `--ssh-dir`: keys of one machine alone, and what ssh has to be told of it.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nelly_disk::NewFile;
use nelly_seed::{KeyPair, UserName};
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

/// How ssh logs in to a machine.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    /// What the machine is called where one says `ssh`: a host name, or the name of a sandbox.
    pub(crate) host: String,
    /// The name by which ssh knows the machine's own key. It is one that a host can have.
    pub(crate) alias: String,
    /// As whom, if that is known.
    pub(crate) user: Option<UserName>,
    /// Where the guest's sshd is reached, if it is.
    pub(crate) address: Option<SocketAddr>,
}

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
    /// The directory or a key cannot be read or made, others may write to the directory, it has
    /// files of something else, or its path cannot stand in a configuration of ssh.
    pub(crate) fn open(path: &Path, dry_run: bool) -> Result<Self> {
        let failed = || format!("--ssh-dir: cannot use {}", path.display());
        // Without a slash at its end, so that a symbolic link is seen as one.
        let path: PathBuf = std::path::absolute(path).with_context(failed)?.components().collect();
        quoted(&path)?;
        if !dry_run {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(failed);
                }
                _ => {}
            }
        }
        if !dry_run || std::fs::symlink_metadata(&path).is_ok() {
            check_ours(&path)?;
        }
        let pair = |name: &str, comment: &str| {
            pair(&path.join(name), comment, dry_run).with_context(|| format!("--ssh-dir: {name}"))
        };
        // The host's key comes first: by it a directory is known as one of ours.
        let host = pair(HOST, "nelly machine")?;
        Ok(Self { client: pair(CLIENT, "nelly")?, host, path })
    }

    /// Reads the keys, all of which must be there.
    ///
    /// # Errors
    /// The directory or a key is missing, is another user's or damaged, or its path cannot stand in
    /// a configuration of ssh.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        quoted(path)?;
        check_ours(path)?;
        let pair = |name: &str| {
            let path = path.join(name);
            let file = files::open(&path, OpenOptions::new().read(true), Accept::Regular);
            read(file.with_context(|| format!("cannot read {}", path.display()))?, &path)
        };
        Ok(Self { client: pair(CLIENT)?, host: pair(HOST)?, path: path.to_owned() })
    }

    /// Whether nothing is left of keys that were in this directory, or not all.
    pub(crate) fn lacks_keys(path: &Path) -> bool {
        let missing = |path: &Path| {
            std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        missing(path) || missing(&path.join(CLIENT)) || missing(&path.join(HOST))
    }

    /// Whether ssh can be told of keys in this directory.
    pub(crate) fn can_be_at(path: &Path) -> bool {
        quoted(path).is_ok()
    }

    /// The directory, absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the keys, which may be in memory alone, into the directory `at`, which is made.
    ///
    /// # Errors
    /// The directory is there already, or it cannot be written.
    pub(crate) fn save(&self, at: &Path) -> Result<()> {
        let failed = || format!("cannot make the keys for ssh in {}", at.display());
        DirBuilder::new().mode(0o700).create(at).with_context(failed)?;
        for (name, pair) in [(HOST, &self.host), (CLIENT, &self.client)] {
            create(&at.join(name), pair).with_context(failed)?;
        }
        Ok(())
    }

    /// Writes what ssh reads: `ssh -F DIR/config HOST` logs in. Returns the path of that file.
    ///
    /// # Errors
    /// A file cannot be written, or the directory's path cannot stand in it.
    pub(crate) fn configure(&self, login: &Login) -> Result<PathBuf> {
        let known = format!("{} {}\n", login.alias, self.host.public().without_comment());
        replace(&self.path.join(KNOWN_HOSTS), &known)?;
        let path = self.path.join(CONFIG);
        replace(&path, &self.block(login)?)?;
        Ok(path)
    }

    /// What a configuration of ssh says of the machine. It names files that [`SshDir::configure`]
    /// writes, and lets no file of the whole host say which key is the machine's.
    ///
    /// # Errors
    /// The directory's path cannot stand in it.
    pub(crate) fn block(&self, login: &Login) -> Result<String> {
        let mut block = format!("Host {}\n", login.host);
        if let Some(user) = &login.user {
            block.push_str(&format!("    User {}\n", user.as_str()));
        }
        block.push_str(&format!(
            "    IdentityFile {}\n    IdentitiesOnly yes\n    UserKnownHostsFile {}\n    \
             GlobalKnownHostsFile /dev/null\n    HostKeyAlias {}\n    StrictHostKeyChecking yes\n    \
             UpdateHostKeys no\n",
            quoted(&self.path.join(CLIENT))?,
            quoted(&self.path.join(KNOWN_HOSTS))?,
            login.alias,
        ));
        if let Some(address) = login.address {
            block.push_str(&format!("    HostName {}\n    Port {}\n", address.ip(), address.port()));
        }
        Ok(block)
    }
}

/// Refuses a directory in which another user could put keys, and one with files that are not ours,
/// such as `~/.ssh`, whose files would be replaced.
fn check_ours(path: &Path) -> Result<()> {
    const HINT: &str = "name another one, which is made if it is not there";
    let failed = || format!("--ssh-dir: cannot use {}", path.display());
    let meta = std::fs::symlink_metadata(path).with_context(failed)?;
    if !meta.is_dir() || !is_mine(&meta) || meta.mode() & 0o022 != 0 {
        let what = "is no directory that only you can write to (a symbolic link is none)";
        return Err(Hint::error(format!("--ssh-dir: {} {what}", path.display()), HINT));
    }
    let is_empty = std::fs::read_dir(path).with_context(failed)?.next().is_none();
    if !is_empty && std::fs::symlink_metadata(path.join(HOST)).is_err() {
        let what = "has files, and none of them is a machine's key";
        return Err(Hint::error(format!("--ssh-dir: {} {what}", path.display()), HINT));
    }
    Ok(())
}

fn is_mine(meta: &Metadata) -> bool {
    meta.uid() == rustix::process::geteuid().as_raw()
}

/// The pair whose private key is in the file at `path`.
fn pair(path: &Path, comment: &str, dry_run: bool) -> Result<KeyPair> {
    let mut made = None;
    // Somebody else may make the file at the same time: then that one counts.
    for _ in 0..2 {
        match files::open(path, OpenOptions::new().read(true), Accept::Regular) {
            Ok(file) => {
                let pair = read(file, path)?;
                if !dry_run {
                    // Whoever made the pair may have been killed before the second file.
                    replace(&path.with_extension("pub"), &public_line(&pair))?;
                }
                return Ok(pair);
            }
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

/// Reads a private key that nobody else can know.
fn read(file: File, path: &Path) -> Result<KeyPair> {
    let failed = || path.display().to_string();
    let meta = file.metadata().with_context(failed)?;
    if !is_mine(&meta) || meta.mode() & 0o077 != 0 {
        return Err(Hint::error(
            format!("{} is a private key that others own or can read", path.display()),
            "remove it, and a new one is made; if it is yours, chmod 600 it",
        ));
    }
    let mut text = String::new();
    file.take(KEY_MAX).read_to_string(&mut text).with_context(failed)?;
    KeyPair::read(&text).with_context(failed)
}

fn public_line(pair: &KeyPair) -> String {
    format!("{}\n", pair.public().as_str())
}

/// Creates the two files of a pair. The private one has its name when it is whole.
fn create(path: &Path, pair: &KeyPair) -> io::Result<()> {
    let file = NewFile::private(path)?;
    file.file().write_all(pair.private().as_bytes())?;
    file.finish()?;
    replace_io(&path.with_extension("pub"), &public_line(pair))
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
    // What a killed process with this number left; an error is the next line's, too.
    let _ = std::fs::remove_file(&part);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(part, path)
}

/// A path as a value in a configuration of ssh: `%` begins what ssh replaces, and so does `${`,
/// which cannot be written otherwise.
fn quoted(path: &Path) -> Result<String> {
    let plain = |text: &&str| !text.contains(|c: char| c == '"' || c == '\\' || c.is_control());
    let text = path.to_str().filter(plain).filter(|text| !text.contains("${"));
    let refused = || {
        Hint::error(
            format!("--ssh-dir: ssh cannot be told of {}", path.display()),
            "name a directory whose path has no quotation marks, backslashes, control characters and no ${",
        )
    };
    Ok(format!("\"{}\"", text.ok_or_else(refused)?.replace('%', "%%")))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn keys_are_made_once_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a 100% key");
        SshDir::open(&path, true).unwrap();
        assert!(!path.exists(), "a dry run makes nothing");
        let first = SshDir::open(&path, false).unwrap();
        std::fs::remove_file(path.join("id_ed25519.pub")).unwrap();
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
        let login = Login {
            host: "web".to_owned(),
            alias: "web".to_owned(),
            user: Some(UserName::new("ada").unwrap()),
            address: Some("127.0.0.1:2222".parse().unwrap()),
        };
        let config = first.configure(&login).unwrap();
        assert_eq!(first.configure(&login).unwrap(), config);
        let read = SshDir::read(&path).unwrap();
        assert_eq!((&read.client, &read.host, read.path()), (&first.client, &first.host, first.path()));
        let copy = directory.path().join("copy");
        read.save(&copy).unwrap();
        assert_eq!(SshDir::read(&copy).unwrap().host, first.host);
        assert!(read.save(&copy).is_err(), "keys that are there stay");
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
        // One with other files, such as ~/.ssh, stays as it is.
        std::fs::write(directory.path().join(CONFIG), "mine").unwrap();
        let error = SshDir::open(directory.path(), false).unwrap_err().to_string();
        assert!(error.contains("none of them is a machine's key"), "{error}");
        let names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [CONFIG]);
        // Keys that others know are none.
        let host = directory.path().join(HOST);
        std::fs::write(&host, "no key").unwrap();
        std::fs::set_permissions(&host, Permissions::from_mode(0o644)).unwrap();
        let error = format!("{:#}", SshDir::open(directory.path(), false).unwrap_err());
        assert!(error.contains(HOST) && error.contains("others own or can read"), "{error}");
        std::fs::set_permissions(&host, Permissions::from_mode(0o600)).unwrap();
        let error = format!("{:#}", SshDir::open(directory.path(), false).unwrap_err());
        assert!(error.contains(HOST) && error.contains("no private key"), "{error}");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        let error = SshDir::open(&link, true).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        assert!(SshDir::open(Path::new("/a\"b"), true).is_err());
        for path in ["/a\nProxyCommand x", "/a${HOME}", "/a\\b"] {
            assert!(!SshDir::can_be_at(Path::new(path)), "{path:?}");
        }
    }
}
