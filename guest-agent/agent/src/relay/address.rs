//! Where a container is reached.

use std::fmt;

use nelly_protocol::messages as m;
use thiserror::Error;

/// Longest path, in bytes (`PATH_MAX` without its end).
pub(super) const PATH_MOST: usize = 4095;

/// An address of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix stream socket at an absolute path.
    Path(Vec<u8>),
    /// A TCP port of 127.0.0.1.
    Port(u16),
}

/// What is no address.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "an address of a container is either an absolute path of at most {PATH_MOST} bytes or a port from 1 to 65535"
)]
pub struct BadAddress;

impl TryFrom<&m::ContainerAddress> for Address {
    type Error = BadAddress;

    fn try_from(address: &m::ContainerAddress) -> Result<Self, BadAddress> {
        let path = &address.path;
        let port = u16::try_from(address.port).map_err(|_| BadAddress)?;
        match (path.is_empty(), port) {
            (true, 1..) => Ok(Self::Port(port)),
            (false, 0)
                if path.starts_with(b"/")
                    && !path.ends_with(b"/")
                    && path.len() <= PATH_MOST
                    && !path.contains(&0) =>
            {
                Ok(Self::Path(path.clone()))
            }
            _ => Err(BadAddress),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "the container's socket {}", path.escape_ascii()),
            Self::Port(port) => write!(f, "port {port} of the container's loopback address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_port() {
        let of = |path: &[u8], port| {
            Address::try_from(&m::ContainerAddress { path: path.to_vec(), port, ..Default::default() })
        };
        assert_eq!(of(b"/run/a", 0), Ok(Address::Path(b"/run/a".to_vec())));
        assert_eq!((of(b"", 1), of(b"", 65_535)), (Ok(Address::Port(1)), Ok(Address::Port(65_535))));
        let long = [b"/".as_slice(), &[b'a'; PATH_MOST]].concat();
        for (path, port) in [
            (&b""[..], 0),
            (b"", 65_536),
            (b"/a", 1),
            (b"a", 0),
            (b"/a/", 0),
            (b"/", 0),
            (b"/a\0b", 0),
            (&long, 0),
        ] {
            assert_eq!(of(path, port), Err(BadAddress), "{path:?} {port}");
        }
    }
}
