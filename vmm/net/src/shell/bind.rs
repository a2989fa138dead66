//! Sockets that published ports listen at. Whoever makes one names what is in its way.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketType, sockopt};

use super::socket::internet;
use crate::config::{Protocol, Publish};
use crate::sys;

/// A port that cannot be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {publish}: {what}")]
pub struct ListenError {
    publish: Publish,
    what: String,
}

/// A socket that listens at a port of the host.
#[derive(Debug)]
pub struct Bound {
    /// It never blocks.
    pub file: OwnedFd,
    /// The port, which is not 0 any more.
    pub publish: Publish,
}

/// Listens at a port of the host; port 0 is a free one.
///
/// # Errors
/// It is taken, and by whom, as far as that is to be seen; it is for privileged programs; the host
/// does not have the address.
pub fn bind(publish: Publish) -> Result<Bound, ListenError> {
    let (file, bound) = socket(&publish).map_err(|error| ListenError {
        publish,
        what: match error {
            Errno::ADDRINUSE => super::holder::taken(&publish),
            Errno::ADDRNOTAVAIL => format!("the host has no address {}", publish.bind.ip()),
            Errno::ACCESS => format!(
                "port {} is for privileged programs only; take one above 1023, or lower \
                 net.ipv4.ip_unprivileged_port_start",
                publish.bind.port()
            ),
            other => other.to_string(),
        },
    })?;
    Ok(Bound { file, publish: Publish { bind: bound, ..publish } })
}

fn socket(publish: &Publish) -> Result<(OwnedFd, SocketAddr), Errno> {
    let family = if publish.bind.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let stream = publish.protocol == Protocol::Tcp;
    let kind = if stream { SocketType::STREAM } else { SocketType::DGRAM };
    let file = sys::socket(family, kind, None)?;
    if publish.bind.is_ipv6() {
        sockopt::set_ipv6_v6only(&file, true)?;
    }
    if stream {
        // Connections of a machine that ended do not hold its port up.
        sockopt::set_socket_reuseaddr(&file, true)?;
    }
    net::bind(&file, &publish.bind)?;
    if stream {
        net::listen(&file, 1024)?;
    }
    let bound = internet(net::getsockname(&file)?).ok_or(Errno::AFNOSUPPORT)?;
    Ok((file, bound))
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    #[test]
    fn a_port_that_needs_more_rights_says_what_to_do() {
        // Rights are those of a thread, which ends here.
        let bound = std::thread::spawn(|| {
            let mut own = capabilities(None).unwrap();
            own.effective.remove(CapabilitySet::NET_BIND_SERVICE);
            set_capabilities(None, own).unwrap();
            let free: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
                .map_or(1024, |text| text.trim().parse().unwrap());
            // Where nothing needs rights there is nothing to say.
            (free > 1).then(|| bind("1:80".parse().unwrap()).map(drop))
        });
        if let Some(bound) = bound.join().unwrap() {
            let error = bound.unwrap_err().to_string();
            assert!(error.contains("port 1 is for privileged programs only; take one above"), "{error}");
        }
    }
}
