//! Mount options of the runtime spec as flags of mount(2). Pure; an option this agent cannot honour
//! is refused by name.

use thiserror::Error;

/// An option that asks for something the agent does not do.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("mount option {0:?} is not supported by this agent")]
pub struct UnsupportedOption(pub String);

/// What the options of one mount mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags of mount(2), `MS_BIND` and `MS_REC` among them.
    pub flags: u64,
    /// Flags that an option cleared on purpose: a bind mount's remount must not inherit them.
    pub cleared: u64,
    /// Propagation flags, applied by a mount(2) of their own, in order.
    pub propagation: Vec<u64>,
    /// The rest, comma separated, for the file system.
    pub data: String,
}

/// Name, flag, whether the option sets it.
const FLAGS: &[(&str, u64, bool)] = &[
    ("ro", libc::MS_RDONLY, true),
    ("rw", libc::MS_RDONLY, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("suid", libc::MS_NOSUID, false),
    ("nodev", libc::MS_NODEV, true),
    ("dev", libc::MS_NODEV, false),
    ("noexec", libc::MS_NOEXEC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("async", libc::MS_SYNCHRONOUS, false),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("mand", libc::MS_MANDLOCK, true),
    ("nomand", libc::MS_MANDLOCK, false),
    ("noatime", libc::MS_NOATIME, true),
    ("atime", libc::MS_NOATIME, false),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("diratime", libc::MS_NODIRATIME, false),
    ("relatime", libc::MS_RELATIME, true),
    ("norelatime", libc::MS_RELATIME, false),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("nostrictatime", libc::MS_STRICTATIME, false),
    ("silent", libc::MS_SILENT, true),
    ("loud", libc::MS_SILENT, false),
    ("bind", libc::MS_BIND, true),
    ("rbind", libc::MS_BIND | libc::MS_REC, true),
    ("defaults", 0, true),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("slave", libc::MS_SLAVE),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("shared", libc::MS_SHARED),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("unbindable", libc::MS_UNBINDABLE),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

const UNSUPPORTED: &[&str] = &[
    "rro",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "rsync",
    "rnoatime",
    "ratime",
    "rnodiratime",
    "rdiratime",
    "rrelatime",
    "rnorelatime",
    "rstrictatime",
    "rnostrictatime",
    "rnosymfollow",
    "rsymfollow",
    "idmap",
    "ridmap",
    "tmpcopyup",
    "remount",
    "nosymfollow",
    "symfollow",
];

/// The flag of a propagation word such as `rslave`.
#[must_use]
pub fn propagation(word: &str) -> Option<u64> {
    PROPAGATION.iter().find(|(name, _)| *name == word).map(|(_, flag)| *flag)
}

/// Sorts options into flags, propagation and data.
///
/// # Errors
/// [`UnsupportedOption`] names an option whose meaning would be lost.
pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<MountOptions, UnsupportedOption> {
    let mut parsed = MountOptions::default();
    for option in options {
        let option = option.as_ref();
        if let Some((_, flag, set)) = FLAGS.iter().find(|(name, _, _)| *name == option) {
            if *set {
                parsed.flags |= flag;
                parsed.cleared &= !flag;
            } else {
                parsed.flags &= !flag;
                parsed.cleared |= flag;
            }
        } else if let Some(flag) = propagation(option) {
            parsed.propagation.push(flag);
        } else if UNSUPPORTED.contains(&option) {
            return Err(UnsupportedOption(option.to_owned()));
        } else if !option.is_empty() {
            if !parsed.data.is_empty() {
                parsed.data.push(',');
            }
            parsed.data.push_str(option);
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_mounts_of_a_container() {
        let tmpfs = parse(&["nosuid", "strictatime", "mode=755", "size=65536k"]).expect("known");
        assert_eq!(tmpfs.flags, libc::MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(tmpfs.data, "mode=755,size=65536k");
        let bind = parse(&["rbind", "ro", "rprivate"]).expect("known");
        assert_eq!(bind.flags, libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY);
        assert_eq!(bind.propagation, vec![libc::MS_PRIVATE | libc::MS_REC]);
        assert_eq!(parse::<&str>(&[]).expect("empty"), MountOptions::default());
    }

    #[test]
    fn the_last_word_wins() {
        let options = parse(&["ro", "rw"]).expect("known");
        assert_eq!((options.flags, options.cleared), (0, libc::MS_RDONLY));
        let options = parse(&["rw", "ro", ""]).expect("known");
        assert_eq!((options.flags, options.cleared), (libc::MS_RDONLY, 0));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for option in UNSUPPORTED {
            assert_eq!(parse(&["ro", option]), Err(UnsupportedOption((*option).into())));
        }
    }
}
