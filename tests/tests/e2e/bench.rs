//! `nelly bench`: starts measured beside a real peer (Debian's QEMU), a command in a machine, what
//! one more machine costs, refusals. That a comparison sees ten milliseconds, and none where there
//! are none, is shown in counted time (`tests/gauge/check`).

use std::fs;

use serde_json::Value;

use super::Home;

/// The result that a benchmark wrote.
fn record(home: &Home, name: &str) -> Value {
    let text = fs::read(home.path().join(name)).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(record["schema"], 1, "{record:#}");
    record
}

#[test]
fn a_boot_is_measured_beside_qemu_and_reported_in_every_form() {
    let home = Home::new();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (json, csv, html) = (path("a.json"), path("a.csv"), path("a.html"));
    let done = home.nelly(&[
        "bench",
        "boot",
        "--rounds",
        "5",
        "--warm-up",
        "1",
        "--vs",
        "qemu",
        "--vs",
        "alioth=/no/such/alioth",
        "--json",
        &json,
        "--csv",
        &csv,
        "--html",
        &html,
    ]);
    done.expect(0);
    // An absent peer is skipped, by name.
    assert!(done.err().contains("alioth") && done.err().contains("skipped"), "{}", done.err());
    let record = record(&home, "a.json");
    let contestants = record["series"].as_array().unwrap();
    let names: Vec<_> = contestants.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["nelly", "qemu"], "{record:#}");
    for one in contestants {
        let samples = one["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 5, "{one:#}");
        assert!(samples.iter().all(|sample| sample["total_ns"].as_u64().unwrap() > 0), "{one:#}");
    }
    for (one, least) in contestants.iter().zip([6, 4]) {
        let mut begun = 0;
        for sample in one["samples"].as_array().unwrap() {
            // The phases are the whole: what they leave out is said, and is little.
            let total = sample["total_ns"].as_u64().unwrap();
            let phases = sample["phases"].as_array().unwrap();
            let sum: u64 = phases.iter().map(|phase| phase["duration_ns"].as_u64().unwrap()).sum();
            let rest = sample["unattributed_ns"].as_u64().unwrap();
            assert!((sum + rest).abs_diff(total) * 100 <= total && rest * 50 < total, "{sample:#}");
            // And none is the rest: the guest tells of itself, whoever its monitor is.
            let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
            let last = ["init", "init_main", "marker"];
            assert!(names.len() + 1 >= least && names.ends_with(&last), "{}: {names:?}", one["name"]);
            begun += usize::from(names.len() >= least && names[names.len() - 4] == "kernel_entry");
        }
        // Where a guest's clock runs a little fast, its kernel would have begun before its monitor
        // let it, which is no moment and is left out. Of most samples it is one.
        assert!(begun >= 3, "{one:#}");
    }
    assert!(done.out().contains("nelly") && done.out().contains("qemu"), "{}", done.out());
    assert_eq!(fs::read_to_string(csv).unwrap().lines().filter(|line| line.contains("qemu")).count(), 5);
    let html = fs::read_to_string(html).unwrap();
    assert!(
        html.contains("<svg")
            && html.contains("</html>")
            && !html.contains("http://")
            && !html.contains("src=")
    );
    // A comparison with itself is no change.
    home.nelly(&["bench", "compare", &json, &json]).expect(0);
}

#[test]
fn commands_machines_and_agents_are_measured() {
    let home = Home::new();
    let json = home.path().join("r.json");
    let json = json.to_str().unwrap();
    for words in [
        &["bench", "exec", "--rounds", "5", "--json", json][..],
        &["bench", "run", "--rounds", "2", "--warm-up", "0", "--json", json],
        &["bench", "boot", "--until", "ready", "--rounds", "2", "--warm-up", "0", "--json", json],
        &["bench", "density", "--count", "2", "--json", json],
    ] {
        let done = home.nelly(words);
        done.expect(0);
        assert_eq!(record(&home, "r.json")["bench"], words[1], "{words:?}");
        fs::remove_file(json).unwrap();
    }
}

#[test]
fn what_is_unknown_is_refused() {
    let home = Home::new();
    let done = home.nelly(&["bench", "reboot"]);
    assert!(done.expect(2).err().contains("reboot"), "{}", done.err());
    let done = home.nelly(&["bench", "boot", "--vs", "crosvm"]);
    assert!(done.expect(2).err().contains("crosvm"), "{}", done.err());
    let done = home.nelly(&["bench", "compare", "/no/such/before.json", "/no/such/after.json"]);
    assert!(done.expect(1).err().contains("/no/such/before.json"), "{}", done.err());
}
