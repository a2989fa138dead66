//! Where a system keeps the files of its users.

/// Directories below a user's home: for data, for what can be made again, and for settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HomePlaces {
    pub(crate) data: &'static str,
    pub(crate) cache: &'static str,
    pub(crate) config: &'static str,
}

/// As freedesktop.org has them.
#[cfg(not(target_os = "macos"))]
pub(crate) const HOME: HomePlaces = HomePlaces { data: ".local/share", cache: ".cache", config: ".config" };
/// As Apple has them.
#[cfg(target_os = "macos")]
pub(crate) const HOME: HomePlaces = HomePlaces {
    data: "Library/Application Support",
    cache: "Library/Caches",
    config: "Library/Application Support",
};

/// Where root's sockets are.
#[cfg(not(target_os = "macos"))]
pub(crate) const ROOT_RUN: &str = "/run/nelly";
/// Where root's sockets are.
#[cfg(target_os = "macos")]
pub(crate) const ROOT_RUN: &str = "/var/run/nelly";

/// Whether `TMPDIR` names a directory of this user alone.
pub(crate) const TEMPORARY_IS_OWN: bool = cfg!(target_os = "macos");

/// Leaves no core file of this process, and lets no other process of its user read its memory where
/// the system can do that.
///
/// # Errors
/// The system's refusal.
pub(crate) fn hide() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(not(target_os = "macos"))]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_where_others_look_for_them() {
        let known = if cfg!(target_os = "macos") {
            ["Library/Application Support", "Library/Caches", "Library/Application Support"]
        } else {
            [".local/share", ".cache", ".config"]
        };
        assert_eq!([HOME.data, HOME.cache, HOME.config], known);
    }
}
