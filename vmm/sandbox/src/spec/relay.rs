//! Relays: connections between the host and a container that need no network.
//!
//! A relay listens at one address and joins each connection there with one to the other address.
//! One of the two is the host's, the other the container's: `--relay HOST=GUEST` listens on the
//! host, `--relay-out GUEST=HOST` in the container. So what stands first always listens.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Most relays of a container.
pub const RELAYS_MOST: usize = 32;

/// Where the user's SSH agent is reached in a container, if that was asked for.
pub const SSH_AGENT: &str = "/dev/ssh-agent.sock";

/// Longest path, in bytes.
const PATH_MOST: usize = 4095;

const HINT: &str = "an address is unix:PATH or a path that begins with /, ./ or ../, or tcp:PORT, 127.0.0.1:PORT or PORT, a number from 1 to 65535";

/// A place where somebody listens: `unix:PATH` or `tcp:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RelayAddress {
    /// A Unix stream socket.
    Unix(PathBuf),
    /// A TCP port of the loopback address 127.0.0.1; 0 is a free one, to listen at on the host.
    Tcp(u16),
}

impl FromStr for RelayAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refuse = || SpecError::Flag { what: "address of a relay", text: text.to_owned(), hint: HINT };
        let port = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten().map(Self::Tcp).ok_or_else(refuse)
        };
        if let Some(text) = text.strip_prefix("tcp:").or_else(|| text.strip_prefix("127.0.0.1:")) {
            return port(text);
        }
        let path = match text.strip_prefix("unix:") {
            Some(path) => path,
            None if ["/", "./", "../"].iter().any(|begin| text.starts_with(begin)) => text,
            None => return port(text),
        };
        let last = path.rsplit('/').next().unwrap_or_default();
        let good = !["", ".", ".."].contains(&last) && path.len() <= PATH_MOST && !path.contains('\0');
        if good { Ok(Self::Unix(path.into())) } else { Err(refuse()) }
    }
}

impl TryFrom<String> for RelayAddress {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<RelayAddress> for String {
    fn from(address: RelayAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(port) => write!(f, "tcp:{port}"),
        }
    }
}

impl RelayAddress {
    /// The same with an absolute path, for a process with another working directory.
    ///
    /// # Errors
    /// The working directory is gone.
    fn absolute(self) -> io::Result<Self> {
        match self {
            Self::Unix(path) => std::path::absolute(path).map(Self::Unix),
            Self::Tcp(port) => Ok(Self::Tcp(port)),
        }
    }

    /// Checks an address of a container that is connected to.
    ///
    /// # Errors
    /// A path that is not absolute, or the port 0.
    pub fn of_guest(self) -> Result<Self, SpecError> {
        let hint = match &self {
            Self::Unix(path) if !path.is_absolute() => "a path in a container is absolute",
            Self::Tcp(0) => "a port in a container is a number from 1 to 65535",
            _ => return Ok(self),
        };
        Err(SpecError::Flag { what: "address of a relay", text: self.to_string(), hint })
    }
}

/// On which side a relay listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The host.
    Host,
    /// The container.
    Guest,
}

/// A relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Where it listens.
    pub listens: Side,
    /// The address there.
    pub listen: RelayAddress,
    /// The address of the other side that each connection is joined with.
    pub connect: RelayAddress,
}

impl Relay {
    /// One that listens on the host, from `HOST=GUEST`. The first `=` separates. A path of the host
    /// that is not absolute begins in the working directory.
    ///
    /// # Errors
    /// It has another form.
    pub fn inward(text: &str) -> Result<Self, SpecError> {
        let (host, guest) = halves(text, "write HOST=GUEST, e.g. ./app.sock=/run/app.sock or 8080=80")?;
        Ok(Self { listens: Side::Host, listen: of_host(host)?, connect: guest.of_guest()? })
    }

    /// One that listens in the container, from `GUEST=HOST`, likewise.
    ///
    /// # Errors
    /// It has another form.
    pub fn outward(text: &str) -> Result<Self, SpecError> {
        let (guest, host) = halves(text, "write GUEST=HOST, e.g. /run/db.sock=unix:./db.sock or 5432=5432")?;
        if host == RelayAddress::Tcp(0) {
            let hint = "a port that is connected to is a number from 1 to 65535";
            return Err(SpecError::Flag { what: "relay", text: text.to_owned(), hint });
        }
        Ok(Self { listens: Side::Guest, listen: guest.of_guest()?, connect: of_host(host)? })
    }

    /// The one that lets a container reach the SSH agent whose socket is `path`, which is absolute.
    #[must_use]
    pub fn ssh_agent(path: &Path) -> Self {
        Self {
            listens: Side::Guest,
            listen: RelayAddress::Unix(SSH_AGENT.into()),
            connect: RelayAddress::Unix(path.to_owned()),
        }
    }

    /// Checks that relays go together.
    ///
    /// # Errors
    /// There are too many, or two listen at one address.
    pub fn check_all(relays: &[Self]) -> Result<(), SpecError> {
        if relays.len() > RELAYS_MOST {
            let hint = "a container has at most 32 relays";
            return Err(SpecError::Flag { what: "number of relays", text: relays.len().to_string(), hint });
        }
        for (index, relay) in relays.iter().enumerate() {
            let same = |other: &Self| {
                (other.listens, &other.listen) == (relay.listens, &relay.listen)
                    && other.listen != RelayAddress::Tcp(0)
            };
            if relays.iter().take(index).any(same) {
                let hint = "two relays listen at this address";
                return Err(SpecError::Flag { what: "relay", text: relay.listen.to_string(), hint });
            }
        }
        Ok(())
    }
}

fn halves(text: &str, hint: &'static str) -> Result<(RelayAddress, RelayAddress), SpecError> {
    let refuse = || SpecError::Flag { what: "relay", text: text.to_owned(), hint };
    let (listen, connect) = text.split_once('=').ok_or_else(refuse)?;
    Ok((listen.parse()?, connect.parse()?))
}

fn of_host(address: RelayAddress) -> Result<RelayAddress, SpecError> {
    let text = address.to_string();
    let hint = "the working directory is gone: write an absolute path";
    address.absolute().map_err(|_| SpecError::Flag { what: "address of a relay", text, hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, wanted) in [
            ("unix:a", RelayAddress::Unix("a".into())),
            ("unix:./a.sock", RelayAddress::Unix("./a.sock".into())),
            ("../a", RelayAddress::Unix("../a".into())),
            ("/run/a:b", RelayAddress::Unix("/run/a:b".into())),
            ("tcp:80", RelayAddress::Tcp(80)),
            ("65535", RelayAddress::Tcp(65_535)),
            ("127.0.0.1:0", RelayAddress::Tcp(0)),
        ] {
            let address: RelayAddress = text.parse().unwrap();
            assert_eq!(address, wanted, "{text}");
            assert_eq!(address.to_string().parse(), Ok(wanted));
        }
        for bad in [
            "",
            "a",
            "unix:",
            "unix:/",
            "unix:/a/",
            "unix:..",
            "/a/.",
            "tcp:",
            "tcp:+1",
            "tcp:65536",
            "-1",
            "8080:80",
            "localhost:80",
            "0.0.0.0:80",
            "127.0.0.1:",
            "unix:a\0",
            "udp:53",
        ] {
            assert!(bad.parse::<RelayAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn relays_listen_at_what_stands_first() {
        let relay = Relay::inward("./a.sock=/run/a.sock").unwrap();
        let here = std::env::current_dir().unwrap().join("a.sock");
        assert_eq!((relay.listens, relay.listen), (Side::Host, RelayAddress::Unix(here)));
        assert_eq!(relay.connect, RelayAddress::Unix("/run/a.sock".into()));
        let relay = Relay::outward("/run/db=tcp:5432").unwrap();
        assert_eq!((relay.listens, relay.connect.clone()), (Side::Guest, RelayAddress::Tcp(5432)));
        let text = serde_json::to_string(&relay).unwrap();
        assert_eq!(text, r#"{"listens":"guest","listen":"unix:/run/db","connect":"tcp:5432"}"#);
        assert_eq!(serde_json::from_str::<Relay>(&text).unwrap(), relay);
        assert_eq!(Relay::inward("0=80").unwrap().listen, RelayAddress::Tcp(0));
        for bad in ["", "80", "80=", "=80", "80=0", "80=unix:a", "80=80=80"] {
            assert!(Relay::inward(bad).is_err(), "{bad}");
        }
        for bad in ["80=0", "0=80", "unix:a=80"] {
            assert!(Relay::outward(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn two_do_not_listen_at_one_address() {
        let of = |texts: &[&str]| texts.iter().map(|text| Relay::inward(text).unwrap()).collect::<Vec<_>>();
        assert!(Relay::check_all(&of(&["80=80", "81=80", "0=80", "0=80", "/a=80"])).is_ok());
        assert!(Relay::check_all(&of(&["80=80", "127.0.0.1:80=81"])).is_err());
        let out = Relay::outward("80=80").unwrap();
        assert!(Relay::check_all(&[of(&["80=80"]), vec![out]].concat()).is_ok());
        let many: Vec<_> = (1..=33).map(|port| format!("{port}=80")).collect();
        assert!(Relay::check_all(&of(&many.iter().map(String::as_str).collect::<Vec<_>>())).is_err());
    }
}
