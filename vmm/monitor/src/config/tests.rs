use serde_json::{Value, json};

use super::*;

fn minimal() -> Value {
    json!({"schema": 1, "kernel": {"path": "/boot/vmlinux"}})
}

fn parse(value: &Value) -> Result<MachineConfig, ConfigError> {
    MachineConfig::from_json(value.to_string().as_bytes())
}

#[test]
fn the_least_that_is_a_machine_is_the_default_one() {
    let config = parse(&minimal()).unwrap();
    assert_eq!(config, MachineConfig::new(FileSource::Path("/boot/vmlinux".into())));
    assert_eq!((config.cpus.get(), config.memory_bytes.get()), (1, 128 << 20));
}

#[test]
fn everything_survives_a_round_trip() {
    let mut config = MachineConfig::new(FileSource::Fd(3));
    config.memory_bytes = MemorySize::new(5 << 30).unwrap();
    config.hotplug_bytes = HotplugSize::new(3 << 30).unwrap();
    config.give_back = true;
    config.cpus = CpuCount::new(32).unwrap();
    config.nested = true;
    config.initrd = Some(FileSource::Path("/i".into()));
    config.command_line = CommandLine::new("a=b c=\"d e\"").unwrap();
    config.boot_protocol = BootProtocol::Pvh;
    config.platform = Platform::Mptable;
    let disk = |id: &str| DiskConfig::new(DiskId::new(id).unwrap(), FileSource::Fd(4), true);
    let parts = vec![FileSource::Fd(5), FileSource::Path("/layers/2.data".into())];
    config.disks = vec![disk("root"), DiskConfig { followed_by: parts, ..disk("image") }];
    config.rng = true;
    config.immutable_images = true;
    config.console = Endpoint::Stream;
    config.serial = Endpoint::Pair { input: FileSource::Fd(0), output: FileSource::Fd(1) };
    config.vsock = Some(VsockConfig { power_port: Some(500_002), ..VsockConfig::default() });
    let network = |id: &str, n, link| {
        let mac = MacAddress::new([2, 0, 0, 0, 0, n]).unwrap();
        NetworkConfig::new(NetworkId::new(id).unwrap(), mac, link)
    };
    let tap = |name: Option<&str>, queues: &[u32]| {
        NetworkLink::Tap(TapLink {
            name: name.map(|name| TapName::new(name).unwrap()),
            queues: queues.iter().map(|number| FileSource::Fd(*number)).collect(),
            ..TapLink::default()
        })
    };
    config.networks = vec![
        network("none", 1, NetworkLink::None),
        network("user", 2, NetworkLink::Datagram(DatagramLink { socket: FileSource::Fd(6), header: true })),
        network("passt", 3, NetworkLink::Stream(FileSource::Path("/run/passt".into()))),
        network("tap", 4, tap(Some("tap0"), &[])),
        network("taps", 5, tap(None, &[7, 8])),
        network("both", 6, tap(Some("tap1"), &[9])),
        network("peer", 7, NetworkLink::VhostUser(FileSource::Path("/run/ovs".into()))),
    ];
    config.networks[4].queues = QueuePairs::new(2).unwrap();
    if let NetworkLink::Tap(tap) = &mut config.networks[4].link {
        tap.vhost = vec![FileSource::Fd(10), FileSource::Fd(11)];
    }
    if let NetworkLink::Tap(tap) = &mut config.networks[3].link {
        tap.no_vhost = true;
    }
    config.networks[3].queues = QueuePairs::new(8).unwrap();
    config.networks[1].mtu = Mtu::new(65_520).unwrap();
    let share = |tag: &str, source| ShareConfig::new(ShareTag::new(tag).unwrap(), source, tag == "ro");
    config.shares =
        vec![share("work", FileSource::Path("/home/me/work".into())), share("ro", FileSource::Fd(10))];
    config.spare_slots = 2;
    config.on_reset = OnReset::Reboot;
    config.time_limit_ms = Some(1);
    assert_eq!(MachineConfig::from_json(config.to_json().as_bytes()).unwrap(), config);
    config.shares.clear();
    config.monitor_user = Some(MonitorUser { uid: 1, gid: u32::MAX - 1 });
    assert_eq!(MachineConfig::from_json(config.to_json().as_bytes()).unwrap(), config);
}

#[test]
fn every_refusal_names_its_field() {
    let disk = |id: &str| json!({"id": id, "source": {"fd": 3}});
    let table: Vec<(&str, &str, Value)> = vec![
        ("schema", "schema", json!(2)),
        ("cpus", "cpus", json!(0)),
        ("cpus", "cpus", json!(33)),
        ("cpus", "cpus", json!(10_000)),
        ("cpus", "cpus", json!("two")),
        ("cpus", "cpus", json!(-1)),
        ("nested", "nested", json!("yes")),
        ("memory_bytes", "memory_bytes", json!(4096)),
        ("memory_bytes", "memory_bytes", json!((2u64 << 20) + 1)),
        ("memory_bytes", "memory_bytes", json!(1u64 << 41)),
        ("memory_bytes", "memory_bytes", json!("128M")),
        ("hotplug_bytes", "hotplug_bytes", json!(64u64 << 20)),
        ("hotplug_bytes", "hotplug_bytes", json!(1u64 << 40)),
        ("hotplug_bytes", "hotplug_bytes", json!(1u64 << 41)),
        ("log_bytes", "log_bytes", json!(4095)),
        ("log_bytes", "log_bytes", json!((1u64 << 40) + 1)),
        ("kernel", "kernel", json!(null)),
        ("kernel", "kernel", json!({"url": "x"})),
        ("initrd", "initrd", json!(5)),
        ("command_line", "command_line", json!("a\nb")),
        ("command_line", "command_line", json!("a\u{0}b")),
        ("command_line", "command_line", json!("x".repeat(65_536))),
        ("boot_protocol", "boot_protocol", json!("multiboot")),
        ("platform", "platform", json!("fdt")),
        ("disks[1]", "disks", json!([disk("a"), {"id": "b"}])),
        ("disks[0]", "disks", json!([{"id": "", "source": {"fd": 3}}])),
        ("disks[0]", "disks", json!([{"id": "a", "source": {"fd": 3}, "cache": true}])),
        ("disks[0]", "disks", json!([{"id": "a", "source": {"fd": 3}, "read_only": 0}])),
        (
            "disks[0].followed_by",
            "disks",
            json!([{"id": "a", "source": {"fd": 3}, "followed_by": [{"fd": 4}]}]),
        ),
        (
            "disks[1].followed_by",
            "disks",
            json!([disk("a"), {"id": "b", "source": {"fd": 3}, "read_only": true,
            "followed_by": vec![json!({"fd": 4}); 128]}]),
        ),
        ("disks", "disks", json!([disk("a"), disk("a")])),
        ("disks", "disks", json!([disk("volume-0123456789abc-a"), disk("volume-0123456789abc-b")])),
        ("disks", "disks", json!((0..65).map(|n| disk(&n.to_string())).collect::<Vec<_>>())),
        ("vsock", "vsock", json!({"cid": 2})),
        ("vsock", "vsock", json!({"cid": u32::MAX})),
        ("vsock", "vsock", json!({"port": 2})),
        ("spare_slots", "spare_slots", json!(65)),
        ("spare_slots", "spare_slots", json!(300)),
        ("serial", "serial", json!("screen")),
        ("on_reset", "on_reset", json!("stay")),
        ("time_limit_ms", "time_limit_ms", json!(0)),
        ("monitor_user", "monitor_user", json!({"uid": 0, "gid": 1})),
        ("monitor_user", "monitor_user", json!({"uid": 1, "gid": 0})),
        ("monitor_user", "monitor_user", json!({"uid": 1, "gid": u32::MAX})),
        ("monitor_user", "monitor_user", json!({"uid": 1})),
        ("monitor_user", "monitor_user", json!({"uid": 1, "gid": 1, "groups": []})),
        ("memory", "memory", json!(1)),
    ];
    for (named, field, value) in table {
        let mut object = minimal();
        object[field] = value.clone();
        let error = parse(&object).expect_err(&format!("{field}: {value} was taken"));
        assert_eq!(error.field, named, "{error}");
    }
    assert_eq!(MachineConfig::from_json(b"{}").unwrap_err().field, "schema");
    assert_eq!(MachineConfig::from_json(b"{\"schema\": 1}").unwrap_err().field, "kernel");
    assert_eq!(MachineConfig::from_json(b"[]").unwrap_err().field, "(file)");
    assert_eq!(MachineConfig::from_json(b"{\"sch").unwrap_err().field, "(file)");
}

#[test]
fn every_refusal_of_a_network_names_its_field() {
    const MAC: &str = "52:54:00:00:00:01";
    fn net(id: &str, mac: &str, link: impl Into<Value>) -> Value {
        json!({"id": id, "mac": mac, "link": link.into()})
    }
    let table: Vec<(&str, Value)> = vec![
        ("networks", json!({})),
        ("networks[0]", json!([{"id": "a"}])),
        ("networks[0]", json!([net("", MAC, "none")])),
        ("networks[0]", json!([net("a", "52:54:00:00:00", "none")])),
        ("networks[0]", json!([net("a", "52:54:00:00:00:0g", "none")])),
        ("networks[0]", json!([net("a", "52:54:00:00:00:+1", "none")])),
        ("networks[0]", json!([net("a", "52:54:00:00:00:01:02", "none")])),
        ("networks[0]", json!([net("a", "01:54:00:00:00:01", "none")])),
        ("networks[0]", json!([net("a", "00:00:00:00:00:00", "none")])),
        ("networks[0]", json!([{"id": "a", "mac": {"sed": "x"}}])),
        ("networks[0]", json!([{"id": "a", "mac": MAC, "mtu": 67}])),
        ("networks[0]", json!([{"id": "a", "mac": MAC, "mtu": 65_521}])),
        ("networks[0]", json!([{"id": "a", "mac": MAC, "queues": 0}])),
        ("networks[0]", json!([{"id": "a", "mac": MAC, "queues": 9}])),
        ("networks[0]", json!([{"id": "a", "mac": MAC, "speed": 9}])),
        ("networks[0]", json!([net("a", MAC, "user")])),
        ("networks[0]", json!([net("a", MAC, json!({"datagram": {"fd": 3}}))])),
        ("networks[0]", json!([net("a", MAC, json!({"tap": {"name": "a/b"}}))])),
        ("networks[0]", json!([net("a", MAC, json!({"tap": {"name": "tap%d"}}))])),
        ("networks[0]", json!([net("a", MAC, json!({"tap": {"name": "0123456789abcdef"}}))])),
        (
            "networks[0].link.datagram.socket",
            json!([net("a", MAC, json!({"datagram": {"socket": {"path": "/x"}}}))]),
        ),
        ("networks[0].queues", json!([{"id": "a", "mac": MAC, "queues": 2, "link": {"stream": {"fd": 3}}}])),
        (
            "networks[0].link.tap.vhost",
            json!([net("a", MAC, json!({"tap": {"queues": [{"fd": 3}], "vhost": [{"fd": 4}, {"fd": 5}]}}))]),
        ),
        ("networks[0].link.tap", json!([net("a", MAC, json!({"tap": {}}))])),
        (
            "networks[0].link.tap.queues",
            json!([net("a", MAC, json!({"tap": {"queues": [{"fd": 3}, {"fd": 4}]}}))]),
        ),
        ("networks[1].id", json!([net("a", MAC, "none"), net("a", "52:54:00:00:00:02", "none")])),
        ("networks[1].mac", json!([net("a", MAC, "none"), net("b", MAC, "none")])),
        ("networks", (0..65).map(|n| json!({"id": n.to_string(), "mac": {"seed": n.to_string()}})).collect()),
    ];
    for (named, value) in table {
        let mut object = minimal();
        object["networks"] = value.clone();
        let error = parse(&object).expect_err(&format!("{value} was taken"));
        assert_eq!(error.field, named, "{error}");
    }
}

#[test]
fn an_address_comes_from_a_text_or_from_a_seed() {
    let mut object = minimal();
    object["networks"] = json!([
        {"id": "a", "mac": "52:54:00:Ab:0c:01"},
        {"id": "b", "mac": {"seed": "sandbox-1"}},
    ]);
    let config = parse(&object).unwrap();
    assert_eq!(config.networks[0].mac.bytes(), [0x52, 0x54, 0, 0xab, 0x0c, 1]);
    assert_eq!(config.networks[1].mac, MacAddress::from_seed("sandbox-1"));
    assert_eq!(serde_json::to_value(config.networks[0].mac).unwrap(), json!("52:54:00:ab:0c:01"));
    // Machines that exist keep the addresses that they have.
    assert_eq!(MacAddress::from_seed("sandbox-1").to_string(), "5a:53:f7:3a:df:aa");
    let seeds: std::collections::HashSet<_> = (0..10_000)
        .map(|n| {
            let mac = MacAddress::from_seed(&n.to_string());
            // Locally administered, and one station's.
            assert_eq!(mac.bytes()[0] & 3, 2);
            MacAddress::new(mac.bytes()).unwrap()
        })
        .collect();
    assert_eq!(seeds.len(), 10_000);
}

#[test]
fn standard_input_has_one_user() {
    let mut object = minimal();
    object["serial"] = json!("stdio");
    parse(&object).unwrap();
    object["console"] = json!("stdio");
    assert_eq!(parse(&object).unwrap_err().field, "console");
}

#[test]
fn a_user_of_the_monitor_s_own_rules_out_what_it_could_not_do() {
    let share = json!([{"tag": "s", "source": {"path": "/s"}}]);
    for (field, value, word) in [
        ("confine", json!("off"), "confine"),
        ("shares", share, "shared directories"),
        ("serial", json!({"log": {"path": "/l"}}), "log"),
        ("console", json!({"log": {"fd": 3}}), "log"),
        ("vsock", json!({"unix_socket": "/s"}), "unix_socket"),
    ] {
        let mut object = minimal();
        object["monitor_user"] = json!({"uid": 1, "gid": 1});
        assert!(parse(&object).is_ok());
        object[field] = value;
        let error = parse(&object).unwrap_err();
        assert!(error.field == "monitor_user" && error.reason.contains(word), "{error}");
    }
}

#[test]
fn the_documented_machine_is_one_and_names_every_field() {
    let document = include_str!("../../../../docs/machine-config.md");
    let example = document.split_once("```json").unwrap().1.split_once("```").unwrap().0;
    let config = MachineConfig::from_json(example.as_bytes()).unwrap();
    let written: Value = serde_json::from_str(&config.to_json()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(example).unwrap(), written);
}
