//! The network device under a fake driver, with real sockets and played peers.

mod control;
mod frames;
mod hostile;
mod links;
mod played;
mod stream;
mod tap;
#[cfg(target_os = "linux")]
mod vhost_user;
pub(crate) mod vhost_user_peer;

use self::played::{Net, frame, header_of};
use super::spec::{self, feature, header::BYTES};
use super::*;
use crate::config::{MacAddress, NetworkId, NetworkLink};
use crate::virtio::spec::feature as ring;

#[test]
fn says_what_it_is() {
    let config = |link, queues: u64| {
        let mac = MacAddress::new([2, 3, 4, 5, 6, 7]).unwrap();
        let mut config = NetworkConfig::new(NetworkId::new("net0").unwrap(), mac, link);
        config.mtu = crate::config::Mtu::new(9000).unwrap();
        config.queues = crate::config::QueuePairs::new(queues).unwrap();
        config
    };
    let (device, view) = Network::new(&config(NetworkLink::None, 3), Vec::new()).unwrap();
    let always = feature::MTU | feature::MAC | feature::MRG_RXBUF | feature::STATUS | feature::CTRL_VQ;
    assert_eq!(device.features(), always | feature::MQ);
    // CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, GUEST_ANNOUNCE, CTRL_MAC_ADDR: commands of a driver that
    // starts.
    assert_eq!(device.features() & (0b1111 << 18 | 1 << 23), 0);
    assert_eq!(device.queue_sizes(), [256, 256, 256, 256, 256, 256, 64]);
    assert_eq!((device.id(), device.name().as_deref()), (1, Some("net0")));
    let read = |device: &Network| {
        let mut bytes = [0; 16];
        device.read_config(0, &mut bytes);
        bytes
    };
    assert_eq!(read(&device), [2, 3, 4, 5, 6, 7, 0, 0, 3, 0, 0x28, 0x23, 0, 0, 0, 0]);
    assert!(!view.is_up());
    let net = Net::linked();
    assert_eq!(read(&net.device)[6..10], [1, 0, 1, 0]);
    let all = Offloads::ALL.host_features() | Offloads::ALL.guest_features();
    assert_eq!(net.device.features(), always | feature::CTRL_GUEST_OFFLOADS | all);
    assert_eq!(all, 1 | 2 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 0x7 << 54);
    assert!(net.view.is_up());
}

#[test]
fn a_link_refuses_what_is_none() {
    let file = || OwnedFd::from(tempfile::tempfile().unwrap());
    let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    let (message, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let link = |link: &str| serde_json::from_str::<NetworkLink>(link).unwrap();
    for (kind, descriptor) in [
        (link(r#"{"datagram": {"socket": {"fd": 3}}}"#), file()),
        (link(r#"{"datagram": {"socket": {"fd": 3}}}"#), near.try_clone().unwrap().into()),
        (link(r#"{"stream": {"fd": 3}}"#), file()),
        (link(r#"{"stream": {"fd": 3}}"#), message.into()),
        (link(r#"{"tap": {"queues": [{"fd": 3}]}}"#), file()),
        (link(r#"{"tap": {"queues": [{"fd": 3}]}}"#), near.into()),
    ] {
        let config = NetworkConfig::new(NetworkId::new("a").unwrap(), MacAddress::from_seed("a"), kind);
        assert!(Network::new(&config, vec![descriptor]).is_err(), "{config:?}");
    }
}

#[test]
fn without_negotiation_nothing_of_it_is_done() {
    let mut net = Net::with(Some(ring::VERSION_1));
    assert_eq!(net.hello(), Some(0));
    // Frames of one buffer, without an offload either way.
    net.give(&[2000, 2000]);
    net.peer_sends(&header_of(0, 0, 0, 0, 0), &frame(1514));
    let used = net.bench.queues[0].used().unwrap();
    assert_eq!((used.len, &used.data[10..12]), (1526, &[1, 0][..]));
    net.peer_sends(&header_of(1, 0, 0, 34, 6), &frame(1514));
    net.peer_sends(&header_of(1, 1, 1000, 34, 6), &frame(1514));
    assert!(net.bench.queues[0].used().is_none());
    assert_eq!(net.view.received().bad, 2);
    net.guest_sends(&header_of(1, 0, 0, 34, 6), &frame(1514));
    assert_eq!((net.peer_reads(), net.view.sent().bad), (None, 1));
}
