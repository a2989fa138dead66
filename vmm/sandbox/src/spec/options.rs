//! What else can be asked of a container, all of it optional and spelled as docker's flags.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{HealthCheck, Relay, Share, SpecError, Volume};

/// What a container has beyond its process, its name and its writable layer. The default is that of
/// docker's `run` without flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerOptions {
    /// All devices of the guest, a `/sys` and control groups that can be written, nothing masked.
    /// Capabilities and the filter of system calls are said by themselves.
    pub privileged: bool,
    /// Size of `/dev/shm` in bytes; if absent, 64 MiB or an eighth of the guest's memory.
    pub shm_bytes: Option<u64>,
    /// Limit of the container's memory in bytes; without one, it is the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Kernel parameters by their dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// Most processes and threads.
    pub pids_limit: Option<u32>,
    /// Lines of `/etc/hosts` beside the usual ones.
    pub hosts: Vec<Host>,
    /// Directories that are no part of the writable layer.
    pub volumes: Vec<Volume>,
    /// Directories and files of the host. The machine has a device for each, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// The program is the child of a small init, which forwards signals and reaps.
    pub init: bool,
    /// Devices of the guest.
    pub devices: Vec<Device>,
    /// How it is found out whether it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Words for other programs, in the OCI specification.
    pub annotations: BTreeMap<String, String>,
    /// Connections between the host and the container that need no network.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<Relay>,
}

/// A device of the guest that a container may use, parsed from `PATH[:PATH][:ACCESS]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its absolute path in the guest.
    pub source: String,
    /// Its absolute path in the container.
    pub path: String,
    /// What the container may do: letters of `r` (read), `w` (write) and `m` (make a node).
    pub access: String,
}

impl FromStr for Device {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let access = |word: &str| !word.is_empty() && word.chars().all(|c| "rwm".contains(c));
        let words: Vec<&str> = text.split(':').collect();
        let (source, path, rights) = match words[..] {
            [source] => (source, source, "rwm"),
            [source, word] if access(word) => (source, source, word),
            [source, path] => (source, path, "rwm"),
            [source, path, word] if access(word) => (source, path, word),
            _ => ("", "", ""),
        };
        let good = |path: &str| {
            path.starts_with("/")
                && !path.ends_with('/')
                && !path.contains('\0')
                && path.split('/').all(|part| part != "..")
        };
        if !good(source) || !good(path) {
            let hint = "write PATH[:PATH][:rwm] with absolute paths in the guest and in the container, e.g. /dev/fuse";
            return Err(SpecError::Flag { what: "device", text: text.to_owned(), hint });
        }
        Ok(Self { source: source.to_owned(), path: path.to_owned(), access: rights.to_owned() })
    }
}

/// Parses the `NAME=VALUE` of an annotation; without `=` the value is empty.
///
/// # Errors
/// It has no name.
pub fn annotation(text: &str) -> Result<(String, String), SpecError> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() || text.contains('\0') {
        let hint = "write NAME=VALUE";
        return Err(SpecError::Flag { what: "annotation", text: text.to_owned(), hint });
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Parses the `NAME=VALUE` of a kernel parameter.
///
/// # Errors
/// It has another form.
pub fn sysctl(text: &str) -> Result<(String, String), SpecError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    match text.split_once('=') {
        Some((name, value))
            if name.chars().all(plain)
                && name.split(['.', '/']).all(|part| !part.is_empty())
                && !value.contains('\0') =>
        {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => {
            let hint = "write NAME=VALUE, e.g. net.ipv4.ip_forward=1";
            Err(SpecError::Flag { what: "kernel parameter", text: text.to_owned(), hint })
        }
    }
}

/// A line of `/etc/hosts`, parsed from `NAME:ADDRESS` or `NAME=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

impl FromStr for Host {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = || SpecError::Flag {
            what: "host",
            text: text.to_owned(),
            hint: "write NAME:ADDRESS with an IPv4 or IPv6 address, e.g. db:10.0.0.2",
        };
        let (name, address) = text.split_once([':', '=']).ok_or_else(refuse)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
            return Err(refuse());
        }
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        Ok(Self { name: name.to_owned(), address: bare.parse().map_err(|_| refuse())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_annotations_are_spelled_as_dockers() {
        for (text, source, path, access) in [
            ("/dev/fuse", "/dev/fuse", "/dev/fuse", "rwm"),
            ("/dev/net/tun:r", "/dev/net/tun", "/dev/net/tun", "r"),
            ("/dev/a:/dev/b", "/dev/a", "/dev/b", "rwm"),
            ("/dev/a:/dev/b:mw", "/dev/a", "/dev/b", "mw"),
        ] {
            let device: Device = text.parse().unwrap();
            let expected = (source, path, access);
            assert_eq!((device.source.as_str(), device.path.as_str(), device.access.as_str()), expected);
        }
        for bad in ["", "fuse", "/dev/a:b", "/dev/a:/b:x", "/dev/a:/b:r:w", "/dev/", "/dev/../x", "/dev/a:"] {
            assert!(bad.parse::<Device>().is_err(), "{bad:?}");
        }
        assert_eq!(annotation("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(annotation("a"), Ok(("a".into(), String::new())));
        assert!(annotation("=b").is_err() && annotation("").is_err());
    }

    #[test]
    fn kernel_parameters_and_hosts_are_spelled_as_dockers() {
        assert_eq!(sysctl("net.core.somaxconn=7"), Ok(("net.core.somaxconn".into(), "7".into())));
        assert_eq!(sysctl("kernel.domainname=a=b").unwrap().1, "a=b");
        for bad in ["", "x", "=1", "a b=1", "a=\0", "net..ip=1", ".a=1", "a.=1"] {
            assert!(sysctl(bad).is_err(), "{bad:?}");
        }
        for (text, name, address) in [
            ("db:10.0.0.2", "db", "10.0.0.2"),
            ("db=10.0.0.2", "db", "10.0.0.2"),
            ("six:::1", "six", "::1"),
            ("six:[fe80::1]", "six", "fe80::1"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!((host.name.as_str(), host.address.to_string().as_str()), (name, address));
        }
        for bad in ["", "db", ":1.2.3.4", "db:", "db:host-gateway", "a b:1.2.3.4", "a\n:1.2.3.4", "db:1.2.3"]
        {
            assert!(bad.parse::<Host>().is_err(), "{bad:?}");
        }
    }
}
