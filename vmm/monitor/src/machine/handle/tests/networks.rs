//! Machines with networks: who opens their ends, and what is seen of them.

use std::os::unix::net::UnixListener;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use super::*;
use crate::config::{
    DatagramLink, FileSource, MacAddress, NetworkConfig, NetworkId, NetworkLink, TapLink, TapName,
};
use crate::machine::DeviceState;
use crate::virtio::spec::{feature, register, status};

pub(super) fn network(id: &str, link: NetworkLink) -> NetworkConfig {
    NetworkConfig::new(NetworkId::new(id).unwrap(), MacAddress::from_seed(id), link)
}

/// What a driver of the first slot does up to DRIVER_OK, with a pair of queues in guest memory. It
/// takes these of the first 32 features.
pub(super) fn drive(features: u32) -> Vec<Step> {
    let driven = status::ACKNOWLEDGE | status::DRIVER;
    let negotiated = driven | status::FEATURES_OK;
    let mut writes = vec![
        (register::STATUS, u32::from(status::ACKNOWLEDGE)),
        (register::STATUS, u32::from(driven)),
        (register::DRIVER_FEATURES_SEL, 0),
        (register::DRIVER_FEATURES, features),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, u32::try_from(feature::VERSION_1 >> 32).unwrap()),
        (register::STATUS, u32::from(negotiated)),
    ];
    for queue in 0..2 {
        let base = 0x20_0000 + queue * 0x1_0000;
        writes.extend([
            (register::QUEUE_SEL, queue),
            (register::QUEUE_NUM, 16),
            (register::QUEUE_DESC_LOW, base),
            (register::QUEUE_DRIVER_LOW, base + 0x1000),
            (register::QUEUE_DEVICE_LOW, base + 0x2000),
            (register::QUEUE_READY, 1),
        ]);
    }
    writes.push((register::STATUS, u32::from(negotiated | status::DRIVER_OK)));
    let slot = |register: u64| layout::VIRTIO_MMIO + register;
    let mut steps: Vec<_> =
        writes.into_iter().map(|(register, value)| Step::write32(slot(register), value)).collect();
    steps.push(Step::read32(slot(register::STATUS)));
    steps
}

/// Looks at the machine's devices until they are as `wanted`.
pub(super) fn until(machine: &Machine, wanted: impl Fn(&[DeviceState]) -> bool) -> Vec<DeviceState> {
    for _ in 0..10_000 {
        let devices = machine.inspect().unwrap().devices;
        if wanted(&devices) {
            return devices;
        }
        std::thread::yield_now();
    }
    panic!("{:?}", machine.inspect());
}

#[test]
fn a_network_is_driven_paused_and_loses_its_peer() {
    let (near, far) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None).unwrap();
    // Programs that other tests start would hold the peer.
    for end in [&near, &far] {
        fcntl_setfd(end, FdFlags::CLOEXEC).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("passt")).unwrap();
    let fake = Fake::new();
    fake.script(0, drive(1 << 1 | 1 << 7 | 1 << 16));
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    config.networks = vec![
        network("user", NetworkLink::Datagram(DatagramLink { socket: resources.add(near), header: true })),
        network("passt", NetworkLink::Stream(FileSource::Path(folder.path().join("passt")))),
        network("none", NetworkLink::None),
    ];
    let machine = start_with(&fake, &config, resources).unwrap();
    let pairs = |devices: &[DeviceState]| devices[0].network.map(|network| network.pairs);
    let devices = until(&machine, |devices| pairs(devices) == Some(1));
    let seen: Vec<_> = devices
        .iter()
        .map(|device| {
            (device.kind.as_str(), device.name.as_deref().unwrap(), device.network.unwrap().link_up)
        })
        .collect();
    assert_eq!(seen, [("net", "user", true), ("net", "passt", true), ("net", "none", false)]);
    // The peer hears of the driver, and again after a pause.
    let hello = || {
        let mut message = [0; 64];
        let (_, len) = recv(&far, &mut message, RecvFlags::empty()).unwrap();
        assert_eq!(message[..len], *b"NLNK\x01\0\0\0\x03\0\0\0\xdc\x05\0\0");
    };
    hello();
    machine.pause().unwrap();
    machine.resume().unwrap();
    hello();
    // The listener's end is the machine's.
    let (mut peer, _) = listener.accept().unwrap();
    drop(far);
    let devices =
        until(&machine, |devices| !devices[0].network.unwrap().link_up || !devices[0].faults.is_empty());
    assert!(devices[0].faults.iter().all(|fault| fault.kind == "host"), "{devices:?}");
    let network =
        machine.inspect_device(&crate::config::DeviceName::Network(NetworkId::new("user").unwrap()));
    assert_eq!(network.unwrap().kind, "net");
    machine.stop().unwrap();
    assert_eq!(machine.wait().reason, EndReason::Stopped);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    assert_gone(&fake);
}

#[test]
fn a_link_that_cannot_be_had_names_itself() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = FileSource::Path(folder.path().join("nobody"));
    let tap = TapLink { name: Some(TapName::new("lo").unwrap()), ..TapLink::default() };
    for (link, words) in [
        (NetworkLink::Stream(nobody), ["networks[0].link.stream", "nobody"]),
        (NetworkLink::Stream(FileSource::Path("/dev/null".into())), ["networks[0].link.stream", "/dev/null"]),
        (NetworkLink::Tap(tap), ["networks[0].link.tap.name", "the tap lo"]),
    ] {
        let fake = Fake::new();
        let mut resources = Resources::new();
        let mut config = config(&mut resources);
        config.networks = vec![network("a", link)];
        let error = start_with(&fake, &config, resources).unwrap_err();
        let text = format!("{error:?} {error}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_gone(&fake);
    }
    let fake = Fake::new();
    let mut resources = Resources::new();
    let mut config = config(&mut resources);
    let file = resources.add(tempfile::tempfile().unwrap());
    config.networks = vec![network("a", NetworkLink::Datagram(DatagramLink { socket: file, header: true }))];
    let error = start_with(&fake, &config, resources).unwrap_err();
    assert!(format!("{error:?} {error}").contains("the link of the network \\\"a\\\""), "{error:?}");
    assert_gone(&fake);
}
