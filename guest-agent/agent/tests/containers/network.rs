//! The guest's network: a pair of connected interfaces in place of virtio-net.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nelly_agent::sys;
use nelly_protocol::messages as m;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use ttrpc::Code;

use crate::bench::{World, connect, context, refusal, spec};

crate::scenarios!(
    containers_are_in_the_guests_network,
    what_is_no_network_is_refused,
    without_a_network_nothing_changes,
);

/// The hardware address of the guest's interface.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A network namespace for this test, with an interface whose other end is in a namespace of its
/// own; the test's former namespace is entered again at the end.
struct Cable {
    before: File,
    far: Child,
}

fn run(program: &str, args: &[&str]) {
    let made = Command::new(program).args(args).output().expect(program);
    assert!(made.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&made.stderr));
}

impl Cable {
    fn new() -> Self {
        let before = File::open("/proc/self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // It says a word when it is in its namespace.
        let mut far = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; echo; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux)");
        std::io::Read::read_exact(far.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let pid = far.id().to_string();
        let mac = "52:54:00:12:34:56";
        run("ip", &["link", "add", "near", "address", mac, "type", "veth", "peer", "name", "far"]);
        run("ip", &["link", "set", "far", "netns", &pid]);
        let script = "ip addr add 10.0.2.2/24 dev far; ip addr add fd00::2/64 dev far nodad; \
                      ip link set far up; ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo nodad";
        run("nsenter", &["--net", "--target", &pid, "sh", "-ec", script]);
        Self { before, far }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = self.far.kill();
        let _ = self.far.wait();
        let _ = sys::join_namespaces(self.before.as_fd(), libc::CLONE_NEWNET);
    }
}

fn network() -> m::Network {
    let route = |gateway: &str| m::Route { gateway: gateway.to_owned(), ..Default::default() };
    let interface = m::Interface {
        mac: MAC.to_vec(),
        mtu: 1400,
        addresses: vec!["10.0.2.15/24".into(), "fd00::15/64".into()],
        routes: vec![route("10.0.2.2"), route("fd00::2")],
        ..Default::default()
    };
    m::Network {
        interfaces: vec![interface],
        nameservers: vec!["10.0.2.3".into()],
        search: vec!["lan".into()],
        hosts: vec!["10.0.2.2 host.internal".into()],
        ..Default::default()
    }
}

async fn set(world: &World, network: m::Network) -> ttrpc::Result<m::HelloResponse> {
    let (client, _serving) = connect(&world.guest).await;
    let request = m::HelloRequest {
        protocol: 1,
        features: vec!["network".into()],
        network: Some(network).into(),
        ..Default::default()
    };
    client.hello(context(), &request).await
}

/// The spec of a container in the guest's network.
fn inside(script: &str) -> Value {
    let mut spec = spec(&["sh", "-c", script]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "network");
    spec
}

async fn containers_are_in_the_guests_network(world: Arc<World>) {
    let _cable = Cable::new();
    sys::loopback_up().unwrap();
    set(&world, network()).await.unwrap();
    let script = "cat /etc/resolv.conf /etc/hosts; ip -o addr; ip route; ip -6 route; ip link show near";
    let seen = world.run_spec("seen", &inside(script)).await;
    for line in [
        "nameserver 10.0.2.3\nsearch lan\n",
        "10.0.2.15\tbox\n10.0.2.2\thost.internal\n",
        "inet 10.0.2.15/24 brd 10.0.2.255 scope global near",
        "inet6 fd00::15/64 scope global",
        "default via 10.0.2.2 dev near",
        "default via fd00::2 dev near",
        "mtu 1400",
    ] {
        assert!(seen.stdout.contains(line), "{line}: {seen:?}");
    }
    assert!(!seen.stdout.contains("tentative"), "{seen:?}");
    // Both families reach what is behind the gateway, at once.
    let there =
        world.run_spec("there", &inside("ping -c1 -W5 192.0.2.1 && ping -6 -c1 -W5 2001:db8::1")).await;
    assert_eq!(there.exit.exit_code, 0, "{there:?}");

    // Said again, it is set again; with others names for later containers.
    let mut again = network();
    again.interfaces[0].mtu = 1500;
    again.nameservers = Vec::new();
    set(&world, again).await.unwrap();
    let later = world.run_spec("later", &inside("cat /etc/resolv.conf; ip link show near; ip -o addr")).await;
    assert!(
        later.stdout.starts_with("nameserver 10.9.8.7\n") && later.stdout.contains("mtu 1500"),
        "{later:?}"
    );
    assert_eq!(later.stdout.matches("10.0.2.15/24").count(), 1, "{later:?}");

    // A container with a network namespace of its own has loopback, and its image's files.
    set(&world, network()).await.unwrap();
    let alone = world.sh("alone", "cat /etc/resolv.conf /etc/hosts; ip -o link; ping -c1 -W1 10.0.2.2").await;
    assert!(alone.stdout.starts_with("nameserver 10.9.8.7\n"), "{alone:?}");
    assert!(!alone.stdout.contains("host.internal") && !alone.stdout.contains("near"), "{alone:?}");
    assert_ne!(alone.exit.exit_code, 0, "{alone:?}");

    // A further container shares with the first by its namespace, which is the guest's.
    world.idle_spec("first", &inside("sleep 1000")).await;
    let state = world.client.state(context(), &m::StateRequest::default()).await.unwrap();
    let first = state.containers.iter().find(|one| one.id == "first").unwrap().pid;
    let mut sharing = spec(&["sh", "-c", "cat /etc/hosts; ping -c1 -W5 192.0.2.1"]);
    for namespace in sharing["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "network" {
            namespace["path"] = format!("/proc/{first}/ns/net").into();
        }
    }
    let shared = world.run_spec("shared", &sharing).await;
    assert_eq!(shared.exit.exit_code, 0, "{shared:?}");
    assert!(shared.stdout.contains("host.internal"), "{shared:?}");
}

async fn what_is_no_network_is_refused(world: Arc<World>) {
    let _cable = Cable::new();
    type Spoil = fn(&mut m::Network);
    let spoils: [(Spoil, Code, &str); 6] = [
        (
            |one| one.interfaces[0].mac[5] = 0x57,
            Code::INVALID_ARGUMENT,
            "has the hardware address 52:54:00:12:34:57; there are: ",
        ),
        (|one| one.interfaces[0].mac[5] = 0x57, Code::INVALID_ARGUMENT, "near (52:54:00:12:34:56)"),
        (
            |one| one.interfaces[0].addresses[1] = "fd00::15".into(),
            Code::INVALID_ARGUMENT,
            "network.interfaces.addresses",
        ),
        (|one| one.nameservers[0] = "dns".into(), Code::INVALID_ARGUMENT, "network.nameservers"),
        // What the kernel alone can judge, by its own word: the gateway is the interface itself.
        (
            |one| one.interfaces[0].routes[0].gateway = "10.0.2.15".into(),
            Code::INTERNAL,
            "cannot set the route to 0.0.0.0/0 by 10.0.2.15: Invalid argument",
        ),
        (
            |one| one.interfaces[0].addresses[1] = "ff02::1/64".into(),
            Code::INTERNAL,
            "cannot set the address ff02::1/64",
        ),
    ];
    for (spoil, code, words) in spoils {
        let mut bad = network();
        spoil(&mut bad);
        let (found, message) = refusal(set(&world, bad).await);
        assert_eq!(found, code, "{message}");
        assert!(message.contains(words), "{words}: {message}");
    }
    // A connection that was refused has not been greeted, and a good network can be set afterwards.
    set(&world, network()).await.unwrap();
}

async fn without_a_network_nothing_changes(world: Arc<World>) {
    let seen = world.sh("seen", "cat /etc/resolv.conf /etc/hosts; ip -o link").await;
    assert!(seen.stdout.starts_with("nameserver 10.9.8.7\n127.0.0.1\tlocalhost\n"), "{seen:?}");
    assert!(seen.stdout.contains("127.0.1.1\tbox\n"), "{seen:?}");
    assert_eq!(seen.stdout.matches("mtu").count(), 1, "only loopback: {seen:?}");
}
