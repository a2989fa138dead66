//! Who holds a port that is taken.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::config::{Protocol, Publish};

/// A sentence about a port that is taken, with what is known of who holds it.
pub(super) fn taken(publish: &Publish) -> String {
    let what = format!("port {} of {} is taken", publish.bind.port(), publish.bind.ip());
    if !crate::sys::may_open_files() {
        return what;
    }
    match inode(publish).and_then(|inode| process(&inode)) {
        Some(process) => format!("{what} by {process}"),
        None => format!("{what} by a process that is not yours to see"),
    }
}

/// The number of the socket that holds the port.
fn inode(publish: &Publish) -> Option<String> {
    let name = if publish.protocol == Protocol::Tcp { "tcp" } else { "udp" };
    let listens = |state: &str| publish.protocol == Protocol::Udp || state == "0A";
    for (file, v4) in [(format!("/proc/net/{name}"), true), (format!("/proc/net/{name}6"), false)] {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (words.get(1), words.get(3), words.get(9)) else {
                continue;
            };
            let Some((address, port)) = local.split_once(':') else { continue };
            let any = address.bytes().all(|c| c == b'0');
            let same = v4 == publish.bind.is_ipv4() && address == hexadecimal(publish.bind);
            if u16::from_str_radix(port, 16) == Ok(publish.bind.port())
                && listens(state)
                && (any || same || publish.bind.ip().is_unspecified())
            {
                return Some((*inode).to_owned());
            }
        }
    }
    None
}

/// An address as the system lists it: words of 32 bits, each in the order of this machine.
fn hexadecimal(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect()
}

/// The process that has this socket open, if it is to be seen.
fn process(inode: &str) -> Option<String> {
    let socket = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().filter(|name| name.bytes().all(|c| c.is_ascii_digit())) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = files
            .flatten()
            .any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == Path::new(&socket)));
        if holds {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("process {number} ({})", name.trim().escape_default()));
        }
    }
    None
}
