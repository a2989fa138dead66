//! Which files a process may still reach by a name, and what else Landlock keeps it from.

#![allow(unsafe_code, reason = "no crate asks for the version alone")]

use std::io;
use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};

/// What may be done at a place, and below it if it is a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// Read files and lists of names.
    Read,
    /// Everything, but run programs, make block devices and ask devices.
    Change,
    /// Make a file, write to it, cut it, rename and remove files: in a directory.
    Rotate,
    /// Make and remove sockets, and read lists of names: in a directory.
    Sockets,
    /// Read and write: of a terminal, or a pipe with a name.
    Stream,
}

/// The newest version whose rules are known here.
const NEWEST: ABI = ABI::V6;

/// The version of Landlock that this system has; 0 where it has none, or was started without it.
#[must_use]
pub fn version() -> u32 {
    // SAFETY: without attributes and with this flag (LANDLOCK_CREATE_RULESET_VERSION) the call
    // takes numbers only.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0_usize, 0_usize, 1_u32) };
    // An error is a negative number.
    u32::try_from(version.max(0)).expect("versions are small numbers")
}

/// Keeps this thread, and those that it makes, from every file that it has not open, but what is at
/// `places` or below; from TCP ports to bind or connect to (version 4), from devices' own requests
/// on what it opens later (5), and from signals to others and their abstract sockets (6). Sets
/// `no_new_privs` too. Gives the version that is in force, 0 for none.
///
/// # Errors
/// The system refuses a rule, or has no room.
pub fn restrict_to(places: &[(BorrowedFd<'_>, May)]) -> io::Result<u32> {
    restrict(places).map_err(|error| {
        // What the system said, without the crate's words around it, if it said something.
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(cause) = source {
            match cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                Some(number) => return io::Error::from_raw_os_error(number),
                None => source = cause.source(),
            }
        }
        io::Error::other(error)
    })
}

fn restrict(places: &[(BorrowedFd<'_>, May)]) -> Result<u32, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for (place, may) in places {
        let access = match may {
            May::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            May::Change => {
                let never = AccessFs::Execute | AccessFs::MakeBlock | AccessFs::IoctlDev;
                AccessFs::from_all(NEWEST) & !never
            }
            May::Rotate => {
                AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile
            }
            May::Sockets => AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile,
            May::Stream => AccessFs::ReadFile | AccessFs::WriteFile,
        };
        rules = rules.add_rule(PathBeneath::new(place, access))?;
    }
    let status = rules.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { .. } if status.ruleset != landlock::RulesetStatus::NotEnforced => {
            version()
        }
        _ => 0,
    })
}
