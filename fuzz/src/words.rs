//! What people, and files that they got from others, write behind options: references of images,
//! volumes, ports, networks, rules, sizes. The first byte chooses the grammar.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use nelly_hydra::{Host, Machine, Platform, Profile};
use nelly_image::{Digest, ImageName, Reference};
use nelly_net::config::{Domain, Prefix, Prefix4, Prefix6, Publish, Rule, Server};
use nelly_sandbox::spec::network::{GuestPrefix, Network, check_network_name};
use nelly_sandbox::spec::quantity::{bytes, show_bytes};
use nelly_sandbox::spec::rights::Limit;
use nelly_sandbox::spec::{MountRequest, Relay, RelayAddress, Seccomp, SecurityOption, Tmpfs};
use nelly_sandbox::spec::{options, process};
use nelly_vmm::config::MacAddress;

use super::{spelt, text};

/// Words of all the grammars.
const WORDS: &[&str] = &[
    "docker.io/",
    "library/",
    "localhost:5000/",
    "oci:",
    "oci-archive:",
    "docker-archive:",
    "rootfs:",
    "builtin:",
    "latest",
    "@sha256:",
    "0123456789abcdef",
    "type=bind",
    "type=volume",
    "type=tmpfs",
    ",source=",
    ",target=",
    ",readonly",
    ":ro",
    ":rw",
    ",size=",
    ",mode=",
    "/tcp",
    "/udp",
    "127.0.0.1",
    "[::1]",
    "10.0.2.0/24",
    "fd00::/64",
    "*.",
    "example",
    ":80-90",
    "none",
    "user",
    "tap=",
    "unix:",
    "ip=",
    "tcp:",
    "host",
    "52:54:00:12:34:56",
    "seccomp=",
    "unconfined",
    "no-new-privileges",
    "nofile=",
    "65536",
    "18446744073709551615",
    "GiB",
    "ms",
    "KVM_CPU",
    "KVM_MEMORY",
    "KVM_PORTS_FORWARD",
    "KVM_SHARE_DIR_HOST_0",
    "DISK_0",
    "RUN_BARE_KERNEL",
    "DISTRO",
    "=",
    "\n",
    "../",
    "//",
    "\u{e9}",
    "\u{202e}",
    "\0",
    "defaultAction",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_ALLOW",
    "syscalls",
    "names",
    "action",
    "args",
    "index",
    "value",
    "op",
    "SCMP_CMP_EQ",
    "\":",
    "\",\"",
    "architectures",
    "includes",
    "caps",
    "CAP_SYS_ADMIN",
    "minKernel",
    "nosuid",
    "noexec",
    "nocopy",
    ",dst=",
    ",bind-propagation=",
];

/// Reads the text by the grammar that the first byte chooses.
///
/// # Panics
/// When what was read reads differently by what it says of itself.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether it was a sentence of the grammar.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let Some((choice, rest)) = data.split_first() else { return false };
    let text = text(&rest[..rest.len().min(2048)], WORDS);
    match choice % 26 {
        0 => again::<Reference>(&text),
        1 => name(&text),
        2 => again::<Digest>(&text),
        3 => MountRequest::of_volume(&text).is_ok(),
        4 => text.parse::<MountRequest>().is_ok(),
        5 => text.parse::<Tmpfs>().is_ok(),
        6 => publish(&text),
        7 => again::<Rule>(&text),
        8 => again::<Domain>(&text),
        9 => again::<Prefix>(&text) | again::<Prefix4>(&text) | again::<Prefix6>(&text),
        10 => again::<Server>(&text),
        11 => text.parse::<Network>().is_ok(),
        12 => again::<GuestPrefix>(&text) | check_network_name(&text).is_ok(),
        13 => again::<RelayAddress>(&text),
        14 => Relay::inward(&text).is_ok() | Relay::outward(&text).is_ok(),
        15 => again::<MacAddress>(&text),
        16 => text.parse::<SecurityOption>().is_ok(),
        17 => text.parse::<Limit>().is_ok(),
        18 => size(&text),
        19 => text.parse::<options::Device>().is_ok(),
        20 => options::annotation(&text).is_ok() | options::sysctl(&text).is_ok(),
        21 => text.parse::<options::Host>().is_ok(),
        22 => process::check_user(&text).is_ok() | process::check_group(&text).is_ok(),
        23 => hydra(&text),
        24 => Seccomp::from_json(&text, &["CAP_SYS_ADMIN"]).is_ok(),
        _ => !nelly_net::dns::nameservers(&text).is_empty() | nelly_net::dns::is_name(&text),
    }
}

/// Whether it can be read; what it says of itself then is the same thing.
fn again<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    let said = value.to_string();
    match said.parse::<T>() {
        Ok(second) => assert_eq!(value, second, "{text:?} says of itself {said:?}"),
        Err(_) => panic!("{text:?} says of itself {said:?}, which is nothing"),
    }
    true
}

/// Names reach paths and URLs: none leaves its place.
fn name(text: &str) -> bool {
    let Ok(name) = text.parse::<ImageName>() else { return false };
    assert!(name.path().split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "{text:?}");
    assert!(name.domain().chars().all(|c| c.is_ascii_graphic() && c != '/'), "{text:?}");
    assert!(name.path().chars().all(|c| c.is_ascii_graphic()), "{text:?}");
    assert_eq!(name.to_string().parse::<ImageName>().as_ref(), Ok(&name), "{text:?}");
    for said in [name.canonical(), name.familiar()] {
        let canonical = said.parse().map(|again: ImageName| again.canonical());
        assert_eq!(canonical, Ok(name.canonical()), "{text:?} says of itself {said:?}");
    }
    true
}

fn publish(text: &str) -> bool {
    let single = again::<Publish>(text);
    let Ok(all) = Publish::all(text) else { return single };
    assert!(!all.is_empty() && all.len() <= nelly_net::config::MOST_OF_RANGE, "{text:?}");
    true
}

fn size(text: &str) -> bool {
    let Ok(count) = bytes(text) else { return false };
    let said = show_bytes(count);
    assert!(!said.is_empty());
    true
}

/// Variables of the environment, one a line.
fn hydra(text: &str) -> bool {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let variables: BTreeMap<_, _> = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let host = Host { platform: Platform::LinuxUser, architecture: "x86_64" };
    let Ok(machine) = Machine::read(&variables, Profile::Isolated, host) else { return false };
    assert!(!machine.rows().is_empty());
    assert!(machine.warnings.iter().all(|warning| !warning.is_empty()));
    true
}

/// A sentence of each grammar.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let sentences: [(u8, &str); 38] = [
        (0, "docker.io/library/alpine:latest"),
        (0, "oci:/a/b:latest"),
        (0, "rootfs:/a/b"),
        (1, "localhost:5000/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
        (2, "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
        (3, "/host/path:/target:ro"),
        (3, "data:/target"),
        (4, "type=bind,source=/a,target=/b,readonly"),
        (4, "type=tmpfs,target=/b"),
        (5, "/tmp:size=1m,mode=1777"),
        (6, "127.0.0.1:8080:80/tcp"),
        (6, "8000-8010:80-90/udp"),
        (6, "[::1]:53:53"),
        (7, "*.example:80-90"),
        (7, "10.0.2.0/24:443"),
        (8, "*.example"),
        (9, "10.0.2.0/24"),
        (9, "fd00::/64"),
        (10, "127.0.0.1:53"),
        (11, "none"),
        (11, "user"),
        (11, "tap=tap0,ip=10.0.2.0/24"),
        (12, "10.0.2.0/24"),
        (13, "unix:/a"),
        (14, "127.0.0.1:80=unix:/a"),
        (15, "52:54:00:12:34:56"),
        (16, "seccomp=unconfined"),
        (16, "seccomp=/a.json"),
        (17, "nofile=1024:65536"),
        (18, "1.5GiB"),
        (19, "/dev/fuse:/dev/fuse:rw"),
        (20, "net.ipv4.ip_forward=1"),
        (21, "example:127.0.0.1"),
        (22, "user:host"),
        (23, "KVM_CPU=2\nKVM_MEMORY=4G\nKVM_PORTS_FORWARD=8080:80\nDISTRO=debian"),
        (23, "RUN_BARE_KERNEL=1\nDISK_0=/a"),
        (
            24,
            "{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"syscalls\":[{\"names\":[\"read\"],\"action\":\"SCMP_ACT_ALLOW\"}]}",
        ),
        (25, "127.0.0.1"),
    ];
    sentences.iter().map(|(choice, text)| [&[*choice], spelt(text, WORDS).as_slice()].concat()).collect()
}
