//! What programs read to know names: /etc/hosts, /etc/hostname and /etc/resolv.conf.
//!
//! As under docker the first two are the container's, whatever the image has there, and made again
//! at each start; so is resolv.conf where the container is in the guest's network and this has a
//! name server. Otherwise the image's resolv.conf stays.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::places::{self, TargetKind};
use super::{Named, StageError};
use crate::network::Names;

/// Writes the three files; without a host name, and for resolv.conf, only where the image has none
/// or an empty one. Before any mount: what is mounted there hides them, and nothing is written into
/// what is another's.
pub(super) fn write_names(
    root: &str,
    hostname: Option<&str>,
    more: &[String],
    names: &Names,
) -> Result<(), StageError> {
    let ours = hostname.is_some() || !more.is_empty() || !names.hosts.is_empty();
    let (resolver, served) = match &names.resolver {
        Some(text) => (text.clone(), true),
        None => (RESOLVER.to_owned(), false),
    };
    let files = [
        ("/etc/hosts", Some(hosts(hostname, more, names)), ours),
        ("/etc/hostname", hostname.map(|name| format!("{name}\n")), true),
        ("/etc/resolv.conf", Some(resolver), served),
    ];
    for (path, text, replaced) in files {
        if let Some(text) = text {
            write(root, path, &text, replaced).step(|| format!("write {path}"))?;
        }
    }
    Ok(())
}

const RESOLVER: &str = "# No name server is configured for this container.\n";

fn hosts(hostname: Option<&str>, more: &[String], names: &Names) -> String {
    let address = names.own.unwrap_or(IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1)));
    let own = hostname.map(|name| format!("{address}\t{name}\n")).unwrap_or_default();
    let more: String = names.hosts.iter().chain(more).map(|line| format!("{line}\n")).collect();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}{more}")
}

fn write(root: &str, path: &str, text: &str, replaced: bool) -> io::Result<()> {
    let place = places::make(root, path, TargetKind::File)?;
    let found = fs::metadata(&place)?;
    if found.is_file() && (replaced || found.len() == 0) { fs::write(place, text) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_are_the_containers_and_name_servers_the_images() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().to_str().expect("UTF-8");
        let at = |path: &str| directory.path().join(path);
        write_names(root, Some("box"), &[], &Names::default()).expect("written");
        let read = |path: &str| fs::read_to_string(at(path)).expect(path);
        assert_eq!(
            read("etc/hosts"),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox\n"
        );
        assert_eq!((read("etc/hostname").as_str(), read("etc/resolv.conf").as_str()), ("box\n", RESOLVER));

        fs::write(at("etc/hosts"), "10.0.0.1 theirs\n").expect("written");
        fs::write(at("etc/hostname"), "theirs\n").expect("written");
        fs::remove_file(at("etc/resolv.conf")).expect("removed");
        symlink("../run/resolv", at("etc/resolv.conf")).expect("linked");
        write_names(root, Some("other"), &["10.0.0.2\tdb".to_owned()], &Names::default()).expect("written");
        let usual = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        assert_eq!(read("etc/hosts"), format!("{usual}127.0.1.1\tother\n10.0.0.2\tdb\n"));
        assert_eq!(read("etc/hostname"), "other\n");
        assert_eq!(read("run/resolv"), RESOLVER);

        fs::write(at("etc/resolv.conf"), "nameserver 10.9.8.7\n").expect("written");
        fs::write(at("etc/hosts"), "10.0.0.1 theirs\n").expect("written");
        write_names(root, None, &[], &Names::default()).expect("written");
        assert_eq!(read("etc/hosts"), "10.0.0.1 theirs\n");
        fs::remove_file(at("etc/hosts")).expect("removed");
        write_names(root, None, &[], &Names::default()).expect("written");
        assert_eq!(read("etc/hosts"), usual);
        assert_eq!(
            (read("etc/hostname").as_str(), read("run/resolv").as_str()),
            ("other\n", "nameserver 10.9.8.7\n")
        );

        let names = Names {
            resolver: Some("nameserver 10.0.2.3\n".to_owned()),
            hosts: vec!["10.0.2.2\thost.internal".to_owned()],
            own: "10.0.2.15".parse().ok(),
            authorities: String::new(),
        };
        write_names(root, Some("box"), &["10.0.0.2\tdb".to_owned()], &names).expect("written");
        let more = "10.0.2.15\tbox\n10.0.2.2\thost.internal\n10.0.0.2\tdb\n";
        assert_eq!(read("etc/hosts"), format!("{usual}{more}"));
        assert_eq!(read("run/resolv"), "nameserver 10.0.2.3\n");
    }
}
