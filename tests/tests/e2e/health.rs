//! Health checks, as a user sees them: the image's and the command line's.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nelly_image::Digest;
use nelly_tests::{asset, nelly, wait};
use serde_json::{Value, json};

use super::LIMIT;
use super::keeper::{Kept, SERVER, kill};

/// Hangs if there is `/hang`, and is healthy if there is `/good`.
const PROBE: &str = "if [ -e /hang ]; then sleep 54321; fi; echo $WHO-$(id -u); cat /good";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The built-in image with a health check.
fn layout(kept: &Kept) -> String {
    let (builtin, ours) = (asset("busybox"), kept.0.path().join("image"));
    let blobs = ours.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::copy(builtin.join("oci-layout"), ours.join("oci-layout")).unwrap();
    for blob in fs::read_dir(builtin.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        fs::copy(blob.path(), blobs.join(blob.file_name())).unwrap();
    }
    let blob = |descriptor: &Value| {
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        read(&blobs.join(digest.hex()))
    };
    let put = |value: &Value, descriptor: &mut Value| {
        let text = serde_json::to_vec(value).unwrap();
        let digest = Digest::sha256(&text);
        fs::write(blobs.join(digest.hex()), &text).unwrap();
        descriptor["digest"] = digest.to_string().into();
        descriptor["size"] = text.len().into();
    };
    let mut index = read(&builtin.join("index.json"));
    let mut manifest = blob(&index["manifests"][0]);
    let mut config = blob(&manifest["config"]);
    let (second, hour) = (1_000_000_000_u64, 3_600_000_000_000_u64);
    config["config"]["Healthcheck"] = json!({ "Test": ["CMD-SHELL", PROBE], "Interval": hour,
        "StartInterval": hour, "StartPeriod": hour, "Timeout": 5 * second, "Retries": 2 });
    put(&config, &mut manifest["config"]);
    put(&manifest, &mut index["manifests"][0]);
    fs::write(ours.join("index.json"), index.to_string()).unwrap();
    format!("oci:{}", ours.display())
}

impl Kept {
    /// What `nelly inspect box` says of its health.
    fn health(&self) -> Value {
        let shown: Value = serde_json::from_str(&self.out(&["inspect", "box"])).unwrap();
        shown[0]["health"].clone()
    }

    /// Whether `nelly ps` shows this in the status.
    fn shows(&self, status: &str) -> bool {
        self.out(&["ps"]).lines().any(|line| line.contains(" Up ") && line.ends_with(status))
    }
}

#[test]
fn a_container_becomes_healthy_and_ill_and_probes_that_hang_are_killed() {
    let kept = Kept::new();
    let image = layout(&kept);
    let shown: Value = serde_json::from_str(&kept.out(&["image", "inspect", "--json", &image])).unwrap();
    let written = &shown[0]["config"]["healthcheck"];
    assert_eq!((&written["test"][1], &written["retries"]), (&json!(PROBE), &json!(2)));

    // The image's check, with other times.
    let flags = ["--health-interval", "200ms", "--health-start-interval", "200ms", "-e", "WHO=me", "-u", "7"];
    let run = [&["run", "-d", "--name", "box"], &flags[..], &[&image, "sh", "-c", SERVER]].concat();
    kept.out(&run);
    let root = |script: &str| kept.out(&["exec", "-u", "0", "box", "sh", "-c", script]);
    let check = &kept.record()["container"]["options"]["health"];
    assert_eq!((&check["interval_ms"], &check["timeout_ms"]), (&json!(200), &json!(5000)));
    let log = kept.0.path().join("events");
    let mut events = nelly(kept.0.path(), &["events", "--json", "--since", "1h"]);
    let mut events = events.stdout(File::create(&log).unwrap()).spawn().unwrap();
    let told = || fs::read_to_string(&log).unwrap();
    kept.until("the watch begins", || told().contains("created"));

    // Failures of the start period do not count.
    kept.until("some probes failed", || kept.health()["log"].as_array().is_some_and(|log| log.len() == 5));
    assert_eq!(kept.health()["failing_streak"], 0);
    assert!(kept.shows(" (health: starting)"), "{}", kept.out(&["ps"]));
    root("printf 'fine\\033[2J' >/good");
    kept.until("it is healthy", || kept.shows(" (healthy)"));
    assert_eq!(kept.state()["health"]["status"], "healthy");
    let id = kept.out(&["ps", "-q", "--filter", "health=healthy"]);
    assert_eq!((id.len(), kept.out(&["ps", "-q", "--filter", "health=starting"])), (12, String::new()));
    // A probe runs as the container does; what it says cannot steer a terminal.
    let inspected = kept.out(&["inspect", "box"]);
    assert!(!inspected.contains('\u{1b}'));
    let health = kept.health();
    let last = health["log"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["code"], &last["output"]), (&json!(0), &json!("me-7\nfine\u{1b}[2J")));
    assert!(last["started_at"].as_str().unwrap() < last["ended_at"].as_str().unwrap());
    // Probes go on, are nobody's execs, and write nothing.
    let file = || fs::metadata(kept.sandboxes().join("names/box/state.json")).unwrap().ino();
    let before = file();
    kept.until("five more succeeded", || {
        let health = kept.health();
        let log = health["log"].as_array().unwrap();
        log.iter().all(|one| one["code"] == 0 && one["started_at"].as_str() > last["started_at"].as_str())
    });
    assert_eq!((file(), kept.out(&["exec", "--list", "box"]).lines().count()), (before, 1));

    root("rm /good");
    kept.until("it is unhealthy", || kept.shows(" (unhealthy)"));
    assert_eq!(kept.out(&["ps", "-q", "--filter", "health=unhealthy"]), id);
    let health = kept.health();
    assert!(health["failing_streak"].as_u64().unwrap() >= 2, "{health}");
    assert!(health["log"][4]["output"].as_str().unwrap().contains("/good"), "{health}");

    // Hangs: killed, a failure, and the next one starts.
    root("touch /hang");
    kept.until("a probe was killed", || kept.health()["log"][4]["code"].is_null());
    let health = kept.health();
    let output = health["log"][4]["output"].as_str().unwrap();
    assert!(output.starts_with("the probe did not end within 5s, and was killed"), "{output}");
    root("echo fine >/good; rm /hang");
    kept.until("it is healthy again", || kept.shows(" (healthy)"));
    assert_eq!(kept.exec("ps | grep -c ' [s]leep 54321$' || true"), "0");

    kept.out(&["stop", "box"]);
    assert!(kept.state().get("health").is_none());
    assert_eq!(kept.out(&["ps", "-aq", "--filter", "health=none"]), id);
    kept.until("the end is told", || told().contains("exited"));
    kill("INT", events.id().into());
    assert_eq!(wait(&mut events, LIMIT).code(), Some(0));
    let told: Vec<Value> = told().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = told.iter().filter(|event| event["event"] == "health_status").collect();
    let words: Vec<_> = told.iter().map(|event| event["health"].as_str().unwrap()).collect();
    assert_eq!(words, ["healthy", "unhealthy", "healthy"]);

    // Without a boot: what is written down, and what is refused.
    kept.out(&["rm", "box"]);
    kept.out(&["create", "--name", "box", "--no-healthcheck", &image]);
    assert!(kept.record()["container"]["options"].get("health").is_none());
    for (words, code, part) in [
        (&["create", "--health-cmd", "x", "--no-healthcheck", "--", "x"][..], 2, "--no-healthcheck"),
        (&["create", "--health-retries", "2", "--", "x"], 2, "--health-cmd"),
        (&["create", "--health-interval", "5", "--", "x"], 2, "--health-interval"),
        (&["run", "--rm", "--health-cmd", "x", "--", "x"], 125, "that stays"),
        (&["ps", "--filter", "health=ill"], 2, "unhealthy"),
    ] {
        let refused = kept.0.nelly(words);
        assert!(refused.expect(code).err().contains(part), "{words:?}: {}", refused.err());
    }
}
