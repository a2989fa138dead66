//! Looking into the container of a sandbox, and its files.

use serde_json::Value;

use super::keeper::{Kept, SERVER};

#[test]
fn processes_and_changes_of_a_container_are_told() {
    let kept = Kept::new();
    kept.keep(&[], SERVER);
    kept.exec("mkdir -p /srv/deep; echo x >/srv/deep/file; rm /etc/passwd; printf 'a' >'/srv/e\x1b[31mvil'");
    kept.out(&["exec", "-d", "-u", "7:7", "box", "sleep", "4321"]);
    let shown = kept.out(&["top", "box"]);
    let mut lines = shown.lines();
    assert!(lines.next().unwrap().starts_with("PID "), "{shown}");
    assert!(lines.any(|line| line.ends_with("sleep 4321") && line.contains(" 7 ")), "{shown}");
    let all: Value = serde_json::from_str(&kept.out(&["top", "--json", "box"])).unwrap();
    let first = all.as_array().unwrap().iter().find(|one| one["pid"] == 1).expect("the first process");
    assert_eq!((&first["parent"], &first["args"][0]), (&0.into(), &"sh".into()), "{first}");

    let diff = kept.out(&["diff", "box"]);
    let lines: Vec<&str> = diff.lines().collect();
    for line in ["A /srv/deep", "A /srv/deep/file", "D /etc/passwd", "C /etc", "A /srv/e\\u{1b}[31mvil"] {
        assert!(lines.contains(&line), "{line}: {diff}");
    }
    assert!(!diff.contains("/proc") && !diff.contains("/bin"), "{diff}");
    let all: Value = serde_json::from_str(&kept.out(&["diff", "--json", "box"])).unwrap();
    assert!(all.as_array().unwrap().iter().any(|one| one["kind"] == "D" && one["path"] == "/etc/passwd"));

    for verb in ["top", "diff"] {
        kept.out(&["pause", "box"]);
        assert!(kept.0.nelly(&[verb, "box"]).expect(1).err().contains("paused"));
        kept.out(&["unpause", "box"]);
        assert!(kept.0.nelly(&[verb, "nosuch"]).expect(1).err().contains("nosuch"));
    }
    kept.out(&["stop", "box"]);
    for verb in ["top", "diff"] {
        let refused = kept.0.nelly(&[verb, "box"]);
        assert!(refused.expect(1).err().contains("nelly start box"), "{}", refused.err());
    }
}
