//! Faults beside a sandbox: sockets without a place, a host that was booted again, a machine that
//! hangs among others, a full disk. Each is told in a sentence, and the rest goes on.

use std::fs;

use super::image_store::archive;
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

#[test]
fn the_disk_of_an_image_is_made_again_by_its_digest_or_the_command_that_pulls_it_is_told() {
    let kept = Kept::new();
    kept.0.feed(&["image", "load"], &archive(&kept.0)).expect(0);
    kept.out(&["create", "--name", "box", "app:1", "sh", "-c", SERVER]);
    assert!(!kept.out(&["image", "prune", "--all"]).contains("removed"));
    assert!(kept.0.nelly(&["image", "rm", "app:1"]).expect(1).err().contains("used by a sandbox"));
    // The name means another image now, and the cache is cleared.
    let index = kept.0.path().join("data/images/index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("app:1", "app:2")).unwrap();
    fs::remove_dir_all(kept.0.path().join("cache")).unwrap();
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("echo same"), "same");
    kept.out(&["stop", "box"]);
    fs::remove_dir_all(kept.0.path().join("cache")).unwrap();
    fs::remove_dir_all(kept.0.path().join("data/images")).unwrap();
    let gone = kept.0.nelly(&["start", "box"]);
    let digest = kept.record()["image"]["digest"].as_str().unwrap().to_owned();
    assert!(gone.expect(1).err().contains(&format!("nelly image pull app@{digest}")), "{}", gone.err());
    assert_eq!(kept.state()["status"], "exited");
    kept.out(&["rm", "box"]);
}
