//! What becomes of `nelly-monitor` on a host without memory.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::process::Command;

/// Its configuration has more in it than the memory that it may have.
#[test]
fn no_memory_is_a_sentence_and_no_signal() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    let disks = vec![r#"{"id":"a","source":{"path":"/x"}}"#; 200_000].join(",");
    std::fs::write(&config, format!(r#"{{"schema":1,"disks":[{disks}]}}"#)).unwrap();
    let script = "ulimit -d 16384; exec \"$0\" --config \"$1\"";
    let done = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_nelly-monitor")])
        .arg(&config)
        .output()
        .unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(125), "{said}");
    assert!(said.starts_with("nelly-monitor: the host has no memory for "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
