//! What programs read to know names: /etc/hosts, /etc/hostname and /etc/resolv.conf, where the
//! image says nothing.

use std::fs;
use std::io;

use super::places::{self, TargetKind};
use super::{Named, StageError};

/// Writes those of the three files that the image lacks, or has empty. Before any mount: what is
/// mounted there hides them, and nothing is written into what is another's.
pub(super) fn write_names(root: &str, hostname: Option<&str>) -> Result<(), StageError> {
    let files = [
        ("/etc/hosts", Some(hosts(hostname))),
        ("/etc/hostname", hostname.map(|name| format!("{name}\n"))),
        ("/etc/resolv.conf", Some(RESOLVER.to_owned())),
    ];
    for (path, text) in files {
        if let Some(text) = text {
            write_if_empty(root, path, &text).step(|| format!("write {path}"))?;
        }
    }
    Ok(())
}

const RESOLVER: &str = "# This container has no network but loopback, and no name server.\n";

fn hosts(hostname: Option<&str>) -> String {
    let own = hostname.map(|name| format!("127.0.1.1\t{name}\n")).unwrap_or_default();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
}

fn write_if_empty(root: &str, path: &str, text: &str) -> io::Result<()> {
    let place = places::make(root, path, TargetKind::File)?;
    let found = fs::metadata(&place)?;
    if found.is_file() && found.len() == 0 { fs::write(place, text) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_the_image_lacks_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().to_str().expect("UTF-8");
        let at = |path: &str| directory.path().join(path);
        write_names(root, Some("box")).expect("written");
        let read = |path: &str| fs::read_to_string(at(path)).expect(path);
        assert_eq!(
            read("etc/hosts"),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox\n"
        );
        assert_eq!((read("etc/hostname").as_str(), read("etc/resolv.conf").as_str()), ("box\n", RESOLVER));

        fs::write(at("etc/hosts"), "10.0.0.1 theirs\n").expect("written");
        fs::write(at("etc/hostname"), "").expect("written");
        fs::remove_file(at("etc/resolv.conf")).expect("removed");
        symlink("../run/resolv", at("etc/resolv.conf")).expect("linked");
        write_names(root, Some("other")).expect("written");
        assert_eq!(
            (read("etc/hosts").as_str(), read("etc/hostname").as_str()),
            ("10.0.0.1 theirs\n", "other\n")
        );
        assert_eq!(read("run/resolv"), RESOLVER);

        fs::remove_file(at("etc/hosts")).expect("removed");
        write_names(root, None).expect("written");
        assert_eq!(read("etc/hosts"), "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        assert_eq!(read("etc/hostname"), "other\n");
    }
}
