//! Networks of machines: gives a machine its addresses, joins it, and starts the switch where there
//! is none.
//!
//! Whoever joins holds the lock of all networks, from the look for a switch until the machine is a
//! port of one. A switch ends only under the same lock, so nobody joins one that is about to end.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nelly_image::trusted::{TrustError, TrustedDir};
use nelly_net::config::Prefix4;
use nelly_net::peers::{Answer, Join, MAX_REQUEST, Request, Shown};
use nelly_net::switch::READY;
use nelly_net::sys::{KEEPS_MESSAGES, QUIET, write_with_descriptors};
use nelly_net::wire::Mac;
use nelly_vmm::config::MacAddress;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::spec::network::{FIRST, Member, Network, Place};
use crate::state::networks::{NetworkRecord, Networks, NetworksError, NetworksLock};
use crate::state::{RuntimeDir, Sandboxes, StateError};

/// The name of a switch's socket in its directory.
const SOCKET: &str = "switch";
/// How long a switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most that is read of what it says, in bytes.
const MOST_WORDS: usize = 4096;
/// How often a join begins anew, because a switch ended meanwhile.
const AGAIN: usize = 5;
/// Where networks are, and where sockets go by the environment.
#[derive(Clone)]
pub struct Site<'a> {
    /// The directory of networks.
    pub networks: PathBuf,
    /// Finds a directory by the name of an environment variable.
    pub environment: &'a dyn Fn(&str) -> Option<PathBuf>,
}

impl std::fmt::Debug for Site<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("networks", &self.networks).finish_non_exhaustive()
    }
}

/// Why a machine is not on its network.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// This system has no sockets for it.
    #[error(
        "networks of machines are for Linux hosts: the Unix sockets of this system keep no messages apart over a connection \
         (SOCK_SEQPACKET), which a switch needs; a machine of its own has --net user"
    )]
    NoSockets,
    /// The directory of networks, or the network.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// The state of sandboxes.
    #[error(transparent)]
    State(#[from] StateError),
    /// A directory is not trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The address is not one of the network's machines.
    #[error(
        "{address} is not an address of a machine on network {network}, {subnet}: its first two are the gateway's and the resolver's"
    )]
    Address {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        network: String,
        /// Its prefix.
        subnet: Prefix4,
    },
    /// Somebody has the address.
    #[error("{address} on network {network} is the address of {who}")]
    Taken {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        network: String,
        /// Who has it.
        who: String,
    },
    /// Every address is taken.
    #[error("network {network} has no free address in {subnet}: remove sandboxes, or make a larger network")]
    Full {
        /// The network.
        network: String,
        /// Its prefix.
        subnet: Prefix4,
    },
    /// The network was removed, and perhaps made anew.
    #[error(
        "network {0} is not the one that the sandbox was made for: it was removed meanwhile; make the sandbox anew"
    )]
    Other(String),
    /// An isolated network has no rules.
    #[error("network {0} is isolated: there is no way out of it, and no rule allows one")]
    Isolated(String),
    /// The switch cannot be started.
    #[error("cannot start the switch {} of network {network}", .program.display())]
    Start {
        /// The network.
        network: String,
        /// The program.
        program: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The socket of a switch that runs is not where it was.
    #[error(
        "the switch of network {network} runs, but its socket{} is gone: stop the machines of the network, and start \
         them again (nelly network inspect {network} lists them)",
        .path.as_ref().map(|path| format!(" in {}", path.display())).unwrap_or_default()
    )]
    Lost {
        /// The network.
        network: String,
        /// Where it was.
        path: Option<PathBuf>,
    },
    /// The switch cannot be talked to.
    #[error("the switch of network {network} does not answer")]
    Silent {
        /// The network.
        network: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The switch refuses the machine.
    #[error("the switch of network {network} refuses the machine: {why}")]
    Refused {
        /// The network.
        network: String,
        /// Why.
        why: String,
    },
}

/// Who is on a network.
#[derive(Debug)]
pub struct User {
    /// The sandbox's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it was given.
    pub place: Option<Place>,
}

/// The sandboxes whose records name a network. One whose record cannot be read is passed by, unless
/// this is `strict`.
///
/// # Errors
/// A record cannot be read, so that who uses the network is unknown.
pub fn users(sandboxes: &Path, network: &NetworkRecord, strict: bool) -> Result<Vec<User>, StateError> {
    let Some(sandboxes) = Sandboxes::open(sandboxes)? else { return Ok(Vec::new()) };
    let mut users = Vec::new();
    for one in sandboxes.list()? {
        let record = match one.details {
            Ok(details) => details.record,
            Err(error) if strict => return Err(error),
            Err(_) => continue,
        };
        let Some(member) = record.machine.network.member() else { continue };
        let same = member.place.as_ref().is_none_or(|place| place.network_id == network.id.to_string());
        if member.network == network.name && same {
            let (id, name) = (record.id.to_string(), record.name.to_string());
            users.push(User { id, name, place: member.place.clone() });
        }
    }
    Ok(users)
}

/// Whether this system can have networks of machines.
///
/// # Errors
/// [`MemberError::NoSockets`].
pub fn supported() -> Result<(), MemberError> {
    if KEEPS_MESSAGES { Ok(()) } else { Err(MemberError::NoSockets) }
}

/// Gives the machine of a new sandbox its place, if it is to be on a network of machines. The lock
/// is held until others can see what was given: until the sandbox's record is there, or its machine
/// has joined.
///
/// # Errors
/// There is no such network, or no such address.
pub fn assign(
    site: &Site<'_>,
    sandboxes: &Path,
    network: &mut Network,
) -> Result<Option<NetworksLock>, MemberError> {
    let Some(user) = network.user_mut() else { return Ok(None) };
    let has_rules = !user.allow.is_empty();
    let Some(member) = user.member.as_mut() else { return Ok(None) };
    supported()?;
    let name = member.network.clone();
    let networks = Networks::open(&site.networks)?.ok_or_else(|| NetworksError::Missing(name.clone()))?;
    let lock = networks.lock()?;
    let record = networks.find(&name)?;
    if record.isolated && has_rules {
        return Err(MemberError::Isolated(name));
    }
    let mut taken: Vec<(Ipv4Addr, String)> = Vec::new();
    for user in users(sandboxes, &record, false)? {
        taken.extend(user.place.map(|place| (place.address4, format!("sandbox {}", user.name))));
    }
    for shown in show(&record)?.into_iter().flatten() {
        let who = shown.machine.names.first().cloned().unwrap_or_default();
        taken.push((shown.machine.address4, format!("machine {who}")));
    }
    let number = number(&record, member.wanted, &taken)?;
    let prefixes = (record.subnet, record.subnet6);
    member.place = Some(Place::new(record.id.to_string(), prefixes, record.isolated, number));
    Ok(Some(lock))
}

/// The number of a machine in its network: what is wanted, or the first that is free.
fn number(
    record: &NetworkRecord,
    wanted: Option<Ipv4Addr>,
    taken: &[(Ipv4Addr, String)],
) -> Result<u32, MemberError> {
    let (network, subnet) = (record.name.clone(), record.subnet);
    let first = subnet.address.to_bits();
    let most = subnet.broadcast().to_bits() - first;
    let holder = |address: Ipv4Addr| taken.iter().find(|(other, _)| *other == address);
    if let Some(address) = wanted {
        let number = address.to_bits().wrapping_sub(first);
        if !subnet.contains(address) || !(FIRST..most).contains(&number) {
            return Err(MemberError::Address { address, network, subnet });
        }
        return match holder(address) {
            Some((_, who)) => Err(MemberError::Taken { address, network, who: who.clone() }),
            None => Ok(number),
        };
    }
    let free = |number: &u32| holder(Ipv4Addr::from_bits(first | number)).is_none();
    (FIRST..most).find(free).ok_or(MemberError::Full { network, subnet })
}

/// Who is on a network now, as its switch tells; `None`: it has none.
///
/// # Errors
/// The switch does not answer.
pub fn show(record: &NetworkRecord) -> Result<Option<Vec<Shown>>, MemberError> {
    let network = || record.name.clone();
    let silent = |source: io::Error| MemberError::Silent { network: network(), source };
    let Some(socket) = connect(record).map_err(silent)? else { return Ok(None) };
    let request = serde_json::to_vec(&Request::Show).map_err(|error| silent(error.into()))?;
    let mut all = Vec::new();
    if rustix::net::send(&socket, &request, QUIET).is_err() {
        return Ok(None);
    }
    loop {
        match receive(&socket).map_err(silent)? {
            // The end; of one that was killed, too.
            None => return Ok(Some(all)),
            Some(one) => all.push(serde_json::from_slice(&one).map_err(|error| silent(error.into()))?),
        }
    }
}

/// Connects to the switch of a network; `None`: nobody serves it.
fn connect(record: &NetworkRecord) -> io::Result<Option<OwnedFd>> {
    let opened = record.runtime_dir.as_deref().map(RuntimeDir::open).transpose();
    let Some(dir) = opened.map_err(io::Error::other)?.flatten() else { return Ok(None) };
    match dir.connect_packets(SOCKET) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A message; `None`: the end.
fn receive(socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut files = [PollFd::new(socket, PollFlags::IN)];
    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    if rustix::io::retry_on_intr(|| poll(&mut files, Some(&patience)))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut message = vec![0; MAX_REQUEST];
    match rustix::net::recv(socket, &mut *message, RecvFlags::empty()) {
        Ok((0, _)) | Err(Errno::CONNRESET) => Ok(None),
        Ok((len, _)) => {
            message.truncate(len);
            Ok(Some(message))
        }
        Err(error) => Err(error.into()),
    }
}

/// Joins the machine of sandbox `id`, called `name`, with its network, whose switch `program` is
/// started if there is none. Gives its port. `lock`: that of [`assign`], if it is still held.
///
/// # Errors
/// The network is not there, or its switch refuses the machine or does not answer.
pub fn join(
    site: &Site<'_>,
    member: &Member,
    (id, name): (&str, &str),
    program: &Path,
    lock: Option<NetworksLock>,
) -> Result<OwnedFd, MemberError> {
    let network = || member.network.clone();
    let networks = Networks::open(&site.networks)?.ok_or_else(|| NetworksError::Missing(network()))?;
    let lock = lock.map_or_else(|| networks.lock(), Ok)?;
    let mut record = networks.find(&member.network)?;
    let place = member.place.as_ref().filter(|place| place.network_id == record.id.to_string());
    let place = place.ok_or_else(|| MemberError::Other(network()))?;
    let mut names = vec![name.to_owned(), id.chars().take(12).collect()];
    names.extend(member.aliases.iter().filter(|alias| *alias != name).cloned());
    let request = Request::Join(Join {
        id: id.to_owned(),
        names,
        mac: Mac(MacAddress::from_seed(id).bytes()),
        address4: place.address4,
        address6: place.address6,
    });
    let silent = |source: io::Error| MemberError::Silent { network: network(), source };
    let request = serde_json::to_vec(&request).map_err(|error| silent(error.into()))?;
    for _ in 0..AGAIN {
        let Some(socket) = connect(&record).map_err(silent)? else {
            start(site, &networks, (&mut record, &lock), program)?;
            continue;
        };
        if rustix::net::send(&socket, &request, QUIET).is_err() {
            continue;
        }
        // One that has ended meanwhile is followed by another.
        let Some(answer) = receive(&socket).map_err(silent)? else { continue };
        return match serde_json::from_slice(&answer) {
            Ok(Answer::Joined) => Ok(socket),
            Ok(Answer::Refused(why)) => Err(MemberError::Refused { network: network(), why }),
            Err(error) => Err(silent(error.into())),
        };
    }
    Err(silent(io::ErrorKind::ConnectionAborted.into()))
}

/// Starts the switch of a network that has none, under the lock.
fn start(
    site: &Site<'_>,
    networks: &Networks,
    (record, lock): (&mut NetworkRecord, &NetworksLock),
    program: &Path,
) -> Result<(), MemberError> {
    let (network, at) = (record.name.clone(), program.to_owned());
    let failed =
        |source: io::Error| MemberError::Start { network: network.clone(), program: at.clone(), source };
    if !program.is_file() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    // Held by the switch for as long as it runs.
    let kept = networks.switch_lock(lock, &record.name)?;
    let kept =
        kept.ok_or_else(|| MemberError::Lost { network: network.clone(), path: record.runtime_dir.clone() })?;
    let dir = RuntimeDir::make(site.environment, record.id)?;
    let listener = dir.bind_packets(SOCKET)?;
    let parent = dir.path().parent().map(TrustedDir::open).transpose()?.flatten();
    let parent = parent.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    record.runtime_dir = Some(dir.path().to_owned());
    networks.write(lock, record)?;
    // What the switch is given is in the socket before it starts.
    let (said, theirs) = UnixStream::pair().map_err(failed)?;
    let sent = write_with_descriptors(&said, b"{}", &[parent.as_fd(), kept.as_fd()]);
    sent.and_then(|()| said.shutdown(Shutdown::Write)).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["--network", &record.name, "--directory", &record.id.short()]);
    command.env_clear().current_dir("/").stdin(listener).stdout(networks.lock_file()?);
    command.stderr(OwnedFd::from(theirs));
    let status = command.status().map_err(failed)?;
    drop(command);
    heard(&said, status).map_err(failed)
}

/// Waits for what a switch says when it serves, or why it does not.
fn heard(mut said: &UnixStream, status: ExitStatus) -> io::Result<()> {
    said.set_read_timeout(Some(PATIENCE))?;
    let (mut text, mut part) = (Vec::new(), [0; 1024]);
    // It keeps its end, and says nothing more.
    while text.len() < MOST_WORDS && text != READY {
        match said.read(&mut part) {
            Ok(0) => break,
            Ok(len) => text.extend(&part[..len]),
            // One that ended before it read what it was given is reset; what it said comes next.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other(format!(
                    "it is not ready within {} seconds",
                    PATIENCE.as_secs()
                )));
            }
            Err(error) => return Err(error),
        }
    }
    if text == READY {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&text);
    let why = why.lines().next_back().unwrap_or_default().trim();
    Err(io::Error::other(match (why, status.success()) {
        ("", true) => "it ended before it said why".to_owned(),
        ("", false) => status.to_string(),
        (why, _) => nelly_vmm::text::line(why).to_string(),
    }))
}

/// Removes the directory of a switch that was killed. Under the lock. Whether it was removed.
///
/// # Errors
/// The switch does not answer, or the directory cannot be removed.
pub fn clean(record: &NetworkRecord, _lock: &NetworksLock) -> Result<bool, MemberError> {
    let Some(path) = &record.runtime_dir else { return Ok(false) };
    let silent = |source| MemberError::Silent { network: record.name.clone(), source };
    if RuntimeDir::open(path)?.is_none() || connect(record).map_err(silent)?.is_some() {
        return Ok(false);
    }
    RuntimeDir::remove(path, record.id)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::state::Id;

    fn record(subnet: &str) -> NetworkRecord {
        let id = Id::random().unwrap();
        NetworkRecord::new(id, "dev".into(), subnet.parse().unwrap(), "fd00::/64".parse().unwrap(), false)
    }

    /// The directories of a user, and a network `dev` there.
    fn dev(top: &Path) -> (Networks, NetworkRecord) {
        let networks = Networks::make(&top.join("networks")).unwrap();
        let record = record("10.89.0.0/24");
        networks.create(&networks.lock().unwrap(), &record).unwrap();
        (networks, record)
    }

    fn program(top: &Path, script: &str) -> PathBuf {
        let program = top.join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        program
    }

    #[test]
    fn a_switch_that_does_not_start_says_why_and_only_one_runs() {
        let top = tempfile::tempdir().unwrap();
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let (networks, mut record) = dev(top.path());
        let run = top.path().to_owned();
        let environment = move |name: &str| (name == "XDG_RUNTIME_DIR").then(|| run.clone());
        let site = Site { networks: top.path().join("networks"), environment: &environment };
        let lock = networks.lock().unwrap();
        let mut tried = |script: &str| {
            let program = program(top.path(), script);
            start(&site, &networks, (&mut record, &lock), &program).map_err(|e| nelly_vmm::text::chain(&e))
        };
        for (script, why) in [
            (
                "echo 'cannot wait for who joins: not permitted' >&2; exit 125",
                "cannot wait for who joins: not permitted",
            ),
            ("echo first >&2; echo 'cannot \u{1b}[2J' >&2", "cannot"),
            ("exit 2", "exit status: 2"),
            ("exit 0", "it ended before it said why"),
        ] {
            let error = tried(script).unwrap_err();
            assert!(error.contains("cannot start the switch") && error.contains(why), "{error}");
            assert!(!error.contains('\u{1b}'), "{error}");
        }
        // One that serves keeps the file that it was given, and so its network to itself.
        let serves = "cat <&2 >/dev/null; echo ready >&2";
        assert_eq!(tried(serves), Ok(()));
        let kept = networks.switch_lock(&lock, "dev").unwrap();
        assert!(kept.is_some(), "a script takes no descriptors, so nobody keeps it");
        let error = tried(serves).unwrap_err();
        assert!(error.contains("the switch of network dev runs, but its socket in "), "{error}");
        drop(kept);
        assert_eq!(tried(serves), Ok(()));
        networks.remove(&lock, "dev").unwrap();
        assert!(!top.path().join("networks/dev.switch").exists());
    }

    #[test]
    fn addresses_are_given_in_order_and_wanted_ones_if_they_are_free() {
        let record = record("10.89.0.0/29");
        let taken = |all: &[u8]| {
            all.iter().map(|n| (Ipv4Addr::new(10, 89, 0, *n), format!("sandbox s{n}"))).collect::<Vec<_>>()
        };
        let given = |wanted: Option<&str>, all: &[u8]| {
            number(&record, wanted.map(|address| address.parse().unwrap()), &taken(all))
        };
        assert_eq!(given(None, &[]).unwrap(), 3);
        assert_eq!(given(None, &[3, 5]).unwrap(), 4);
        assert!(matches!(given(None, &[3, 4, 5, 6]), Err(MemberError::Full { .. })));
        assert_eq!(given(Some("10.89.0.6"), &[3]).unwrap(), 6);
        for no in ["10.89.0.0", "10.89.0.1", "10.89.0.2", "10.89.0.7", "10.89.0.8", "10.88.255.255"] {
            assert!(matches!(given(Some(no), &[]), Err(MemberError::Address { .. })), "{no}");
        }
        let error = given(Some("10.89.0.3"), &[3]).unwrap_err().to_string();
        assert!(error.contains("sandbox s3"), "{error}");
    }
}
