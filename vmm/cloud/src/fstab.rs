//! fstab(5): what is mounted where.

/// A line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `UUID=...`, `LABEL=...`, `PARTUUID=...`, `PARTLABEL=...` or a device.
    pub source: String,
    /// Where, without a slash at the end.
    pub target: String,
}

/// Most lines that are read.
const LINES_MAX: usize = 1000;

/// The lines of an fstab.
#[must_use]
pub fn parse(text: &str) -> Vec<Mount> {
    let lines = text.lines().take(LINES_MAX).map(str::trim).filter(|line| !line.starts_with('#'));
    let mounts = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let (source, target) = (words.next()?, words.next()?);
        let target = if target == "/" { target } else { target.trim_end_matches('/') };
        Some(Mount { source: source.trim_matches('"').to_owned(), target: unescaped(target) })
    });
    mounts.collect()
}

/// Spaces and others are written in octal.
fn unescaped(word: &str) -> String {
    word.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_comments_are_not() {
        let text = "# /etc/fstab\nPARTUUID=7bb / ext4 rw,discard 0 1\n\n UUID=12-AB /boot/efi/ vfat defaults 0 0\nLABEL=x /a\\040b\nbroken\n";
        let mounts = parse(text);
        let found: Vec<_> =
            mounts.iter().map(|mount| (mount.source.as_str(), mount.target.as_str())).collect();
        assert_eq!(found, [("PARTUUID=7bb", "/"), ("UUID=12-AB", "/boot/efi"), ("LABEL=x", "/a b")]);
    }
}
