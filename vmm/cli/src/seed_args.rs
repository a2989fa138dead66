//! The flags of a seed: what cloud-init in a guest is told.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use nelly_seed::{
    Growth, GuestFile, HostName, PackageName, Password, PublicKey, Salt, SeedError, Settings, TEXT_MAX,
    Texts, UserName,
};
use nelly_vmm::sys::files::{self, Accept};

use crate::fail::{OfFlag as _, Usage};
use crate::ssh_dir::SshDir;

/// The heading of these flags in the help.
const HEADING: &str = "What cloud-init in the guest is told";

/// The names of these flags for clap: all fields of [`SeedArgs`].
pub(crate) const SEED_FLAGS: [&str; 15] = [
    "user",
    "password_file",
    "password_hash",
    "salt",
    "no_ssh_password",
    "ssh_key",
    "ssh_dir",
    "hostname",
    "write_file",
    "package",
    "runcmd",
    "no_grow",
    "user_data",
    "meta_data",
    "network_config",
];

/// Flags of `disk seed` and `boot`.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = HEADING)]
pub(crate) struct SeedArgs {
    /// Make this user, with sudo [default: password and keys are for the image's own user, such as
    /// debian or ubuntu]
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// File whose only line is the user's password; it is hashed here. Without a key, ssh takes it,
    /// too
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) password_file: Option<PathBuf>,
    /// The user's password as crypt(3) hashes it: $6$SALT$HASH. Others on this host can see it in
    /// the list of processes while nelly starts
    #[arg(long, value_name = "HASH", conflicts_with = "password_file")]
    pub(crate) password_hash: Option<String>,
    /// Salt for --password-file [default: one of this host's own]
    #[arg(long, value_name = "SALT", requires = "password_file")]
    pub(crate) salt: Option<String>,
    /// The password is for the console alone: ssh does not take it, also where there is no key
    #[arg(long)]
    pub(crate) no_ssh_password: bool,
    /// File of public keys that may log in, such as ~/.ssh/id_ed25519.pub
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) ssh_key: Vec<PathBuf>,
    /// Directory for keys of this machine alone, which is made with them if it is not there: one
    /// for ssh to log in with, one by which ssh knows the machine
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath, requires = "user")]
    pub(crate) ssh_dir: Option<PathBuf>,
    /// Host name of the guest
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Write this host's FILE to PATH in the guest, with its permissions, owned by root
    #[arg(long, value_name = "PATH=FILE")]
    pub(crate) write_file: Vec<String>,
    /// Install a package
    #[arg(long, value_name = "NAME")]
    pub(crate) package: Vec<String>,
    /// Run a line by the guest's shell as root, at the end of its first start
    #[arg(long, value_name = "LINE")]
    pub(crate) runcmd: Vec<String>,
    /// Leave root's partition and file system as large as they are
    #[arg(long)]
    pub(crate) no_grow: bool,
    /// User data as it is, instead of the flags above
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) user_data: Option<PathBuf>,
    /// Metadata as it is; its instance-id is then yours to change
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) meta_data: Option<PathBuf>,
    /// Configuration of the network as it is
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) network_config: Option<PathBuf>,
    /// Keys that may log in, which no flag says.
    #[arg(skip)]
    pub(crate) keys: Vec<PublicKey>,
}

/// What the flags say.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What a seed is made of.
    pub(crate) settings: Settings,
    /// Texts that take the place of settings.
    pub(crate) texts: Texts,
    /// The machine's own keys.
    pub(crate) ssh: Option<SshDir>,
}

impl SeedArgs {
    /// A flag that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let flags = [
            (self.user.is_some(), "--user"),
            (self.password_file.is_some(), "--password-file"),
            (self.password_hash.is_some(), "--password-hash"),
            (self.no_ssh_password, "--no-ssh-password"),
            (!self.ssh_key.is_empty(), "--ssh-key"),
            (self.ssh_dir.is_some(), "--ssh-dir"),
            (self.hostname.is_some(), "--hostname"),
            (!self.write_file.is_empty(), "--write-file"),
            (!self.package.is_empty(), "--package"),
            (!self.runcmd.is_empty(), "--runcmd"),
            (self.no_grow, "--no-grow"),
            (self.user_data.is_some(), "--user-data"),
            (self.meta_data.is_some(), "--meta-data"),
            (self.network_config.is_some(), "--network-config"),
        ];
        flags.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }

    /// Reads what the flags name. Keys that are not there yet are made in the directory of
    /// `--ssh-dir`, unless it is a `dry_run`.
    ///
    /// # Errors
    /// A value that is wrong, or a file that cannot be read or is none of its kind; the error names
    /// the flag.
    pub(crate) fn read(&self, dry_run: bool) -> Result<Asked> {
        let mut settings = Settings {
            user: self.user.as_deref().map(UserName::new).transpose().of_flag("--user")?,
            host_name: self.hostname.as_deref().map(HostName::new).transpose().of_flag("--hostname")?,
            packages: self
                .package
                .iter()
                .map(|name| PackageName::new(name))
                .collect::<Result<_, _>>()
                .of_flag("--package")?,
            commands: self.runcmd.clone(),
            no_ssh_password: self.no_ssh_password,
            keys: self.keys.clone(),
            growth: if self.no_grow { Growth::Stay } else { Growth::Grow },
            ..Settings::default()
        };
        for path in &self.ssh_key {
            let text = text("--ssh-key", path)?;
            let keys = PublicKey::lines(&text).with_context(|| format!("--ssh-key: {}", path.display()))?;
            settings.keys.extend(keys);
        }
        for text in &self.write_file {
            settings.files.push(guest_file(text)?);
        }
        let ssh = self.ssh_dir.as_deref().map(|path| SshDir::open(path, dry_run)).transpose()?;
        if let Some(ssh) = &ssh {
            settings.keys.push(ssh.client.public().clone());
            settings.host_key = Some(ssh.host.clone());
        }
        settings.password = self.password(&settings)?;
        let texts = Texts {
            user_data: given("--user-data", self.user_data.as_deref(), nelly_seed::check_user_data)?,
            meta_data: given("--meta-data", self.meta_data.as_deref(), nelly_seed::check_yaml)?,
            network_config: given(
                "--network-config",
                self.network_config.as_deref(),
                nelly_seed::check_yaml,
            )?,
        };
        Ok(Asked { settings, texts, ssh })
    }

    fn password(&self, settings: &Settings) -> Result<Option<Password>> {
        if let Some(hash) = &self.password_hash {
            return Ok(Some(Password::hashed(hash).of_flag("--password-hash")?));
        }
        let Some(path) = &self.password_file else { return Ok(None) };
        let salt = match &self.salt {
            Some(salt) => Salt::new(salt).of_flag("--salt")?,
            None => own_salt(settings)?,
        };
        let text = text("--password-file", path)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let failed = || format!("--password-file: {}", path.display());
        Password::hash(line, &salt).map(Some).with_context(failed)
    }
}

/// A salt that stays the same as long as the machine does, so that its seed does: a new one would
/// be a new instance to cloud-init. It is another one on each host and for each user and machine,
/// so that no table of passwords serves for two.
fn own_salt(settings: &Settings) -> Result<Salt> {
    let mut secret = Vec::new();
    if let Some(key) = &settings.host_key {
        secret.extend_from_slice(key.private().as_bytes());
    } else if let Some(id) = machine_id() {
        // machine-id(5) asks to show a digest of it and never itself.
        secret.extend(id.as_bytes());
        secret.extend(settings.user.as_ref().map_or("", |user| user.as_str()).as_bytes());
        secret.push(0);
        secret.extend(settings.host_name.as_ref().map_or("", |name| name.as_str()).as_bytes());
    } else {
        return Err(Usage::error(
            "--password-file: this host has no /etc/machine-id to make a salt of, and a random one would make a new instance at each start: give --salt or --ssh-dir",
        ));
    }
    Ok(Salt::of(&secret))
}

/// What systemd tells this host from others by, if it has it already (machine-id(5)).
pub(crate) fn machine_id() -> Option<String> {
    let id = std::fs::read_to_string("/etc/machine-id").ok()?;
    let id = id.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// Opens a file and reads its at most 16 MiB. It may be a pipe, as of a shell's `<(...)`.
fn bytes(flag: &str, path: &Path) -> Result<(File, Vec<u8>)> {
    let failed = || format!("{flag}: cannot read {}", path.display());
    let file = files::open(path, OpenOptions::new().read(true), Accept::Text).with_context(failed)?;
    let mut bytes = Vec::new();
    (&file).take(TEXT_MAX as u64 + 1).read_to_end(&mut bytes).with_context(failed)?;
    if bytes.len() > TEXT_MAX {
        return Err(Usage::error(format!("{flag}: {} has more than 16 MiB", path.display())));
    }
    Ok((file, bytes))
}

fn text(flag: &str, path: &Path) -> Result<String> {
    String::from_utf8(bytes(flag, path)?.1)
        .map_err(|_| Usage::error(format!("{flag}: {} is no text in UTF-8", path.display())))
}

/// A file that goes into the seed as it is.
fn given(
    flag: &str,
    path: Option<&Path>,
    check: fn(&[u8]) -> Result<(), SeedError>,
) -> Result<Option<Vec<u8>>> {
    let Some(path) = path else { return Ok(None) };
    let (_, bytes) = bytes(flag, path)?;
    check(&bytes).with_context(|| format!("{flag}: {}", path.display()))?;
    Ok(Some(bytes))
}

/// The file of `--write-file PATH=FILE`. A path in a guest has no `=`, one of this host may.
fn guest_file(value: &str) -> Result<GuestFile> {
    use std::os::unix::fs::PermissionsExt as _;
    let Some((path, file)) = value.split_once('=') else {
        return Err(Usage::error(format!("--write-file {value}: is not PATH=FILE")));
    };
    let file = Path::new(file);
    let (opened, contents) = bytes("--write-file", file)?;
    let failed = || format!("--write-file: cannot read {}", file.display());
    let mode = opened.metadata().with_context(failed)?.permissions().mode();
    GuestFile::new(path, contents, mode).of_flag("--write-file")
}
