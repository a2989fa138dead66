//! The seed of `nelly boot`: a disk in memory, after all others, that cloud-init in the guest
//! reads.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use nelly_sandbox::spec::Network;
use nelly_sandbox::state::Id;
use nelly_seed::{MacAddress, PublicKey, Seed, Settings, UserName};
use nelly_vmm::config::{DiskConfig, DiskId, FileSource, MachineConfig};
use nelly_vmm::sys::anonymous;
use nelly_vmm::sys::files::{self, Accept};

use crate::boot_disk::DiskFlag;
use crate::out;
use crate::seed_args::{Asked, SeedArgs, machine_id};
use crate::ssh::is_of_ssh;
use crate::ssh_dir::{Login, SshDir};

/// The files of public keys whose private ones ssh tries by itself (`IdentityFile` in
/// ssh_config(5)), in its order.
const KEYS_OF_SSH: &[&str] =
    &["id_rsa.pub", "id_ecdsa.pub", "id_ecdsa_sk.pub", "id_ed25519.pub", "id_ed25519_sk.pub"];

/// What the flags say. Where they say nothing of passwords and keys, the keys that ssh of this user
/// tries are let in: whoever starts a machine expects that `ssh` leads into it.
///
/// `own` are keys of the machine that no flag asked for: they are let in, too.
///
/// # Errors
/// See [`SeedArgs::read`].
pub(crate) fn read(args: &SeedArgs, network: &Network, own: Option<&SshDir>, dry_run: bool) -> Result<Asked> {
    let mut asked = args.read(dry_run)?;
    let settings = &mut asked.settings;
    if let Some(own) = own {
        settings.own_key = Some(own.client.public().clone());
        settings.host_key = Some(own.host.clone());
    }
    if asked.texts.user_data.is_none() && settings.keys.is_empty() && settings.password.is_none() {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        settings.keys = home.map_or_else(Vec::new, |home| usual_keys(&Path::new(&home).join(".ssh")));
        if settings.keys.is_empty() && own.is_none() {
            out::message(
                "nobody can log in to the guest unless its image says so: ~/.ssh has no public key, and none of \
                 --ssh-key, --ssh-dir and --password-file is given",
            );
        }
    }
    let by_key = !settings.keys.is_empty() || own.is_some();
    if network.is_none() && by_key && settings.password.is_none() {
        out::message(
            "only ssh keys can log in, and the machine has no network: add -p 2222:22, or --password-file for its console",
        );
    }
    Ok(asked)
}

/// The file of the first of this user's keys that ssh tries by itself.
pub(crate) fn first_usual_key() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").filter(|home| !home.is_empty())?);
    KEYS_OF_SSH.iter().map(|name| home.join(".ssh").join(name)).find(|path| path.is_file())
}

/// The keys in a directory of ssh. What is no key there is none of this machine's concern.
fn usual_keys(directory: &Path) -> Vec<PublicKey> {
    let mut keys = Vec::new();
    for name in KEYS_OF_SSH {
        let path = directory.join(name);
        let opened = files::open(&path, File::options().read(true), Accept::Regular);
        let Ok(text) = opened.and_then(std::io::read_to_string) else { continue };
        match PublicKey::lines(&text) {
            Ok(more) => {
                out::message(format_args!(
                    "the key in {} may log in to the guest; --ssh-key names others, --no-seed none",
                    path.display()
                ));
                keys.extend(more.iter().map(PublicKey::bare));
            }
            Err(error) => out::message(format_args!("{} is left out: {error}", path.display())),
        }
    }
    keys
}

/// What a machine's hardware addresses and its instance come of. They are the same as long as its
/// first disk that is kept is: cloud-init sets networks up once, by address. Another host's machine
/// with an equal path has others, since both may be on one network.
///
/// # Errors
/// The path of that disk cannot be found out, or there are no random bytes.
pub(crate) fn identity<'a>(mut disks: impl Iterator<Item = &'a DiskFlag>) -> Result<String> {
    let Some(path) = disks.find_map(DiskFlag::kept) else {
        return Ok(Id::random().context("cannot create a random id")?.to_string());
    };
    // An overlay may not be there yet, but its directory is.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let directory =
        directory.canonicalize().with_context(|| format!("cannot find {}", directory.display()))?;
    let name = path.file_name().unwrap_or_default();
    let host = machine_id().unwrap_or_default();
    Ok(format!("disk {host} {}", directory.join(name).display()))
}

/// Adds the seed to a machine as its last disk, so that no other one changes its name. Its networks
/// are in `config` already: cloud-init is told of each by its address. With `dry_run` nothing is
/// made.
///
/// # Errors
/// What was asked for does not go together, or there is no memory for it.
pub(crate) fn attach(
    asked: Asked,
    network: &Network,
    dry_run: bool,
    config: &mut MachineConfig,
    files: &mut Vec<OwnedFd>,
) -> Result<()> {
    let Asked { mut settings, texts, ssh } = asked;
    if texts.network_config.is_none() {
        let addresses = config.networks.iter().map(|network| MacAddress::new(network.mac.bytes()));
        settings.interfaces = addresses.collect();
    }
    let seed = Seed::new(&settings, texts)?;
    let source = if dry_run { FileSource::Fd(0) } else { memory_file(&seed.disk()?, files)? };
    let id = DiskId::new("seed").map_err(|reason| anyhow!("the seed's disk: {reason}"))?;
    config.disks.push(DiskConfig::new(id, source, true));
    if let (Some(ssh), Some(user), false) = (ssh, &settings.user, dry_run) {
        tell_ssh(&ssh, &settings, user, network)?;
    }
    Ok(())
}

/// Writes what ssh reads into the directory of the machine's keys, and says how to use it.
///
/// # Errors
/// A file cannot be written.
fn tell_ssh(ssh: &SshDir, settings: &Settings, user: &UserName, network: &Network) -> Result<()> {
    let name = settings.host_name.as_ref().map_or("machine", |name| name.as_str());
    let port = port_of_ssh(network);
    let address = port.map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    let path = ssh.configure(&Login {
        host: name.to_owned(),
        alias: name.to_owned(),
        user: Some(user.clone()),
        address,
    })?;
    let path = path.display();
    match port {
        Some(_) => out::message(format_args!("ssh -F {path} {name} logs in, once the guest is up")),
        None => out::message(format_args!(
            "ssh -F {path} -o HostName=ADDRESS -o Port=PORT {name} logs in, if the guest's ssh can be reached; -p 2222:22 would be a way"
        )),
    }
    Ok(())
}

/// The port on loopback that leads to the guest's sshd.
fn port_of_ssh(network: &Network) -> Option<u16> {
    let Network::User(user) = network else { return None };
    let leads = |publish: &&nelly_net::config::Publish| {
        let ip = publish.bind.ip();
        let here = ip.is_loopback() || ip.is_unspecified();
        is_of_ssh(publish) && here && ip.is_ipv4() && publish.bind.port() != 0
    };
    user.publish.iter().find(leads).map(|publish| publish.bind.port())
}

/// A file in memory that the monitor, which this process becomes, inherits.
fn memory_file(bytes: &[u8], files: &mut Vec<OwnedFd>) -> Result<FileSource> {
    let failed = "cannot make the seed in memory";
    let mut file = anonymous::memory_file("seed").context(failed)?;
    // What is zero behind the last byte takes no memory.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    file.write_all(&bytes[..end]).context(failed)?;
    file.set_len(bytes.len() as u64).context(failed)?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).context(failed)?;
    let number = file.as_raw_fd().cast_unsigned();
    files.push(file.into());
    Ok(FileSource::Fd(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nelly_seed::KeyPair;

    #[test]
    fn keys_are_those_that_ssh_tries() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        assert!(usual_keys(directory.path()).is_empty());
        let key = KeyPair::of(&[1; 32], "me").public().as_str().to_owned();
        write("id_ed25519.pub", &key);
        write("id_rsa.pub", "no key");
        write("other.pub", &key);
        write("id_ed25519", "a private one");
        // Without the comment, which is nobody's business in there.
        let keys = usual_keys(directory.path());
        assert_eq!(keys.iter().map(PublicKey::as_str).collect::<Vec<_>>(), [key.trim_end_matches(" me")]);
    }
}
