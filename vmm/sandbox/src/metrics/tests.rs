use nelly_vmm::machine::{
    BalloonState, Confinement, ConsoleState, DeviceFaults, DeviceState, DiskState, ExitCounts, FrameState,
    Inspection, MemorySizes, NetworkState, QueueState, State,
};

use super::strict::parse;
use super::*;

fn device(slot: u16, kind: &str, name: Option<&str>) -> DeviceState {
    DeviceState {
        slot,
        kind: kind.to_owned(),
        name: name.map(str::to_owned),
        status: 15,
        needs_reset: false,
        waits_for_room: false,
        interrupts: 3,
        ignored_accesses: 0,
        faults: Vec::new(),
        queues: vec![QueueState { chains: Some(7), ..Default::default() }, QueueState::default()],
        connections: None,
        network: None,
        disk: None,
        balloon: None,
    }
}

fn told(devices: Vec<DeviceState>) -> Told {
    let inspection = Inspection {
        schema: 1,
        state: State::Running,
        starts: 2,
        memory: MemorySizes { boot_bytes: 1 << 30, requested_bytes: 0, plugged_bytes: 0 },
        exits: ExitCounts::default(),
        vcpus: vec![ExitCounts { halted: 5, ..Default::default() }; 2],
        unclaimed_port_accesses: 1,
        unclaimed_memory_accesses: 0,
        devices,
        consoles: vec![ConsoleState {
            port: "serial".into(),
            output_bytes: 9,
            lost_bytes: 0,
            waiting_output_bytes: 0,
            waiting_input_bytes: 0,
        }],
        confinement: Some(Confinement { seccomp: true, landlock: 6, ..Default::default() }),
    };
    Told { inspection, cpu_ns: 1_050_000_000, resident_bytes: 4096 }
}

fn seen<'a>(name: &'a str, told: Option<&'a Told>) -> Seen<'a> {
    Seen { id: "0123", name, status: "running", restarts: 1, told }
}

fn scrape(all: &[Seen<'_>]) -> String {
    let mut scrape = Scrape::default();
    all.iter().for_each(|one| scrape.add(one));
    scrape.to_string()
}

#[test]
fn all_that_is_counted_is_told_in_the_format() {
    let disk = DiskState { reads: 4, read_bytes: 4096, throttled: 2, ..Default::default() };
    let sent = FrameState { frames: 1, bytes: 60, bad: 2, lost: 3 };
    let network = NetworkState {
        link_up: true,
        sent: Some(sent),
        received: Some(FrameState::default()),
        ..Default::default()
    };
    let fault = DeviceFaults {
        slot: 1,
        device: "block root".into(),
        kind: "loop".into(),
        first: String::new(),
        count: 12,
    };
    let told = told(vec![
        DeviceState { disk: Some(disk), faults: vec![fault], ..device(1, "block", Some("root")) },
        DeviceState { network: Some(network), ..device(2, "network", Some("net0")) },
        DeviceState { connections: Some(6), ..device(3, "vsock", None) },
        DeviceState {
            balloon: Some(BalloonState { reported_bytes: 9, given_back_bytes: 8 }),
            ..device(5, "balloon", None)
        },
        device(4, "none", None),
    ]);
    let text = scrape(&[seen("web", Some(&told)), seen("db", None)]);
    let scraped = parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    let web = ("sandbox", "web");
    let value = |family, labels: &[(&str, &str)]| scraped.value(family, &[labels, &[web]].concat());
    assert_eq!(value("nelly_sandbox_up", &[("id", "0123")]), 1.0);
    assert_eq!(scraped.value("nelly_sandbox_up", &[("sandbox", "db")]), 0.0);
    assert_eq!(value("nelly_sandbox_info", &[("status", "running")]), 1.0);
    assert_eq!(value("nelly_monitor_cpu_seconds_total", &[]), 1.05);
    assert_eq!(value("nelly_machine_memory_bytes", &[("kind", "boot")]), f64::from(1 << 30));
    assert_eq!(value("nelly_vcpu_exits_total", &[("vcpu", "1"), ("kind", "halted")]), 5.0);
    let root = [("slot", "1"), ("device", "block"), ("name", "root")];
    assert_eq!(value("nelly_disk_read_bytes_total", &root), 4096.0);
    assert_eq!(value("nelly_disk_throttled_total", &root), 2.0);
    assert_eq!(value("nelly_disk_operations_total", &[("operation", "read")]), 4.0);
    assert_eq!(value("nelly_device_faults_total", &[("kind", "loop"), ("slot", "1")]), 12.0);
    assert_eq!(value("nelly_device_requests_total", &[("queue", "0"), ("device", "vsock")]), 7.0);
    assert_eq!(value("nelly_network_frames_total", &[("direction", "sent"), ("result", "lost")]), 3.0);
    assert_eq!(value("nelly_network_bytes_total", &[("direction", "sent")]), 60.0);
    assert_eq!(value("nelly_device_connections", &[]), 6.0);
    assert_eq!(value("nelly_balloon_reported_bytes_total", &[("device", "balloon")]), 9.0);
    assert_eq!(value("nelly_balloon_given_back_bytes_total", &[("device", "balloon")]), 8.0);
    assert_eq!(value("nelly_monitor_confinement", &[("layer", "seccomp")]), 1.0);
    assert_eq!(value("nelly_monitor_confinement", &[("layer", "capabilities")]), 0.0);
    // Where the host does not tell of the process, there is no zero in its place.
    let untold = Told { cpu_ns: 0, resident_bytes: 0, ..told.clone() };
    let untold = scrape(&[seen("web", Some(&untold))]);
    assert!(!untold.contains("nelly_monitor_cpu") && !untold.contains("nelly_monitor_resident"), "{untold}");
    // Nor for what somebody else moves, who serves the queues.
    let lent = DeviceState {
        network: Some(NetworkState { link_up: true, peer_pairs: 1, ..Default::default() }),
        queues: vec![QueueState { size: Some(256), ..Default::default() }],
        ..device(2, "network", Some("net0"))
    };
    let lent = scrape(&[seen("web", Some(&self::told(vec![lent])))]);
    assert!(lent.contains("nelly_network_link_up"), "{lent}");
    for family in
        ["nelly_network_frames_total{", "nelly_network_bytes_total{", "nelly_device_requests_total{"]
    {
        assert!(!lent.contains(family), "{lent}");
    }
    // An empty slot counts nothing, and every family that there is was told of.
    assert!(scraped.all("nelly_device_interrupts_total", &[("slot", "4")]).is_empty());
    assert_eq!(scraped.kinds.len(), FAMILIES.len(), "{text}");
    assert_eq!(scrape(&[]), "");
}

#[test]
fn what_a_monitor_lies_spoils_no_other_sandbox() {
    let evil = "a\"} 1\nnelly_sandbox_up{sandbox=\"db\"} 0\n\\\u{1b}[31m\u{202e}";
    let long = "ä".repeat(1 << 16);
    let mut lies =
        told(vec![device(1, evil, Some(evil)), device(1, evil, Some(evil)), device(1, &long, None)]);
    lies.inspection.devices.extend((0..20_000).map(|slot| device(slot, "block", None)));
    lies.inspection.consoles[0].port = evil.into();
    (lies.cpu_ns, lies.resident_bytes) = (u64::MAX, u64::MAX);
    let honest = told(vec![device(1, "block", Some("root"))]);
    let text = scrape(&[seen("web", Some(&lies)), seen("db", Some(&honest))]);
    let scraped = parse(&text).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(scraped.value("nelly_sandbox_up", &[("sandbox", "db")]), 1.0);
    assert_eq!(scraped.value("nelly_device_interrupts_total", &[("sandbox", "db")]), 3.0);
    assert!(scraped.samples.len() <= SAMPLES_MOST + 100, "{}", scraped.samples.len());
    assert!(text.chars().all(|c| c == '\n' || text::is_plain(c)), "a terminal obeys it");
    // A name that is nothing but escapes.
    let shown = scraped.samples.iter().filter_map(|(_, labels, _)| labels.get("device"));
    assert!(shown.clone().any(|device| device.contains("\"} 1\n")), "it stands there as it is");
    assert!(shown.into_iter().all(|device| device.len() <= VALUE_MOST * 3));
}

#[test]
fn the_reader_is_strict() {
    let head = "# HELP nelly_a A.\n# TYPE nelly_a gauge\n";
    assert!(parse(&format!("{head}nelly_a{{b=\"c\"}} 1\n")).is_ok());
    for bad in [
        "nelly_a{b=\"c\"} 1\n".to_owned(),
        format!("{head}nelly_a{{b=\"c\"}} 1"),
        format!("{head}nelly_a{{b=\"c\"}} 1\nnelly_a{{b=\"c\"}} 2\n"),
        format!("{head}nelly_a{{b=\"c}} 1\n"),
        format!("{head}nelly_a{{b=\"\\c\"}} 1\n"),
        format!("{head}nelly_a{{b=\"c\" d=\"e\"}} 1\n"),
        format!("{head}nelly_a{{b=\"c\",b=\"c\"}} 1\n"),
        format!("{head}nelly_a{{b=\"c\"}} NaN\n"),
        format!("{head}nelly_a{{b=\"c\"}} x\n"),
        format!("{head}nelly_b 1\n"),
        format!("{head}{head}"),
        "# HELP nelly_a A.\n# TYPE nelly_a counter\n".to_owned(),
        format!("{head}nelly_a 1\n# HELP nelly_b_total B.\n# TYPE nelly_b_total counter\n{head}"),
    ] {
        assert!(parse(&bad).is_err(), "{bad}");
    }
}
