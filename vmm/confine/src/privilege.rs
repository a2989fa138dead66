//! Rights of a process beyond those of a user, and of others over it.

#![allow(unsafe_code, reason = "capabilities beyond those that a crate knows are dropped by number")]

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};
pub use rustix::thread::CapabilitySet;
use rustix::thread::CapabilitySets;

/// Takes from this thread, and from those that it makes, the way to more rights by running another
/// program.
///
/// # Errors
/// The system does not have the call.
pub fn keep_down() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Takes all capabilities from this thread and from those that it makes, out of every set, but
/// those in `kept` that it has. Who has none keeps none, and is refused nothing. Gives those that
/// are left.
///
/// # Errors
/// The system's refusal.
pub fn drop_capabilities(kept: CapabilitySet) -> io::Result<CapabilitySet> {
    // Linux 4.3 is the first with an ambient set.
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let mut kept = kept & rustix::thread::capabilities(None)?.permitted;
    for number in 0..64_u64 {
        if kept.bits() >> number & 1 == 1 {
            continue;
        }
        // SAFETY: the call takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } == 0 {
            continue;
        }
        match io::Error::last_os_error() {
            // The system knows no more.
            error if error.raw_os_error() == Some(libc::EINVAL) => break,
            // An ordinary user may not, and runs no program that the set would bound.
            error if error.raw_os_error() == Some(libc::EPERM) => break,
            error => return Err(error),
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    kept = rustix::thread::capabilities(None)?.permitted;
    Ok(kept)
}

/// Closes every file that this process has open but its standard streams: what whoever started it
/// had open is none of its business. To be called by a program, before it opens files of its own.
///
/// # Errors
/// The system does not have the call (Linux before 5.9).
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: the program has opened nothing yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets limits of this process to 0.
///
/// # Errors
/// The system's refusal.
pub fn set_to_nothing(resources: &[Resource]) -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    Ok(resources.iter().try_for_each(|&resource| setrlimit(resource, none))?)
}

/// Lowers a limit of this process, for ever. One that is lower stays.
///
/// # Errors
/// The system's refusal to tell or to set it.
pub fn lower(resource: Resource, most: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes nothing but this. (rustix takes for granted that it succeeds.)
    if unsafe { libc::getrlimit(resource as libc::__rlimit_resource_t, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // No limit is the largest number.
    let most = Some(limit.rlim_max.min(most));
    Ok(setrlimit(resource, Rlimit { current: most, maximum: most })?)
}

/// Leaves no core file of this process, and lets no other process without privilege trace it or
/// read its memory.
///
/// # Errors
/// The system's refusal.
pub fn hide() -> io::Result<()> {
    set_to_nothing(&[Resource::Core])?;
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    #[test]
    fn a_limit_is_lowered_for_ever_and_never_raised() {
        // No test needs queues of messages.
        let found = || getrlimit(Resource::Msgqueue);
        lower(Resource::Msgqueue, 1000).unwrap();
        lower(Resource::Msgqueue, 2000).unwrap();
        assert_eq!(found(), Rlimit { current: Some(1000), maximum: Some(1000) });
        lower(Resource::Msgqueue, 7).unwrap();
        assert_eq!(found(), Rlimit { current: Some(7), maximum: Some(7) });
    }
}
