//! The verbs that need the state directory only: `ps`, `inspect`, `events`, `rename`, `rm`, `gc`.
//! Sandboxes are made by the library, and this process holds the locks of those that "run".
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nelly_image::{Descriptor, Digest, LocalStore};
use nelly_sandbox::state::logs::{DEFAULT_CAP_BYTES, LogWriter, Stream};
use nelly_sandbox::state::{
    RuntimeDir, SandboxDir, SandboxLock, SandboxRecord, SandboxState, Sandboxes, Status, Timestamp,
};
use serde_json::{Value, json};

#[path = "sandboxes/metrics.rs"]
mod metrics;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn place(&self) -> PathBuf {
        self.0.path().join("data/sandboxes")
    }

    fn sandboxes(&self) -> Sandboxes {
        Sandboxes::make(&self.place()).unwrap()
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(words).env_clear().env("NELLY_HOME", self.0.path()).output().unwrap()
    }

    /// What a verb prints that must succeed.
    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{words:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// What a verb complains of that must fail with 1.
    #[track_caller]
    fn refused(&self, words: &[&str]) -> String {
        self.complains(words, 1)
    }

    /// What a verb complains of that fails with this code.
    #[track_caller]
    fn complains(&self, words: &[&str], code: i32) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.out(words)).unwrap()
    }
}

/// A record, whose id begins with `digit`.
fn record(name: &str, digit: char) -> SandboxRecord {
    let process = json!({ "args": ["sleep", "infinity"], "env": [], "cwd": "/", "user": "0", "terminal": false, "stdin": false });
    let container = json!({ "process": process, "hostname": name, "read_only": false, "tmpfs": [], "upper_bytes": 0, "seccomp": "default" });
    let record = json!({ "id": digit.to_string().repeat(64), "name": name, "created": Timestamp::now(),
        "image": { "reference": "builtin:busybox", "digest": "sha256:00", "disk_paths": [] },
        "container": container, "labels": { "stage": name },
        "machine": { "cpus": 1, "memory_bytes": 536_870_912_u64, "kernel": "/k", "initrd": "/i", "monitor": "/m" } });
    serde_json::from_value(record).unwrap()
}

/// A sandbox in this state; dropping the lock is the end of its holder.
fn sandbox(all: &Sandboxes, name: &str, digit: char, status: Status) -> (SandboxDir, SandboxLock) {
    let (dir, lock) = all.draft(record(name, digit)).unwrap().publish().unwrap();
    let mut state = SandboxState::created();
    state.status = status;
    state.started_at = Some(Timestamp::now());
    if status == Status::Exited {
        state.finished_at = Some(Timestamp::now());
        state.exit = serde_json::from_value(json!({ "code": 7, "reason": "exited" })).unwrap();
    }
    dir.write_state(&lock, &state).unwrap();
    (dir, lock)
}

#[test]
fn sandboxes_are_listed_by_what_their_files_and_locks_say() {
    let home = Home::new();
    assert_eq!(home.out(&["ps", "-a", "-q"]), "");
    assert_eq!(home.json(&["ps", "--json"]), json!([]));
    assert_eq!(home.json(&["stats", "--json"]), json!([]));
    assert!(
        home.out(&["stats"]).starts_with("NAME ") && home.refused(&["stats", "web"]).contains("no sandbox")
    );
    assert!(!home.place().exists(), "listing makes nothing");
    let all = home.sandboxes();
    let (_, _web) = sandbox(&all, "web", 'a', Status::Running);
    let (_, _job) = sandbox(&all, "job", 'b', Status::Paused);
    drop(sandbox(&all, "done", 'c', Status::Exited));
    // Its holder was killed, or the host was booted again.
    drop(sandbox(&all, "lost", 'd', Status::Running));
    let (damaged, _) = sandbox(&all, "hurt", 'e', Status::Exited);
    fs::write(damaged.dir().path().join("state.json"), "{").unwrap();

    let listed = home.out(&["ps"]);
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert!(lines[0].starts_with("ID ") && lines[0].ends_with("PORTS"), "{listed}");
    let row = |name: &str, text: &str| {
        let row = text.lines().find(|line| line.split_whitespace().nth(1) == Some(name));
        row.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    };
    let web = row("web", &listed);
    assert!(
        web.starts_with("aaaaaaaaaaaa ") && web.contains("sleep infinity") && web.contains("   Up "),
        "{web}"
    );
    assert!(row("job", &listed).ends_with("(Paused)"), "{listed}");
    let listed = home.out(&["ps", "-a"]);
    assert!(row("done", &listed).contains("Exited (7)"), "{listed}");
    assert!(row("lost", &listed).ends_with("Exited (unclean)"), "{listed}");
    assert!(row("hurt", &listed).ends_with("Damaged"), "{listed}");

    let filtered = |words: &[&str]| {
        let mut ids: Vec<_> =
            home.out(&[&["ps", "-q"], words].concat()).lines().filter_map(|id| id.chars().next()).collect();
        ids.sort_unstable();
        ids.into_iter().collect::<String>()
    };
    assert_eq!(filtered(&["--filter", "status=exited"]), "cd");
    assert_eq!(filtered(&["--filter", "status=running"]), "a");
    assert_eq!(filtered(&["-a", "--filter", "name=o"]), "bcd");
    assert_eq!(filtered(&["-a", "--filter", "label=stage=done"]), "c");
    assert_eq!(filtered(&["-a", "--filter", "id=e"]), "e");
    assert_eq!(filtered(&["--filter", "ancestor=builtin:busybox"]), "ab");
    assert_eq!(home.out(&["ps", "-q", "--no-trunc", "--filter", "name=web"]), "a".repeat(64));
    assert!(home.complains(&["ps", "--filter", "colour=red"], 2).contains("the filters are"));
    for (flag, bad) in [("--filter", "colour=red"), ("--since", "yesterday"), ("--until", "tomorrow")] {
        assert!(home.complains(&["events", flag, bad], 2).contains(flag), "{flag}");
    }

    let objects = home.json(&["ps", "-a", "--json"]);
    let object = |name: &str| {
        let all = objects.as_array().unwrap();
        all.iter().find(|object| object["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!((&object("lost")["status"], &object("lost")["unclean"]), (&json!("exited"), &json!(true)));
    assert_eq!(object("done")["exit"], json!({ "code": 7, "reason": "exited" }));
    assert_eq!(object("hurt")["status"], "damaged");
    assert!(object("hurt")["error"].as_str().unwrap().contains("state.json"));
}

#[test]
fn one_that_cannot_be_shown_keeps_none_of_the_others() {
    let home = Home::new();
    let all = home.sandboxes();
    let (dir, _lock) = sandbox(&all, "web", 'a', Status::Running);
    drop(sandbox(&all, "other", 'b', Status::Exited));
    let shown = home.run(&["inspect", "web", "nosuch", "bb"]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&shown.stderr).contains("\"nosuch\""));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown[0]["name"], &shown[1]["name"]), (&json!("web"), &json!("other")));
    assert_eq!((&shown[0]["status"], &shown[0]["schema"]), (&json!("running"), &json!(1)));
    assert_eq!(shown[0]["container"]["process"]["args"], json!(["sleep", "infinity"]));
    assert_eq!(shown[0]["directory"], json!(dir.dir().path()));
    // A name of 255 bytes is none, and is told from one that is not there.
    assert!(home.refused(&["inspect", &"x".repeat(255)]).contains("there is no sandbox"));
    // Files of a newer version are named, and stay.
    let path = dir.dir().path().join("sandbox.json");
    fs::write(&path, r#"{"schema":3}"#).unwrap();
    let refused = home.refused(&["inspect", "a"]);
    assert!(refused.contains("schema 3") && refused.contains("newer"), "{refused}");
    assert_eq!(fs::read(path).unwrap(), br#"{"schema":3}"#);
}

#[test]
fn what_runs_is_not_removed_and_what_ended_is() {
    let home = Home::new();
    assert!(home.refused(&["rm", "web"]).contains("\"web\""));
    assert_eq!(home.out(&["rm", "-f", "web"]), "");
    assert_eq!(home.out(&["gc"]), "");
    let all = home.sandboxes();
    let (_, lock) = sandbox(&all, "web", 'a', Status::Running);
    let (damaged, _) = sandbox(&all, "hurt", 'b', Status::Exited);
    fs::remove_file(damaged.dir().path().join("state.json")).unwrap();
    let refused = home.refused(&["rm", "web"]);
    assert!(refused.contains("nelly stop web") && refused.contains("nelly rm -f web"), "{refused}");
    assert_eq!(home.out(&["rename", "web", "shop"]), "");
    assert!(home.refused(&["rename", "shop", "hurt"]).contains("is taken"));
    assert!(home.complains(&["rename", "shop", "Shop!"], 2).contains("invalid name"));
    // Its holder is killed: nobody holds it any more.
    drop(lock);
    let refused = home.run(&["rm", "nosuch", "shop", "hurt"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "shop\nhurt\n");
    let left: Vec<_> = fs::read_dir(home.place()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| ["lock", "names", "version"].iter().any(|known| name == known)),
        "{left:?}"
    );
    assert_eq!(fs::read_dir(home.place().join("names")).unwrap().count(), 0);
}

#[test]
fn what_killed_commands_left_is_cleaned_and_told() {
    let home = Home::new();
    let all = home.sandboxes();
    let (_, _lock) = sandbox(&all, "web", 'a', Status::Running);
    std::os::unix::fs::symlink(format!("../{}", "9".repeat(64)), home.place().join("names/ghost")).unwrap();
    assert_eq!(home.out(&["gc"]), "removed the name ghost, which no sandbox has");
    assert_eq!(home.out(&["gc"]), "");
    assert_eq!(home.out(&["ps", "-q"]), "a".repeat(12));
}

#[test]
fn logs_are_printed_by_stream_lines_and_time_also_of_what_ended() {
    let home = Home::new();
    assert!(home.refused(&["logs", "web"]).contains("no sandbox"));
    let all = home.sandboxes();
    let (dir, lock) = sandbox(&all, "web", 'a', Status::Running);
    let mut log = LogWriter::open(dir.logs().unwrap(), DEFAULT_CAP_BYTES, Timestamp::now()).unwrap();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    log.write(Stream::Stdout, b"one\ntwo\n", at("2026-01-31T12:00:00Z"));
    log.write(Stream::Stderr, b"wrong\n", at("2026-01-31T12:00:01Z"));
    log.write(Stream::Stdout, b"\xff is as it was", at("2026-01-31T12:00:02Z"));
    log.finish(Stream::Stdout, at("2026-01-31T12:00:03Z"));
    let printed = home.run(&["logs", "web"]);
    assert_eq!(printed.stdout, b"one\ntwo\n\xff is as it was\n");
    assert_eq!(printed.stderr, b"wrong\n");
    assert_eq!(home.run(&["logs", "--tail", "1", "web"]).stdout, b"\xff is as it was\n");
    assert_eq!(home.run(&["logs", "--tail", "0", "web"]).stdout, b"");
    let since = home.run(&["logs", "--since", "2026-01-31T12:00:01Z", "-t", "web"]);
    assert_eq!(since.stdout, b"2026-01-31T12:00:02.000000000Z \xff is as it was\n");
    assert_eq!(since.stderr, b"2026-01-31T12:00:01.000000000Z wrong\n");
    for seconds in ["1769860801", "1769860801.0", "2026-01-31T13:00:01+01:00"] {
        assert_eq!(home.run(&["logs", "--since", seconds, "-t", "web"]).stdout, since.stdout, "{seconds}");
    }
    assert!(home.run(&["logs", "--since", "10m", "web"]).stdout.is_empty(), "it is older");
    assert!(home.complains(&["logs", "--since", "soon", "web"], 2).contains("neither a time"));

    // Follows until nobody holds the sandbox, and has all that was written until then.
    let mut follows = Command::new(env!("CARGO_BIN_EXE_nelly"));
    follows.args(["logs", "-f", "--tail", "0", "web"]).env_clear().env("NELLY_HOME", home.0.path());
    let mut follows = follows.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(follows.stdout.take().unwrap()).lines();
    // It may begin after the first lines.
    let next = std::thread::spawn(move || (lines.next(), lines));
    while !next.is_finished() {
        log.write(Stream::Stdout, b"tick\n", Timestamp::now());
        std::thread::yield_now();
    }
    let (first, lines) = next.join().unwrap();
    assert_eq!(first.unwrap().unwrap(), "tick");
    log.write(Stream::Stdout, b"the last", Timestamp::now());
    log.finish(Stream::Stdout, Timestamp::now());
    drop((log, lock));
    assert_eq!(lines.map(Result::unwrap).last().unwrap(), "the last");
    assert!(follows.wait().unwrap().success());
}

#[test]
fn a_removal_knows_what_was_being_made_when_it_began() {
    let home = Home::new();
    let (all, store) = (home.sandboxes(), LocalStore::open(home.0.path().join("data/images")).unwrap());
    let put = |text: &str| {
        let digest = Digest::sha256(text.as_bytes());
        let size = u64::try_from(text.len()).unwrap();
        store.add().unwrap().put_blob(&digest, text.as_bytes()).unwrap();
        Descriptor { media_type: "application/vnd.oci.image.manifest.v1+json".into(), digest, size }
    };
    let image = put("{\"schemaVersion\":2}");
    store.add().unwrap().set_name(None, &image).unwrap();
    // A sandbox is being made of it while somebody removes what is not used.
    let store = LocalStore::open(store.path()).unwrap();
    let hold = store.hold(&mut |_| ()).unwrap();
    let mut prune = Command::new(env!("CARGO_BIN_EXE_nelly"));
    prune.args(["image", "prune", "--all"]).env_clear().env("NELLY_HOME", home.0.path());
    let prune = prune.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut record = record("box", 'a');
    record.image.digest = image.digest.to_string();
    drop(all.draft(record).unwrap().publish().unwrap());
    drop(hold);
    let pruned = prune.wait_with_output().unwrap();
    assert!(pruned.status.success(), "{}", String::from_utf8_lossy(&pruned.stderr));
    assert_eq!(store.list().unwrap().len(), 1, "{}", String::from_utf8_lossy(&pruned.stdout));
    home.out(&["rm", "box"]);
    home.out(&["image", "prune", "--all"]);
    assert_eq!(store.list().unwrap().len(), 0);
}

#[test]
fn sockets_of_killed_keepers_are_removed_and_no_others() {
    let home = Home::new();
    let all = home.sandboxes();
    let run = home.0.path().join("run");
    // Of one that lives, of one whose keeper was killed, of one that a copy of it serves, of one
    // that will be removed, and of a sandbox of another directory.
    let mut made = Vec::new();
    for (name, digit) in [("lives", 'a'), ("killed", 'b'), ("copied", 'c'), ("goes", 'd')] {
        let (dir, lock) = sandbox(&all, name, digit, Status::Running);
        let runtime =
            RuntimeDir::make(|key| (key == "NELLY_HOME").then(|| home.0.path().into()), dir.id()).unwrap();
        let state = SandboxState { runtime_dir: Some(runtime.path().to_owned()), ..dir.state().unwrap() };
        dir.write_state(&lock, &state).unwrap();
        let listener = runtime.bind("control").unwrap();
        made.push((runtime, (name == "lives").then_some(lock), (name == "copied").then_some(listener)));
    }
    let other = run.join("e".repeat(12));
    fs::create_dir(&other).unwrap();
    let told = home.out(&["gc"]);
    let mut lines: Vec<_> = told.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 2, "{told}");
    assert!(
        lines[0].contains("sockets of sandbox bbbbbbbbbbbb") && lines[1].contains("dddddddddddd"),
        "{told}"
    );
    assert_eq!(home.out(&["gc"]), "");
    let there = |digit: &str| run.join(digit.repeat(12)).exists();
    assert!(there("a") && !there("b") && there("c") && !there("d") && there("e"));
    // A removal takes them along.
    let again = RuntimeDir::make(
        |key| (key == "NELLY_HOME").then(|| home.0.path().into()),
        all.find("goes").unwrap().id(),
    );
    drop(again.unwrap().bind("control").unwrap());
    home.out(&["rm", "goes", "copied"]);
    assert!(!there("d") && there("c"));
    drop(made);
}

#[test]
fn events_are_told_as_they_happen_until_ctrl_c() {
    let home = Home::new();
    let all = home.sandboxes();
    let (_, _old) = sandbox(&all, "old", 'a', Status::Running);
    let words = ["events", "--json", "--since", "1h", "--filter", "name=w", "--filter", "name=old"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
    command.args(words).env_clear().env("NELLY_HOME", home.0.path()).stdout(Stdio::piped());
    let mut events = command.spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let mut told = |event: &str, name: &str| {
        let object = next();
        assert_eq!((&object["event"], &object["name"]), (&json!(event), &json!(name)), "{object}");
        object["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
        object
    };
    // What is there already; then what happens.
    told("created", "old");
    told("running", "old");
    drop(sandbox(&all, "other", 'b', Status::Exited));
    let (_, web) = sandbox(&all, "web", 'c', Status::Running);
    let created = told("created", "web");
    assert_eq!((&created["labels"]["stage"], &created["schema"]), (&json!("web"), &json!(1)));
    told("started", "web");
    told("running", "web");
    home.out(&["rename", "web", "wide"]);
    assert_eq!(told("renamed", "wide")["from"], "web");
    drop(web);
    let exited = told("exited", "wide");
    assert_eq!((&exited["reason"], &exited["code"]), (&json!("unclean"), &Value::Null));
    home.out(&["rm", "wide"]);
    told("removed", "wide");
    let pid = rustix::process::Pid::from_child(&events);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(events.wait().unwrap().code(), Some(0));
    // The past alone, as lines.
    let past = home.out(&["events", "--since", "1h", "--until", "1ms", "--filter", "event=exited"]);
    let words: Vec<&str> = past.split(' ').collect();
    assert_eq!(words[1..], ["exited", "bbbbbbbbbbbb", "other", "code=7", "reason=exited"]);
    assert!(home.complains(&["events", "--filter", "event=melted"], 2).contains("unpaused"));
    assert!(home.complains(&["events", "--until", "later"], 2).contains("--until"));
}

#[test]
fn doctor_says_what_a_logout_ends() {
    let home = Home::new();
    let linger = || -> Option<Value> {
        // Whatever this host is worth.
        let said: Value = serde_json::from_slice(&home.run(&["doctor", "--json"]).stdout).unwrap();
        said.as_array().unwrap().iter().find(|found| found["check"] == "linger").cloned()
    };
    let all = home.sandboxes();
    let uid = rustix::process::getuid().as_raw();
    let name = Command::new("id").arg("-un").output().unwrap();
    let name = String::from_utf8(name.stdout).unwrap().trim().to_owned();
    let in_place = |id: char, place: String| {
        let (dir, lock) = sandbox(&all, &format!("box-{id}"), id, Status::Running);
        let mut state = dir.state().unwrap();
        state.runtime_dir = Some(format!("{place}/nelly/{}", id.to_string().repeat(12)).into());
        dir.write_state(&lock, &state).unwrap();
        lock
    };
    let _stays = in_place('a', "/run".to_owned());
    assert_eq!(linger(), None, "no logout ends it");
    let vanishes = in_place('b', format!("/run/user/{uid}"));
    let found = linger().expect("a finding");
    let lingers = PathBuf::from("/var/lib/systemd/linger").join(&name).exists();
    let text = found["text"].as_str().unwrap();
    assert!(text.contains(&format!("/run/user/{uid}")) && text.contains(&name), "{found}");
    if lingers {
        assert_eq!(found["verdict"], "ok", "{found}");
    } else {
        assert_eq!((&found["verdict"], &found["hint"]), (&json!("warn"), &json!("loginctl enable-linger")));
        assert!(text.contains("sockets in") && text.contains(": 1;"), "{found}");
    }
    drop(vanishes);
    assert_eq!(linger(), None, "what has ended is nobody's concern");
}

#[test]
fn a_unit_names_the_program_and_the_place_and_is_one_for_systemd() {
    let home = Home::new();
    let (dir, lock) = sandbox(&home.sandboxes(), "web", 'a', Status::Exited);
    let unit = home.out(&["generate", "systemd", "web"]);
    let program = fs::canonicalize(env!("CARGO_BIN_EXE_nelly")).unwrap();
    for line in [
        format!("ExecStop=\"{}\" stop {}", program.display(), "a".repeat(64)),
        format!("Environment=\"NELLY_HOME={}\"", home.0.path().display()),
        format!("RequiresMountsFor=\"{}\"", dir.dir().path().display()),
        // The grace time of ten seconds, and what the end takes.
        "TimeoutStopSec=30".to_owned(),
        "WantedBy=default.target".to_owned(),
    ] {
        assert!(unit.lines().any(|found| found == line), "no {line} in {unit}");
    }
    // What its secrets are read from at each start; values are not known.
    let mut kept = record("keys", 'b');
    let secret = |name: &str, source: Value| {
        json!({ "name": name, "source": source, "hosts": ["api.example:443"],
        "placeholder": format!("nelly-secret-{name}-0") })
    };
    let network = |secrets: &[Value]| {
        serde_json::from_value(
            json!({ "mode": "user", "secrets": secrets, "secret_ca": "/some where/ca.pem" }),
        )
        .unwrap()
    };
    let file = secret("FILE", json!({ "file": "/run/keys/a%b" }));
    kept.machine.network = network(&[
        secret("KEY", json!({ "env": "API_KEY" })),
        secret("TWO", json!({ "env": "API_KEY" })),
        file,
    ]);
    let (keys, keys_lock) = home.sandboxes().draft(kept.clone()).unwrap().publish().unwrap();
    let unit = home.out(&["generate", "systemd", "keys"]);
    for line in [
        format!("EnvironmentFile={}", home.0.path().join("config/keys.env").display()),
        format!(
            "RequiresMountsFor=\"{}\" \"/some where/ca.pem\" \"/run/keys/a%%b\"",
            keys.dir().path().display()
        ),
        "# A line API_KEY=VALUE each, of mode 0600:".to_owned(),
    ] {
        assert!(unit.lines().any(|found| found == line), "no {line} in {unit}");
    }
    assert!(unit.contains("start \\\"$$1\\\" && unset API_KEY && exec"), "{unit}");
    kept.machine.network = network(&[secret("KEY", json!({ "env": "A;B" }))]);
    kept.name = "odd".parse().unwrap();
    kept.id = "c".repeat(64).parse().unwrap();
    let (_odd, odd_lock) = home.sandboxes().draft(kept).unwrap().publish().unwrap();
    let refused = home.refused(&["generate", "systemd", "odd"]);
    assert!(refused.contains("secret KEY: systemd sets no variable that is called \"A;B\""), "{refused}");
    drop((keys_lock, odd_lock));
    let units = home.0.path().join("units");
    fs::create_dir(&units).unwrap();
    fs::write(units.join("nelly-keys.service"), unit).unwrap();
    let mut files = Command::new(env!("CARGO_BIN_EXE_nelly"));
    files.args(["generate", "systemd", "--name", "--files", "web"]).current_dir(&units);
    let files = files.env_clear().env("NELLY_HOME", home.0.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&files.stdout), "nelly-web.service\n");
    let by_name = fs::read_to_string(units.join("nelly-web.service")).unwrap();
    assert!(by_name.contains("stop web\n") && by_name.contains("start \\\"$$1\\\""), "{by_name}");
    assert!(home.refused(&["generate", "systemd", "nobody"]).contains("there is no sandbox"));
    assert!(home.complains(&["generate", "systemd", "web", "db"], 2).contains("--files"));
    // Where there is a systemd, it is the judge.
    let verify = Command::new("systemd-analyze")
        .args(["--user", "--man=no", "verify"])
        .env("XDG_RUNTIME_DIR", home.0.path())
        .args([units.join("nelly-web.service"), units.join("nelly-keys.service")])
        .output();
    match verify {
        Ok(verify) => assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr)),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
    drop(lock);
}

#[test]
fn start_restartable_names_those_that_a_policy_wants() {
    let home = Home::new();
    assert_eq!(home.out(&["start", "--restartable"]), "");
    let (_dir, _lock) = sandbox(&home.sandboxes(), "web", 'a', Status::Exited);
    // Its policy is no.
    assert_eq!(home.out(&["start", "--restartable"]), "");
    assert!(home.complains(&["start", "--restartable", "web"], 2).contains("cannot be used with"));
    assert!(home.complains(&["start"], 2).contains("SANDBOX"));
    home.out(&["update", "--restart", "always", "web"]);
    // Whatever this host's KVM is worth, the files that its record names are not there.
    let error = home.refused(&["start", "--restartable"]);
    assert!(
        error.contains("KVM")
            || error.contains("kvm")
            || error.contains("held by")
            || error.contains("nelly-keeper"),
        "{error}"
    );
}
