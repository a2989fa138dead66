//! `nelly disk`, as a command.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.arg("disk").args(words).current_dir(&self.0);
        command.env_clear().env("NELLY_HOME", self.0.path().join("home")).output().unwrap()
    }

    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let said = self.good(&[words, &["--json"]].concat());
        serde_json::from_str(&said).unwrap()
    }

    /// The message of a command that fails with `code`.
    #[track_caller]
    fn refused(&self, words: &[&str], code: i32) -> String {
        let output = self.run(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(output.stdout.is_empty() && !said.contains("panicked"), "{words:?}: {said}");
        said
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn an_image_is_made_shown_grown_checked_mapped_and_copied() {
    let place = Place::new();
    assert_eq!(place.good(&["create", "a.qcow2", "64M"]), "created a.qcow2, qcow2, 64.0 MiB\n");
    let info = place.json(&["info", "a.qcow2"]);
    assert_eq!((&info["schema"], &info["size_bytes"]), (&1.into(), &(64_u64 << 20).into()));
    assert_eq!((&info["qcow2"]["version"], &info["qcow2"]["cluster_size_bytes"]), (&3.into(), &65536.into()));
    assert!(place.good(&["info", "a.qcow2"]).contains("64.0 MiB (67108864 bytes)"));
    assert!(place.good(&["resize", "a.qcow2", "1G"]).contains("has 1.0 GiB now, it had 64.0 MiB"));
    assert_eq!(place.good(&["check", "a.qcow2"]), "a.qcow2 has no errors\n");
    std::fs::write(place.path("b.raw"), [vec![0; 1 << 20], vec![7; 1 << 20]].concat()).unwrap();
    let made = place.json(&["convert", "--cluster-size", "4K", "b.raw", "b.qcow2"]);
    assert_eq!((&made["size_bytes"], &made["data_bytes"]), (&(2_u64 << 20).into(), &(1_u64 << 20).into()));
    let map = place.json(&["map", "b.qcow2"]);
    let ranges: Vec<_> =
        map.as_array().unwrap().iter().map(|range| (&range["kind"], &range["start_bytes"])).collect();
    assert_eq!(ranges, [(&"zero".into(), &0.into()), (&"data".into(), &(1_u64 << 20).into())]);
    assert_eq!(place.good(&["map", "b.qcow2"]).lines().count(), 3);
    let over = ["create", "--backing", "b.qcow2", "--backing-format", "qcow2", "over.qcow2"];
    assert_eq!(place.good(&over), "created over.qcow2, qcow2, 2.0 MiB\n");
    assert!(place.good(&["info", "over.qcow2"]).contains("b.qcow2, qcow2"));
    place.good(&["convert", "-q", "over.qcow2", "back.raw"]);
    assert!(std::fs::read(place.path("back.raw")).unwrap() == std::fs::read(place.path("b.raw")).unwrap());
    assert_eq!(place.json(&["check", "over.qcow2"])["leaks"], 0);
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do() {
    let place = Place::new();
    place.good(&["create", "a.qcow2", "1M"]);
    let before = std::fs::read(place.path("a.qcow2")).unwrap();
    for (words, code, said) in [
        (&["create", "a.qcow2", "1M"][..], 1, "hint: name another file"),
        (&["create", "b.img", "1M"], 2, "--format raw or --format qcow2 says it"),
        (&["create", "b.qcow2"], 2, "SIZE"),
        (&["create", "b.qcow2", "1000"], 2, "SIZE"),
        (&["create", "--cluster-size", "3K", "b.qcow2", "1M"], 2, "power of two"),
        (&["create", "--backing", "a.qcow2", "b.qcow2"], 2, "--backing-format"),
        (&["create", "--backing", "a.qcow2", "--backing-format", "qcow2", "b.raw"], 2, "no backing file"),
        (&["create", "--backing", "no", "--backing-format", "raw", "b.qcow2"], 1, "cannot open no"),
        (&["create", "no/b.qcow2", "1M"], 1, "cannot create no/b.qcow2"),
        (&["resize", "a.qcow2", "512K"], 1, "never made smaller"),
        (&["convert", "a.qcow2", "a.qcow2"], 1, "exists"),
        (&["convert", "a.qcow2", "b.img"], 2, "--to raw or --to qcow2 says it"),
        (&["convert", "no.raw", "b.qcow2"], 1, "cannot open no.raw"),
        (&["info", "--format", "qcow2", "."], 1, "neither a regular file"),
        (&["check", "/dev/null"], 1, "neither a regular file"),
        (&["map", "no.qcow2"], 1, "cannot open no.qcow2"),
    ] {
        let answer = place.refused(words, code);
        assert!(answer.contains(said), "{words:?}: {answer}");
    }
    assert!(std::fs::read(place.path("a.qcow2")).unwrap() == before);
    let names: Vec<_> =
        std::fs::read_dir(&place.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a.qcow2"], "nothing else was left");
    let json = place.refused(&["check", "--json", "no.qcow2"], 1);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["code"], 1);
}

#[test]
fn a_damaged_image_ends_a_check_with_code_1() {
    let place = Place::new();
    std::fs::write(place.path("a.raw"), vec![7; 1 << 20]).unwrap();
    place.good(&["convert", "a.raw", "a.qcow2"]);
    let image = place.path("a.qcow2");
    let mut bytes = std::fs::read(&image).unwrap();
    // All refcounts: the refcount table is the second cluster, and its block the third.
    bytes[2 << 16..3 << 16].fill(0);
    std::fs::write(&image, bytes).unwrap();
    let output = place.run(&["check", "a.qcow2"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("corruptions") && said.contains("its refcount is 0"), "{said}");
}

/// Tables that somebody else has written, one lie at a time: these commands read them in their own
/// process.
#[test]
fn hostile_images_end_with_a_sentence_and_leave_nothing() {
    const ROUNDS: u64 = 24;
    let place = Place::new();
    let data: Vec<u8> =
        (0..3_u32 << 16).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    std::fs::write(place.path("a.raw"), data).unwrap();
    place.good(&["convert", "a.raw", "good.qcow2"]);
    let good = std::fs::read(place.path("good.qcow2")).unwrap();
    let field = |at: usize, len: usize| {
        good[at..at + len].iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    // Header, refcount table and its first block, table of the first level and of the second.
    let (table, l1) = (field(48, 8), field(40, 8));
    let no_flags = |entry: usize| entry & 0x00ff_ffff_ffff_fe00;
    let places =
        [(0, 104), (table, 8), (no_flags(field(table, 8)), 16), (l1, 8), (no_flags(field(l1, 8)), 24)];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut refused = 0;
    for round in 0..ROUNDS {
        let (from, len) = places[random(places.len())];
        let at = from + random(len);
        let mut bytes = good.clone();
        // A bit, or what is most and least.
        match random(3) {
            0 => bytes[at] ^= 1 << random(8),
            1 => bytes[at] = 0xff,
            _ => bytes[at] = 0,
        }
        std::fs::write(place.path("a.qcow2"), bytes).unwrap();
        for words in [
            &["info", "a.qcow2"][..],
            &["check", "a.qcow2"],
            &["map", "a.qcow2"],
            &["convert", "a.qcow2", "b.raw"],
        ] {
            let output = place.run(words);
            let said = String::from_utf8(output.stderr).unwrap();
            let seen =
                format!("round {round}, byte {at} of {}: {words:?}: {}: {said}", good.len(), output.status);
            assert!(matches!(output.status.code(), Some(0 | 1)) && !said.contains("panicked"), "{seen}");
            assert!(output.status.success() || !said.is_empty() || !output.stdout.is_empty(), "{seen}");
            let made = place.path("b.raw").exists();
            assert_eq!(made, words[0] == "convert" && output.status.success(), "{seen}");
            refused += u64::from(!output.status.success());
            if made {
                std::fs::remove_file(place.path("b.raw")).unwrap();
            }
        }
        let names = std::fs::read_dir(&place.0).unwrap().count();
        assert_eq!(names, 3, "round {round}: something is left");
    }
    // Lies are found out, and what is none is read.
    assert!(refused > ROUNDS / 2 && refused < ROUNDS * 4, "{refused}");
}

/// Ctrl-C while a disk is copied leaves neither the target nor anything else.
#[test]
fn an_interrupted_copy_leaves_nothing() {
    let place = Place::new();
    let source = std::fs::File::create(place.path("a.raw")).unwrap();
    // Holes that are read as data would be fast; this is data, and more than is copied at once.
    for at in 0..64_u64 {
        std::os::unix::fs::FileExt::write_all_at(&source, &[7; 4096], at << 22).unwrap();
    }
    source.set_len(1 << 40).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
    command.args(["disk", "convert", "a.raw", "a.qcow2"]).current_dir(&place.0).env_clear();
    let mut child = command.env("NELLY_HOME", place.path("home")).spawn().unwrap();
    let pid = child.id().to_string();
    // Whether it comes before, in or after the copy: what has a name is whole.
    Command::new("kill").args(["-INT", &pid]).status().unwrap();
    let status = child.wait().unwrap();
    let exists = Path::new(&place.path("a.qcow2")).exists();
    // It may come between the name and the end.
    assert!(exists || !status.success());
    if exists {
        place.good(&["check", "a.qcow2"]);
    }
    let names = std::fs::read_dir(&place.0).unwrap().count();
    assert!(names == 1 + usize::from(exists), "nothing else is left");
}
