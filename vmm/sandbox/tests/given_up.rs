//! A start that is given up leaves nothing, whatever the monitor does instead of starting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nelly_sandbox::instance::Sandbox;
use nelly_vmm::config::{FileSource, MachineConfig};
use nelly_vmm::machine::{Place, Resources};

/// Whether the process is there, a zombie too.
fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

#[tokio::test]
async fn a_monitor_that_does_not_answer_is_killed_when_its_start_is_dropped() {
    // One that waits for something else, and one that is stopped: it would not even read that its holder is gone.
    for instead in ["exec sleep 1000", "kill -STOP $$"] {
        let directory = tempfile::tempdir().unwrap();
        let (monitor, mark) = (directory.path().join("monitor"), directory.path().join("pid"));
        let script = format!("#!/bin/sh\necho $$ > {0}.new && mv {0}.new {0}\n{instead}\n", mark.display());
        fs::write(&monitor, script).unwrap();
        fs::set_permissions(&monitor, fs::Permissions::from_mode(0o755)).unwrap();
        let config = MachineConfig::new(FileSource::Fd(0));
        let start = Sandbox::start(config, Resources::new(), Place::Process { monitor }, "box");
        let marked = async {
            while !mark.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            started = start => panic!("it started, or failed: {:?}", started.err()),
            () = marked => {}
        }
        let pid = fs::read_to_string(&mark).unwrap();
        assert!(!exists(pid.trim()), "{instead:?} lives on as {pid}");
    }
}
