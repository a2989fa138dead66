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
    config.spare_slots = 2;
    config.on_reset = OnReset::Reboot;
    config.time_limit_ms = Some(1);
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
fn standard_input_has_one_user() {
    let mut object = minimal();
    object["serial"] = json!("stdio");
    parse(&object).unwrap();
    object["console"] = json!("stdio");
    assert_eq!(parse(&object).unwrap_err().field, "console");
}

#[test]
fn the_documented_machine_is_one_and_names_every_field() {
    let document = include_str!("../../../../docs/machine-config.md");
    let example = document.split_once("```json").unwrap().1.split_once("```").unwrap().0;
    let config = MachineConfig::from_json(example.as_bytes()).unwrap();
    let written: Value = serde_json::from_str(&config.to_json()).unwrap();
    assert_eq!(serde_json::from_str::<Value>(example).unwrap(), written);
}
