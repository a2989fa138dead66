//! `nelly ssh` and `nelly ssh-config`: which words ssh gets, and what is said where it cannot lead
//! anywhere. Machines are records in a state directory, and this process holds the locks of those
//! that "run"; ssh is a program that shows its arguments, and the real one judges configurations.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nelly_sandbox::state::{
    SandboxDir, SandboxLock, SandboxRecord, SandboxState, Sandboxes, Status, Timestamp,
};
use nelly_seed::KeyPair;
use serde_json::{Value, json};

/// Shows its arguments and what it reads, and ends as a command of a guest may.
const SSH: &str = "#!/bin/sh\nprintf '<%s>\\n' \"$@\"\ncat\necho said >&2\nexit 37\n";

/// A home in a directory with blanks and a percent sign, which ssh has to be told of in its way.
struct Home {
    top: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let bin = top.path().join("bin");
        fs::create_dir(&bin).unwrap();
        // Another process writes it: one that forks here cannot have it open for writing meanwhile.
        let script = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
        let written = Command::new("sh").args(["-c", script, "sh", SSH]).arg(bin.join("ssh")).status();
        assert!(written.unwrap().success());
        Self { top }
    }

    fn home(&self) -> PathBuf {
        self.top.path().join("a 100% home")
    }

    fn sandboxes(&self) -> Sandboxes {
        Sandboxes::make(&self.home().join("data/sandboxes")).unwrap()
    }

    fn run(&self, path: &str, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(words).env_clear().env("NELLY_HOME", self.home()).env("PATH", path);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // One that has ended already reads nothing.
        let _unread = child.stdin.take().unwrap().write_all(b"typed\n");
        child.wait_with_output().unwrap()
    }

    /// With the program that shows its arguments.
    fn shown(&self, words: &[&str]) -> Output {
        self.run(&format!("{}:/usr/bin:/bin", self.top.path().join("bin").display()), words)
    }

    #[track_caller]
    fn refused(&self, words: &[&str], code: i32) -> String {
        let output = self.shown(words);
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(code), &b""[..]), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    #[track_caller]
    fn config(&self, words: &[&str]) -> String {
        let output = self.shown(&[&["ssh-config"], words].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The record of a machine whose id begins with `digit`.
fn record(name: &str, digit: char, boot: Option<Value>, network: &Value) -> SandboxRecord {
    let process = json!({ "args": [], "env": [], "cwd": "/", "user": "0", "terminal": true, "stdin": true });
    let container = json!({ "process": process, "hostname": name, "read_only": false, "tmpfs": [], "upper_bytes": 0, "seccomp": "default" });
    let mut record = json!({ "id": digit.to_string().repeat(64), "name": name, "created": Timestamp::now(),
        "image": { "reference": "/d.qcow2", "digest": "", "disk_paths": [] }, "container": container,
        "machine": { "cpus": 1, "memory_bytes": 536_870_912_u64, "kernel": "", "initrd": "", "monitor": "/m", "network": network } });
    if let Some(boot) = boot {
        record["boot"] = boot;
    }
    serde_json::from_value(record).unwrap()
}

fn booted(ssh: &Value) -> Option<Value> {
    Some(json!({ "image": "/d.qcow2", "on_reset": "reboot", "seed": true, "ssh": ssh }))
}

/// A machine in this state; dropping the lock is the end of its keeper.
fn machine(
    all: &Sandboxes,
    record: SandboxRecord,
    status: Status,
    published: &[&str],
) -> (SandboxDir, SandboxLock) {
    let (dir, lock) = all.draft(record).unwrap().publish().unwrap();
    let mut state = SandboxState::created();
    state.status = status;
    state.started_at = Some(Timestamp::now());
    state.network = serde_json::from_value(json!({ "published": published })).unwrap();
    dir.write_state(&lock, &state).unwrap();
    (dir, lock)
}

/// Keys as `nelly boot` makes them.
fn keys(at: &Path, number: u8) {
    fs::create_dir(at).unwrap();
    fs::set_permissions(at, Permissions::from_mode(0o700)).unwrap();
    for (name, secret) in [("id_ed25519", [number; 32]), ("ssh_host_ed25519_key", [number + 1; 32])] {
        fs::write(at.join(name), KeyPair::of(&secret, "test").private()).unwrap();
        fs::set_permissions(at.join(name), Permissions::from_mode(0o600)).unwrap();
    }
}

/// What the real ssh understands.
fn judged(config: &Path, name: &str) -> Vec<String> {
    let said = Command::new("ssh").arg("-G").arg("-F").arg(config).arg(name).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn ssh_gets_the_machines_configuration_and_the_words_and_its_code_is_the_commands() {
    let home = Home::new();
    let all = home.sandboxes();
    let ssh = json!({ "alias": "nelly-0", "user": "debian" });
    let made = record("dev", 'a', booted(&ssh), &json!({ "mode": "user" }));
    let (dir, _lock) = machine(&all, made, Status::Running, &["127.0.0.1:40022:22/tcp"]);
    keys(&dir.ssh_keys(), 1);
    let config = dir.ssh_keys().join("config");
    let named = config.to_str().unwrap();
    for (words, expected) in [
        (&["dev"][..], &["--", "dev"][..]),
        (&["aaaa"], &["--", "dev"]),
        (&["dev", "uname", "-a"], &["--", "dev", "uname", "-a"]),
        (&["dev", "--", "-x", "--"], &["--", "dev", "-x", "--"]),
        (&["ada@dev", "sh", "-c", "a  b"], &["--", "dev", "sh", "-c", "a  b"]),
    ] {
        let output = home.shown(&[&["ssh"], words].concat());
        let user: &[&str] = if words[0].contains('@') { &["-l", "ada"] } else { &[] };
        let way = ["-o", "HostName=127.0.0.1", "-o", "Port=40022"];
        let expected = [&["-F", named], user, &way, expected].concat();
        let mut lines: String = expected.iter().map(|word| format!("<{word}>\n")).collect();
        lines.push_str("typed\n");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), lines, "{words:?}");
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(37), &b"said\n"[..]), "{words:?}");
    }
    let said = judged(&config, "dev");
    for line in [
        "user debian",
        "hostname 127.0.0.1",
        "port 40022",
        "hostkeyalias nelly-0",
        "globalknownhostsfile /dev/null",
        "identitiesonly yes",
        "stricthostkeychecking true",
    ] {
        assert!(said.iter().any(|said| said == line), "{line}: {said:#?}");
    }
    let known = dir.ssh_keys().join("known_hosts");
    let found = Command::new("ssh-keygen").args(["-F", "nelly-0", "-f"]).arg(&known).output().unwrap();
    let host = KeyPair::of(&[2; 32], "").public().without_comment();
    assert!(String::from_utf8(found.stdout).unwrap().contains(&host));
    let without = home.run("/nonexistent", &["ssh", "dev"]);
    let error = String::from_utf8(without.stderr).unwrap();
    assert!(without.status.code() == Some(125) && error.contains("install OpenSSH"), "{error}");
}

#[test]
fn a_printed_configuration_is_one_that_ssh_takes() {
    let home = Home::new();
    assert_eq!(home.config(&[]), "");
    let all = home.sandboxes();
    let user = json!({ "mode": "user" });
    // Its name is another one now, and its keys lie where the user said.
    let own = home.top.path().join("keys of web");
    keys(&own, 1);
    let ssh = json!({ "alias": "machine", "user": "ada", "directory": own });
    let web = record("web", 'a', booted(&ssh), &user);
    let (_, _web) = machine(&all, web, Status::Running, &["0.0.0.0:2222:22/tcp"]);
    let dev = record("dev", 'b', booted(&json!({ "alias": "dev" })), &user);
    let (dev, _dev) = machine(&all, dev, Status::Running, &["[::1]:40022:22/tcp"]);
    keys(&dev.ssh_keys(), 3);
    let stopped = record("stopped", 'c', booted(&ssh), &user);
    drop(machine(&all, stopped, Status::Exited, &[]));
    let path = home.top.path().join("config");
    fs::write(&path, home.config(&[])).unwrap();
    let (web, dev) = (judged(&path, "web"), judged(&path, "dev"));
    let has = |said: &[String], line: &str| assert!(said.iter().any(|one| one == line), "{line}: {said:#?}");
    for line in ["user ada", "hostname 127.0.0.1", "port 2222", "hostkeyalias machine"] {
        has(&web, line);
    }
    for line in ["hostname ::1", "port 40022", "hostkeyalias dev", "stricthostkeychecking true"] {
        has(&dev, line);
    }
    let files = web.iter().filter(|line| line.contains("keys of web")).count();
    assert_eq!(files, 2, "identity and known hosts: {web:#?}");
    let one = home.config(&["web"]);
    assert!(one.starts_with("Host web\n") && !one.contains("Host dev"), "{one}");
    let other = judged(&path, "elsewhere");
    assert!(!other.iter().any(|line| line.contains("keys of web")), "it is for its machines alone");
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let home = Home::new();
    for verb in ["ssh", "ssh-config"] {
        let code = if verb == "ssh" { 125 } else { 1 };
        let error = home.refused(&[verb, "dev"], code);
        assert!(error.contains("no sandbox"), "{error}");
    }
    let all = home.sandboxes();
    let (user, none) = (json!({ "mode": "user" }), json!({ "mode": "none" }));
    let tap = json!({ "mode": "tap", "name": "t0" });
    let ssh = json!({ "alias": "dev", "user": "ada" });
    let way = &["127.0.0.1:40022:22/tcp"][..];
    let hostile = |ssh: Value| booted(&ssh);
    let mut locks = Vec::new();
    for (digit, name, boot, network, published, with_keys, words) in [
        ('0', "box", None, &user, way, false, &["has a container", "nelly exec -it box sh"][..]),
        ('1', "bare", booted(&Value::Null), &user, way, false, &["no keys", "nelly boot -d --name bare"]),
        ('2', "lost", booted(&ssh), &user, way, false, &["are gone", "nelly boot -d --name lost"]),
        (
            '3',
            "shut",
            booted(&ssh),
            &none,
            &[],
            true,
            &["no way to its port 22", "-p 2222:22", "has --net none"],
        ),
        ('4', "udp", booted(&ssh), &user, &["127.0.0.1:1:22/udp"], true, &["nelly port add udp 0:22"]),
        ('5', "tap", booted(&ssh), &tap, &[], true, &["no way to its port 22", "-o HostName=ADDRESS tap"]),
        ('6', "line", hostile(json!({ "alias": "x\n  ProxyCommand y" })), &user, way, true, &["host name"]),
        ('7', "user", hostile(json!({ "alias": "x", "user": "a\nb" })), &user, way, true, &["the record of"]),
        (
            '8',
            "path",
            hostile(json!({ "alias": "x", "user": "a", "directory": "/a\"b" })),
            &user,
            way,
            false,
            &["ssh cannot be told of"],
        ),
        (
            '9',
            "flag",
            hostile(json!({ "alias": "-oProxyCommand=y", "user": "a" })),
            &user,
            way,
            true,
            &["host name"],
        ),
    ] {
        let (dir, lock) = machine(&all, record(name, digit, boot, network), Status::Running, published);
        if with_keys {
            keys(&dir.ssh_keys(), 1);
        }
        for (verb, code) in [("ssh", 125), ("ssh-config", 1)] {
            let error = home.refused(&[verb, name], code);
            for word in words {
                assert!(error.contains(word), "{verb} {name}: {word}: {error}");
            }
        }
        locks.push(lock);
    }
    // Nobody's user is known: ssh-config is for ssh, which can be told.
    let nobody = record("nobody", 'a', booted(&json!({ "alias": "nobody" })), &user);
    let (dir, lock) = machine(&all, nobody, Status::Running, way);
    keys(&dir.ssh_keys(), 1);
    assert!(home.refused(&["ssh", "nobody"], 125).contains("`nelly ssh USER@nobody`"));
    assert!(home.shown(&["ssh", "ada@nobody"]).status.code() == Some(37));
    for (user, word) in
        [("", "USER@SANDBOX"), ("a b", "USER@SANDBOX"), ("root", "cannot log in"), ("-l", "'-l'")]
    {
        let error = home.refused(&["ssh", &format!("{user}@nobody")], 125);
        assert!(error.contains(word), "{user}: {error}");
    }
    drop(lock);
    assert!(home.refused(&["ssh", "ada@nobody"], 125).contains("`nelly start nobody`"));
    let paused = record("paused", 'b', booted(&ssh), &user);
    let (_, _lock) = machine(&all, paused, Status::Paused, way);
    assert!(home.refused(&["ssh", "paused"], 125).contains("`nelly unpause paused`"));
    // Of all, those that cannot be reached are left out by name.
    let output = home.shown(&["ssh-config"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("left out: machine shut has no way") && !said.contains("bare"), "{said}");
    // Words that are missing are nelly's failure, too.
    assert!(home.refused(&["ssh"], 125).contains("SANDBOX"));
}

#[test]
fn a_machine_without_agent_is_proxied_by_its_published_port() {
    let home = Home::new();
    let all = home.sandboxes();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let published = format!("{}:7/tcp", listener.local_addr().unwrap());
    let made = record("dev", 'a', booted(&json!({ "alias": "dev" })), &json!({ "mode": "user" }));
    let (_, _dev) = machine(&all, made, Status::Running, &["127.0.0.1:1:80/tcp", &published]);
    let guest = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = String::new();
        // The end of the input is passed on; what is said behind it still comes.
        stream.read_to_string(&mut heard).unwrap();
        write!(stream, "heard {heard}").unwrap();
    });
    let output = home.shown(&["proxy", "dev", "7"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"heard typed\n");
    guest.join().unwrap();
    // Nobody listens at that port of this host any more, nor at another.
    let error = home.refused(&["proxy", "dev", "7"], 1);
    assert!(error.contains("leads to port 7 of the guest"), "{error}");
    let error = home.refused(&["proxy", "dev", "22"], 1);
    assert!(error.contains("nelly port add dev 0:22"), "{error}");
}
