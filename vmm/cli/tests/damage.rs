//! Sandboxes that cannot be used, each in another way: every verb says so in a sentence with the
//! path, and the others go on.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nelly_sandbox::state::{SandboxRecord, Sandboxes, Timestamp};
use serde_json::json;

struct Home(tempfile::TempDir);

impl Home {
    fn place(&self) -> PathBuf {
        self.0.path().join("data/sandboxes")
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(words).env_clear().env("NELLY_HOME", self.0.path()).output().unwrap()
    }

    /// The code and the message of a verb, which neither panics nor says nothing.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 125)), "{words:?}: {code:?} {said}");
        assert!(said.starts_with("nelly: ") && !said.contains("panicked"), "{words:?}: {said}");
        said
    }
}

/// Makes the sandbox `name`, which nobody holds.
fn make(all: &Sandboxes, name: &str, digit: char) -> PathBuf {
    let process =
        json!({ "args": ["sh"], "env": [], "cwd": "/", "user": "0", "terminal": false, "stdin": false });
    let container = json!({ "process": process, "hostname": name, "read_only": false, "tmpfs": [], "upper_bytes": 0, "seccomp": "default" });
    let record = json!({ "id": digit.to_string().repeat(64), "name": name, "created": Timestamp::now(),
        "image": { "reference": "builtin:busybox", "digest": "sha256:00", "disk_paths": [] },
        "container": container,
        "machine": { "cpus": 1, "memory_bytes": 536_870_912_u64, "kernel": "/k", "initrd": "/i", "monitor": "/m" } });
    let record: SandboxRecord = serde_json::from_value(record).unwrap();
    let (dir, _) = all.draft(record).unwrap().publish().unwrap();
    dir.dir().path().to_owned()
}

fn edit(path: &Path, change: impl Fn(&str) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(&text)).unwrap();
}

/// What every verb that takes a sandbox is called with.
fn verbs(name: &str) -> Vec<Vec<&str>> {
    let words: [&[&str]; 14] = [
        &["inspect"],
        &["logs"],
        &["start"],
        &["stop"],
        &["restart"],
        &["kill"],
        &["pause"],
        &["unpause"],
        &["wait"],
        &["stats"],
        &["attach"],
        &["update", "--restart=no"],
        &["exec"],
        &["rename"],
    ];
    let more = |verb: &str| match verb {
        "exec" => Some("true"),
        "rename" => Some("another"),
        _ => None,
    };
    words.iter().map(|verb| verb.iter().copied().chain([name]).chain(more(verb[0])).collect()).collect()
}

#[test]
fn damage_is_told_by_every_verb_and_hides_nobody() {
    let home = Home(tempfile::tempdir().unwrap());
    let all = Sandboxes::make(&home.place()).unwrap();
    make(&all, "good", '0');
    let damaged = [
        ("cut", 'a', "sandbox.json"),
        ("empty", 'b', "state.json"),
        ("newer", 'c', "sandbox.json"),
        ("open", 'd', "is writable by users other than its owner"),
        ("linked", 'e', "is not a directory, so it is no sandbox"),
        ("lost", 'f', "sandbox.json is missing"),
        ("piped", '1', "is not a regular file"),
    ];
    for (name, digit, _) in damaged {
        let path = make(&all, name, digit);
        let (record, state) = (path.join("sandbox.json"), path.join("state.json"));
        match name {
            "cut" => edit(&record, |text| text[..text.len() / 2].to_owned()),
            "empty" => edit(&state, |_| String::new()),
            "newer" => edit(&record, |text| text.replace("\"schema\": 1", "\"schema\": 3")),
            "open" => fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap(),
            "linked" => {
                let elsewhere = home.0.path().join("elsewhere");
                fs::rename(&path, &elsewhere).unwrap();
                symlink(&elsewhere, &path).unwrap();
            }
            "lost" => fs::remove_file(&record).unwrap(),
            _ => {
                fs::remove_file(&record).unwrap();
                assert!(Command::new("mkfifo").arg(&record).status().unwrap().success());
            }
        }
    }
    symlink(format!("../{}", "9".repeat(64)), home.place().join("names/ghost")).unwrap();
    let mut wrong = Vec::new();
    for (name, _, what) in damaged {
        for words in verbs(name) {
            let output = home.run(&words);
            let said = String::from_utf8(output.stderr).unwrap();
            // What needs no file that is damaged does what it can.
            let other = ["does not run", "no exit code", "KVM"].iter().any(|word| said.contains(word));
            let told = match (words[0], output.status.code()) {
                ("inspect", code) => code == Some(1) && said.contains(what),
                ("logs" | "stop" | "rename" | "update", Some(0)) => said.is_empty(),
                (_, code) => matches!(code, Some(1 | 125)) && (said.contains(what) || other),
            };
            if !told || said.contains("panicked") {
                wrong.push(format!("{words:?}: {:?} {said}\n", output.status.code()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(""));
    for words in verbs("ghost") {
        assert!(
            home.refused(&words).contains("no sandbox \"ghost\"")
                || words[0] == "start"
                || words[0] == "restart"
        );
    }
    // The others are there.
    let listed = home.run(&["ps", "-a"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.status.success() && text.lines().count() == 9, "{text}");
    assert_eq!(text.matches("Damaged").count(), 6, "{text}");
    assert_eq!(text.matches("Newer version").count(), 1, "{text}");
    assert!(home.run(&["inspect", "good"]).status.success());
    home.refused(&["image", "prune"]);
    for (name, _, what) in damaged {
        let removed = home.run(&["rm", if name == "empty" { "another" } else { name }]);
        let said = String::from_utf8(removed.stderr).unwrap();
        // What is not ours is told, with what to do, and left alone.
        let left = ["open", "linked", "newer"].contains(&name);
        assert_eq!(removed.status.success(), !left, "{name}: {said}");
        assert!(
            !left
                || said.contains(what)
                    && ["chmod", "`rm`", "use the newer"].iter().any(|word| said.contains(word)),
            "{said}"
        );
    }
    assert!(home.0.path().join("elsewhere/sandbox.json").exists(), "a link is not followed");
    assert!(home.run(&["rm", "good"]).status.success());
}

/// The names and contents of all files of a sandbox.
fn contents(place: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all.into_iter()
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

/// A name, a digit of the id, the file that is changed and how, and what is said of it.
type Newer = (&'static str, char, &'static str, fn(&str) -> String, &'static str);

#[test]
fn a_sandbox_of_a_newer_version_is_listed_refused_and_left_as_it_is() {
    let home = Home(tempfile::tempdir().unwrap());
    let all = Sandboxes::make(&home.place()).unwrap();
    let record = |text: &str| text.replace("\"schema\": 1", "\"schema\": 7");
    let state = |text: &str| text.replace("\"created\"", "\"hibernated\"");
    let rows: [Newer; 3] = [
        ("record", 'a', "sandbox.json", record, "schema 7"),
        ("state", 'b', "state.json", record, "schema 7"),
        ("status", 'c', "state.json", state, "hibernated"),
    ];
    for (name, digit, file, change, what) in rows {
        let path = make(&all, name, digit);
        edit(&path.join(file), change);
        // With a policy that would let it be removed by whoever finds it ended.
        edit(&path.join("sandbox.json"), |text| {
            text.replace("\"auto_remove\": false", "\"auto_remove\": true")
        });
        let before = contents(&path);
        for words in [vec!["rm", name], vec!["rm", "-f", name], vec!["update", "--restart=always", name]] {
            let output = home.run(&words);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
            assert!(said.contains(what) && said.contains("use the newer nelly"), "{words:?}: {said}");
            assert!(said.contains(path.join(file).to_str().unwrap()), "{words:?}: {said}");
        }
        // Held as one that runs, it is not ended by force either.
        let lock = fs::File::options().write(true).open(path.join("lock")).unwrap();
        assert!(nelly_image::trusted::try_lock(&lock).unwrap());
        assert!(home.refused(&["rm", "-f", name]).contains(what));
        drop(lock);
        for words in [&["gc"][..], &["ps", "-a"], &["ps", "-aq"], &["image", "ls"]] {
            assert!(home.run(words).status.success(), "{words:?}");
        }
        let listed = String::from_utf8(home.run(&["ps", "-a", "--json"]).stdout).unwrap();
        assert!(listed.contains("\"newer\"") && listed.contains(what), "{listed}");
        assert!(contents(&path) == before, "{name}");
        assert!(home.place().join("names").join(name).symlink_metadata().is_ok());
        fs::remove_dir_all(&path).unwrap();
    }
}

#[test]
fn a_state_directory_of_a_newer_version_is_told_by_every_verb() {
    let home = Home(tempfile::tempdir().unwrap());
    let all = Sandboxes::make(&home.place()).unwrap();
    make(&all, "good", '0');
    fs::write(home.place().join("version"), "nelly-sandboxes 2\n").unwrap();
    let mut every = verbs("good");
    every.extend([vec!["ps"], vec!["gc"], vec!["image", "prune"]]);
    for words in every {
        let said = home.refused(&words);
        assert!(said.contains("nelly-sandboxes 2") || said.contains("KVM"), "{words:?}: {said}");
    }
}
