//! Directories of the host in the guest.

use std::path::{Path, PathBuf};

use crate::error::HydraError;
use crate::grammar;
use crate::setting::{Platform, Reader, Setting, Source};

/// The directories of the kubelet that a guest which runs pods shares with its host, and their
/// tags.
const KUBELET: &[(&str, &str)] = &[("host0", "/var/lib/kubelet"), ("host1", "/var/log/pods")];
/// The number of the first tag of `ADDITIONAL_9P_MOUNTS`.
const FIRST_TAG: usize = 100;
/// The option of mount by which lines of ours in `/etc/fstab` are known again.
const MARK: &str = "x-nelly.share";

/// A directory of the host in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The name by which the guest mounts it.
    pub tag: String,
    /// The directory of the host.
    pub host: PathBuf,
    /// Where it is in the guest; absolute.
    pub guest: String,
    /// Whether the guest only reads it.
    pub read_only: bool,
    /// What to do if it is not there.
    pub missing: Missing,
}

/// What to do if a directory that is to be shared is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The machine does not start: somebody asked for it.
    Refuse,
    /// It is not shared, and a message says so.
    Skip,
    /// It is made.
    Create,
}

/// The shares of `ADDITIONAL_9P_MOUNTS`, and of the kubelet.
///
/// # Errors
/// A value that is wrong, or two shares at one place.
pub(crate) fn shares(reader: &mut Reader<'_>, bare: bool) -> Result<Vec<Setting<Share>>, HydraError> {
    const MOUNTS: &str = "ADDITIONAL_9P_MOUNTS";
    let mut all = kubelet(reader, bare)?;
    if let Some(text) = reader.some(MOUNTS) {
        let pairs =
            grammar::mounts(&text.value).map_err(|reason| HydraError::value(MOUNTS, &text.value, reason))?;
        all.extend(pairs.into_iter().enumerate().map(|(index, (host, guest))| {
            let tag = format!("host{}", FIRST_TAG + index);
            text.with(Share { tag, host, guest, read_only: false, missing: Missing::Refuse })
        }));
    }
    for (index, share) in all.iter().enumerate() {
        if let Some(other) = all[..index].iter().find(|other| other.value.guest == share.value.guest) {
            let name =
                |source| if let Source::Variable(name) = source { name } else { "DISABLE_9P_KUBELET_MOUNTS" };
            return Err(HydraError::Together {
                first: name(other.source),
                second: name(share.source),
                what: format!("both put a directory at {} in the guest", share.value.guest),
            });
        }
    }
    Ok(all)
}

/// The kubelet's directories. They are shared unless somebody says otherwise where root runs the
/// machine, as a kubelet would; elsewhere if somebody asks for it.
fn kubelet(reader: &mut Reader<'_>, bare: bool) -> Result<Vec<Setting<Share>>, HydraError> {
    const DISABLE: &str = "DISABLE_9P_KUBELET_MOUNTS";
    const EXTERNAL: &str = "EXTERNAL_9P_KUBELET_MOUNTS";
    let disabled = reader.parsed(DISABLE, grammar::switch)?;
    if disabled.value {
        return Ok(Vec::new());
    }
    if reader.parsed(EXTERNAL, grammar::switch)?.value {
        reader.warn(format!(
            "{EXTERNAL} is not possible yet: the kubelet's directories are not mounted from another machine, and are not shared"
        ));
        return Ok(Vec::new());
    }
    let root = reader.host.platform == Platform::LinuxRoot;
    let of_platform = match reader.host.platform {
        Platform::Darwin => "DEFAULT_DIR_K3S_VAR_DARWIN",
        Platform::LinuxRoot => "DEFAULT_DIR_K3S_VAR_LINUX_ROOT",
        Platform::LinuxUser => "DEFAULT_DIR_K3S_VAR_LINUX_NON_ROOT",
        Platform::Other => "DEFAULT_DIR_K3S_VAR_OTHER",
    };
    let top = reader.text(reader.first_of("DIR_K3S_VAR", of_platform));
    let asked = if top.source == Source::Default { disabled.source } else { top.source };
    if !root && asked == Source::Default {
        return Ok(Vec::new());
    }
    // A bare kernel's own initrd decides what it mounts.
    let unasked = if asked == Source::Default { Missing::Skip } else { Missing::Refuse };
    if bare && asked == Source::Default {
        return Ok(Vec::new());
    }
    let share = |(tag, place): &(&str, &str)| {
        let missing = if top.value.is_empty() { unasked } else { Missing::Create };
        let host = if top.value.is_empty() {
            PathBuf::from(place)
        } else {
            Path::new(&top.value).join(place.trim_start_matches('/'))
        };
        let value =
            Share { tag: (*tag).to_owned(), host, guest: (*place).to_owned(), read_only: false, missing };
        Setting { value, source: asked }
    };
    Ok(KUBELET.iter().map(share).collect())
}

/// Lines for the shell of a guest with cloud-init that mount these shares, now and at each later
/// start.
#[must_use]
pub fn mount_lines<'a>(shares: impl IntoIterator<Item = &'a Share>) -> Vec<String> {
    let mut lines: Vec<_> = shares
        .into_iter()
        .map(|share| {
            let (tag, place) = (&share.tag, quoted(&share.guest));
            let reads = if share.read_only { "ro," } else { "" };
            let entry =
                quoted(&format!("{tag} {} virtiofs {reads}nofail,{MARK} 0 0", in_fstab(&share.guest)));
            format!("mkdir -p {place} && printf '%s\\n' {entry} >>/etc/fstab && mount {place}")
        })
        .collect();
    if !lines.is_empty() {
        // Those of an earlier instance on the same disk.
        lines.insert(0, format!("sed -i '/,{MARK} /d' /etc/fstab"));
    }
    lines
}

/// A word for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A path as fstab(5) has it.
fn in_fstab(path: &str) -> String {
    path.replace('\\', r"\134").replace(' ', r"\040")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_told_of_mounts_word_by_word() {
        let share = |tag: &str, guest: &str| Share {
            tag: tag.to_owned(),
            host: "/srv".into(),
            guest: guest.to_owned(),
            read_only: false,
            missing: Missing::Refuse,
        };
        assert_eq!(mount_lines([]), Vec::<String>::new());
        let [clean, plain, odd] = &mount_lines(&[share("host0", "/data"), share("host1", r"/a 'b\c")])[..]
        else {
            panic!("three lines")
        };
        assert_eq!(clean, "sed -i '/,x-nelly.share /d' /etc/fstab");
        assert_eq!(
            plain,
            r"mkdir -p '/data' && printf '%s\n' 'host0 /data virtiofs nofail,x-nelly.share 0 0' >>/etc/fstab && mount '/data'"
        );
        assert_eq!(
            odd,
            r"mkdir -p '/a '\''b\c' && printf '%s\n' 'host1 /a\040'\''b\134c virtiofs nofail,x-nelly.share 0 0' >>/etc/fstab && mount '/a '\''b\c'"
        );
    }
}
