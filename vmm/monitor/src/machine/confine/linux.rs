//! The layers of Linux.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nelly_confine::apart;
use nelly_confine::denied::{self, Framed};
use nelly_confine::privilege::{self, CapabilitySet};
use nelly_confine::program::{self, Denial, Speculation, Threads};
use nelly_confine::tree::{self, May};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{ConfineError, Confinement, Needs, Process, calls};
use crate::config::{Confine, Endpoint, MachineConfig};
use crate::machine::files::Files;
use crate::machine::threads::Role;
use crate::sys;

/// The version of Landlock that lets a guest rename from one directory to another.
const RENAMES: u32 = 2;

/// A guest would pay for what the system does otherwise.
const SPECULATION: Speculation = Speculation::Kept;

/// What a server of shared directories needs as root, to act on files of all users.
const FILES_OF_ALL: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Gives up, for this thread and those that it will make, what is not needed any more. The limit of
/// processes stays: the host's kernel makes threads for a machine (KVM, vhost) that count.
pub(super) fn confine_process(
    done: &mut Confinement,
    config: &MachineConfig,
    files: &Files,
    outcome: Option<RawFd>,
) -> Result<(), ConfineError> {
    let wanted = done.confine;
    // Whether a layer is there; an error where it must be, or where it is and failed.
    let layer = |layer: &'static str, result: io::Result<()>| match (wanted, result) {
        (_, Ok(())) => Ok(true),
        (Confine::On | Confine::Off, Err(error)) if is_missing(&error) => Ok(false),
        (_, Err(error)) => {
            Err(ConfineError { layer, strict: wanted == Confine::Strict, source: Some(error) })
        }
    };
    done.no_new_privs = layer("no_new_privs", privilege::keep_down())?;
    // While this is root still, which may look everywhere.
    let places = places(config, files);
    if let Some(user) = config.monitor_user {
        let networks = apart::leave_networks().map(|names| {
            done.namespaces.extend(names.into_iter().map(str::to_owned));
        });
        layer("namespaces of its own", networks)?;
        let files = apart::leave_files().map(|()| done.namespaces.push("mount".to_owned()));
        layer("a root directory of its own", files)?;
        // Whoever asks for a user does not want to go on without.
        apart::become_user(user.uid, user.gid).map_err(|source| ConfineError {
            layer: "the user that monitor_user names, which only root can give",
            strict: false,
            source: Some(source),
        })?;
        done.user = Some(user);
    }
    let kept = match (config.shares.is_empty(), Needs::of(config).names) {
        _ if config.monitor_user.is_some() => CapabilitySet::empty(),
        (false, _) => FILES_OF_ALL,
        // Root's log or socket in the directory of another user.
        (true, true) => CapabilitySet::DAC_OVERRIDE,
        (true, false) => CapabilitySet::empty(),
    };
    let dropped = privilege::drop_capabilities(kept).map(|kept| {
        let names = kept.iter_names().map(|(name, _)| name.to_lowercase());
        done.capabilities = Some(names.collect());
    });
    layer("a way to drop capabilities", dropped)?;
    // After the capabilities, of which a change makes a process dumpable or not as the host has it.
    done.undumpable = layer("a way to be hidden from others", privilege::hide())?;
    let restricted = restrict(config, places).map(|version| done.landlock = version);
    layer("Landlock", restricted)?;
    let told = match program::available() {
        true => tell(outcome),
        false => Err(missing("the kernel was built without it, or something forbids it")),
    };
    done.seccomp = layer("seccomp", told)?;
    Ok(())
}

fn missing(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// Whether the host does not have what was asked for, or does not let this process have it, as in
/// some containers.
fn is_missing(error: &io::Error) -> bool {
    // The last: it has as many rules of Landlock upon it as the kernel takes.
    let refusals = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL, Errno::PERM, Errno::ACCESS, Errno::TOOBIG];
    match error.raw_os_error() {
        Some(number) => refusals.iter().any(|refusal| refusal.raw_os_error() == number),
        None => error.kind() == io::ErrorKind::Unsupported,
    }
}

/// Has a denied system call told on standard error, and to the holder as the machine's outcome.
fn tell(outcome: Option<RawFd>) -> io::Result<()> {
    let framed = outcome.map(|socket| Framed {
        socket,
        before: r#"{"reason":{"error":"nelly-monitor "#,
        behind: r#""}}"#,
    });
    denied::tell("nelly-monitor", &[io::stderr().as_fd()], framed)
}

/// The version of Landlock.
pub(super) fn version() -> u32 {
    tree::version()
}

/// Whether threads can have lists of system calls.
pub(super) fn has_filters() -> bool {
    program::available()
}

/// Gives this thread its list.
pub(super) fn confine_thread(role: Role, needs: Needs, process: Process) -> io::Result<()> {
    let denial = match process {
        Process::Own => Denial::Signal,
        Process::Embedder => Denial::Error,
    };
    if process == Process::Embedder {
        // It counts for this thread alone, and its lists need it; a process of its own has it.
        privilege::keep_down()?;
    }
    program::install(&calls::program(&[role], needs, denial)?, Threads::This, SPECULATION)
}

/// Gives all threads of this process one list.
pub(super) fn confine_threads(needs: Needs) -> io::Result<()> {
    // What the others do is part of what these do.
    let roles = [Role::Vcpu(0), Role::Loop];
    program::install(&calls::program(&roles, needs, Denial::Signal)?, Threads::All, SPECULATION)
}

/// Landlock: gives its version.
fn restrict(config: &MachineConfig, places: io::Result<Vec<(OwnedFd, May)>>) -> io::Result<u32> {
    let version = tree::version();
    if version == 0 {
        return Err(missing("the kernel has it not, or was started without it (lsm=)"));
    }
    if version < RENAMES && !config.shares.is_empty() {
        return Err(missing(
            "its version 1 (Linux before 5.19) forbids renames between the directories of a share",
        ));
    }
    let places = places
        .map_err(|error| io::Error::other(format!("cannot open where the machine's files are: {error}")))?;
    let places: Vec<_> = places.iter().map(|(place, may)| (place.as_fd(), *may)).collect();
    let version = tree::restrict_to(&places)?;
    if version == 0 { Err(missing("the kernel did not enforce it")) } else { Ok(version) }
}

/// Where a machine still reaches something by a name.
fn places(config: &MachineConfig, files: &Files) -> io::Result<Vec<(OwnedFd, May)>> {
    let mut places = Vec::new();
    for share in &config.shares {
        if let Ok(shared) = files.get("shares", &share.source) {
            places.push((shared.into(), if share.read_only { May::Read } else { May::Change }));
        }
    }
    for endpoint in [&config.serial, &config.console] {
        match endpoint {
            // The next file of a full log.
            Endpoint::Log(file) => {
                let directory = files.log_place(file).map(|(directory, _)| (directory, May::Rotate));
                places.extend(directory);
            }
            // What is open already is opened again, to be waited for in another way than by those
            // who share it.
            Endpoint::Stdio => {
                let own = [0, 1].into_iter().filter_map(|number| sys::inherited(number).ok());
                places.extend(own.filter(|file| has_name(file.as_fd())).map(|file| (file, May::Stream)));
            }
            Endpoint::Pair { input, output } => {
                for file in [input, output].into_iter().filter_map(|file| files.get("", file).ok()) {
                    if has_name(file.as_fd()) {
                        places.push((file.into(), May::Stream));
                    }
                }
            }
            Endpoint::None | Endpoint::Stream => {}
        }
    }
    if let Some(path) = config.vsock.as_ref().and_then(|vsock| vsock.unix_socket.as_ref()) {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        // Its place alone: a directory may be searched and not read.
        let place = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::io::retry_on_intr(|| rustix::fs::open(directory, place, Mode::empty())) {
            Ok(place) => places.push((place, May::Sockets)),
            // Whoever makes the socket says it better.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(places)
}

/// Whether a terminal or pipe is found in the file system: what is not needs no rule, and can have
/// none.
fn has_name(file: BorrowedFd<'_>) -> bool {
    use rustix::fs::FileType;
    match rustix::fs::fstat(file).map(|status| FileType::from_raw_mode(status.st_mode)) {
        Ok(FileType::CharacterDevice) => true,
        Ok(FileType::Fifo) => !sys::files::has_no_name(file),
        _ => false,
    }
}
