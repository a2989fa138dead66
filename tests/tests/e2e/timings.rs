//! `nelly run --timings`, `--trace` and the timeline of `--result`: one clock for client, monitor,
//! kernel and agent.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::Home;

/// Every stamp of a run whose container says something, with who takes it.
const STAMPS: [(&str, &str); 26] = [
    ("main", "client"),
    ("config_parsed", "client"),
    ("image_resolved", "client"),
    ("monitor_spawned", "client"),
    ("monitor_main", "monitor"),
    ("monitor_config", "monitor"),
    ("memory_mapped", "monitor"),
    ("kernel_loaded", "monitor"),
    ("vm_created", "monitor"),
    ("devices_ready", "monitor"),
    ("vcpu_created", "monitor"),
    ("first_entry", "monitor"),
    ("kernel_entry", "kernel"),
    ("init", "kernel"),
    ("agent_main", "agent"),
    ("agent_listening", "agent"),
    ("agent_ready", "agent"),
    ("agent_connected", "client"),
    ("ready", "client"),
    ("container_created", "client"),
    ("process_started", "client"),
    ("first_byte", "client"),
    ("exit", "client"),
    ("timeline_read", "client"),
    ("guest_end", "monitor"),
    ("machine_gone", "client"),
];

/// What happens one after the other, whoever sees it: the guest's stamps stand where the host's
/// clock says they must.
const ORDER: [&[&str]; 4] = [
    &[
        "main",
        "config_parsed",
        "image_resolved",
        "monitor_spawned",
        "agent_connected",
        "ready",
        "container_created",
    ],
    &["monitor_main", "monitor_config", "memory_mapped", "kernel_loaded", "vm_created", "devices_ready"],
    &[
        "devices_ready",
        "vcpu_created",
        "first_entry",
        "kernel_entry",
        "init",
        "agent_main",
        "agent_listening",
        "agent_ready",
        "agent_connected",
        "ready",
    ],
    &["container_created", "process_started", "exit", "timeline_read", "guest_end", "machine_gone"],
];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("the file was written")).expect("it is JSON")
}

fn at(timeline: &Value, name: &str) -> u64 {
    let stamps = timeline["stamps"].as_array().expect("stamps");
    let stamp = stamps.iter().find(|stamp| stamp["name"] == name);
    stamp.unwrap_or_else(|| panic!("no {name} in {timeline:#}"))["at_ns"].as_u64().expect("a number")
}

#[test]
fn every_phase_is_stamped_on_one_clock_and_they_add_up() {
    let home = Home::new();
    let (result, trace) = (home.path().join("result.json"), home.path().join("trace.json"));
    let words = [
        "run",
        "--rm",
        "--timings",
        "--result",
        result.to_str().unwrap(),
        "--trace",
        trace.to_str().unwrap(),
        "--",
        "echo",
        "hi",
    ];
    let done = home.nelly(&words);
    done.expect(0);
    assert_eq!(done.out(), "hi\n");
    let table = done.err();
    let timings = json(&result)["timings"].clone();
    let timeline = &timings["timeline"];
    eprintln!("{table}");

    let stamps = timeline["stamps"].as_array().unwrap();
    for (name, who) in STAMPS {
        let stamp = stamps.iter().find(|stamp| stamp["name"] == name);
        assert_eq!(stamp.unwrap_or_else(|| panic!("no {name}\n{table}"))["who"], who, "{name}");
        assert!(table.lines().any(|line| line.starts_with(name) && line.ends_with(who)), "{name}\n{table}");
    }
    assert_eq!(stamps.len(), STAMPS.len(), "{timeline:#}");
    for chain in ORDER {
        let moments: Vec<_> = chain.iter().map(|name| at(timeline, name)).collect();
        assert!(moments.is_sorted(), "{chain:?} {moments:?}\n{table}");
    }

    // Phases are the intervals between neighbours, so order is all that adding up needs.
    let moments: Vec<_> = stamps.iter().map(|stamp| stamp["at_ns"].as_u64().unwrap()).collect();
    let origin = timeline["origin_ns"].as_u64().unwrap();
    assert!(moments.is_sorted() && origin <= moments[0]);
    assert_eq!(timings["total_ns"].as_u64().unwrap(), moments[moments.len() - 1] - origin);
    assert!(u128::from(timings["total_ns"].as_u64().unwrap()) <= done.took.as_nanos());

    let trace = json(&trace);
    let phases: Vec<_> =
        trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(phases.len(), STAMPS.len());
    let sum: f64 = phases.iter().map(|phase| phase["dur"].as_f64().unwrap()).sum();
    let total: f64 = timings["total_ns"].as_f64().unwrap() / 1000.0;
    assert!((sum - total).abs() < 0.01, "{sum} {total}");
}

#[test]
fn an_absurd_origin_is_not_believed_and_a_time_limit_ends_the_machine_and_tells_what_the_client_saw() {
    let home = Home::new();
    let result = home.path().join("result.json");
    // It has long started by then: a start takes three seconds in the emulated host.
    let limit = format!("{}s", nelly_tests::scaled(Duration::from_secs(15)).as_secs());
    let words = ["run", "--rm", "--timeout", &limit, "--result", result.to_str().unwrap()];
    let mut command = nelly_tests::nelly(home.path(), &[&words[..], &["--", "sleep", "1000"]].concat());
    // From the future; a word from long ago would be a moment of the last minute on a host that has
    // just booted.
    command.env("NELLY_ORIGIN_NS", u64::MAX.to_string());
    nelly_tests::run(&mut command, b"", super::LIMIT).expect(124);
    let outcome = json(&result);
    assert_eq!((&outcome["exit"], &outcome["reason"]), (&124.into(), &"timeout".into()));
    assert_eq!(outcome["id"].as_str().map(str::len), Some(64));
    let timeline = &outcome["timings"]["timeline"];
    assert_eq!(timeline["origin_ns"].as_u64().unwrap(), at(timeline, "main"));
    assert!(at(timeline, "ready") < at(timeline, "machine_gone"));
    let stamps = timeline["stamps"].as_array().unwrap();
    assert!(stamps.iter().all(|stamp| stamp["who"] == "client"), "{timeline:#}");
}

#[test]
fn a_bare_kernel_has_the_monitors_stamps_from_the_commands_start() {
    let home = Home::new();
    let result = home.path().join("result.json");
    let kernel = nelly_tests::kernel();
    let words = [
        "boot",
        "--kernel",
        kernel.to_str().unwrap(),
        "--append",
        "console=ttyS0 panic=-1 reboot=t",
        "--timeout",
        "60s",
        "--monitor-user",
        "4000001:4000002",
        "--result",
        result.to_str().unwrap(),
    ];
    // Without a root it panics, which is end enough.
    home.nelly(&words).expect(121);
    let outcome = json(&result);
    let timeline = &outcome["timeline"];
    assert_eq!(timeline["clock"], "CLOCK_MONOTONIC");
    let moments = ["monitor_main", "first_entry", "guest_end"].map(|name| at(timeline, name));
    assert!(moments.is_sorted());
    // The command's own start, and its exec, lie before the monitor's first line.
    assert!(timeline["origin_ns"].as_u64().unwrap() < moments[0]);
    assert!(outcome["exits"]["pio_write"].as_u64().unwrap() > 0);
    assert_eq!(outcome["confinement"]["user"]["uid"], 4_000_001, "{}", outcome["confinement"]);
}
