//! Faults beside a sandbox: sockets without a place, a host that was booted again, a machine that
//! hangs among others, a full disk. Each is told in a sentence, and the rest goes on.

use std::fs;

use super::keeper::{Kept, SERVER, runs};

/// Processes of ours, whose environment names the home of this test.
fn processes(kept: &Kept) -> Vec<u64> {
    let home = kept.0.path().to_str().unwrap().as_bytes().to_vec();
    let numbers =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let ours = |pid: &u64| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(home.len()).any(|part| part == home) && runs(*pid)
    };
    numbers.filter(ours).collect()
}

#[test]
fn sockets_that_cannot_be_made_are_told_and_a_keeper_that_lost_them_is_stopped() {
    let kept = Kept::new();
    let run = kept.0.path().join("run");
    fs::write(&run, "").unwrap();
    let words = |flag| ["run", "-d", flag, "--name=box", "--", "sh", "-c", SERVER];
    // Nothing is started that nobody could reach, and nothing stays of what was to be removed.
    for flag in ["--rm", "--restart=always"] {
        let refused = kept.0.nelly(&words(flag));
        let told = refused.expect(125).err();
        assert!(told.contains("sockets") && told.contains(run.to_str().unwrap()), "{told}");
        kept.until("the keeper ended", || processes(&kept).is_empty());
        assert_eq!(kept.out(&["ps", "-aq"]).is_empty(), flag == "--rm");
    }
    assert_eq!(kept.state()["status"], "created");
    fs::remove_file(&run).unwrap();
    kept.out(&["start", "box"]);
    // They are lost, and their place too: the keeper is asked to stop in the way that is left.
    fs::remove_dir_all(&run).unwrap();
    fs::write(&run, "").unwrap();
    let stopped = kept.0.nelly(&["stop", "box"]);
    assert!(stopped.expect(0).err().contains("SIGTERM"), "{}", stopped.err());
    assert_eq!(kept.state()["exit"]["code"], 3, "its own end, in order");
    kept.until("the keeper ended", || processes(&kept).is_empty());
    kept.out(&["rm", "box"]);
}
