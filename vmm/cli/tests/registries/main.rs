//! The verbs for registries as a user has them, with Debian's docker-registry and skopeo: no guest
//! is needed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod faulty;
mod terminal;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nelly_image::Digest;
use serde_json::{Value, json};

/// `user` with the password `secret`, as htpasswd's bcrypt.
const HTPASSWD: &str = "user:$2y$05$wIglIHy0e/1k9y7aft0O8eIQMUjum96lYhom7wNuNCfrBvccHVlNu\n";
/// What would drive a terminal: a color, a cleared screen, a title, a line of its own, letters that
/// run from right to left.
const HOSTILE: &str = "\x1b[31mx\x1b[2J\x1b]0;title\x07\r\nuntagged\u{202e}evil\u{9b}1m";
/// Longest time for what takes a moment.
const LIMIT: Duration = Duration::from_secs(120);

/// docker-registry on a port of its own, which ends with this.
struct Registry {
    child: Child,
    _directory: tempfile::TempDir,
    port: u16,
}

impl Registry {
    fn start(auth: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, formatter: text}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\n"
        );
        if auth {
            fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {path}/htpasswd}}}}\n");
        }
        config += "http: {addr: '127.0.0.1:0', secret: x}\n";
        fs::write(directory.path().join("config.yml"), config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(directory.path().join("config.yml"))
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (tests/setup/packages.txt)");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let port = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "docker-registry ended: {seen}");
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().unwrap();
            }
            seen += &line;
        };
        // Its log is read to its end, so that it never waits for a reader.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, _directory: directory, port }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(words).env_clear().env("NELLY_HOME", self.0.path().join("nelly"));
        command.env("HOME", self.0.path()).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, words: &[&str], code: i32) -> (String, String) {
        ended(&self.command(words).output().unwrap(), code)
    }

    /// What a command prints that must succeed.
    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        self.run(words, 0).0
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.out(words)).unwrap()
    }

    /// `nelly login` with a password on standard input.
    #[track_caller]
    fn login(&self, host: &str, password: &str, code: i32) -> (String, String) {
        let mut command = self.command(&["login", "-u", "user", "--password-stdin", host]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
        ended(&child.wait_with_output().unwrap(), code)
    }

    /// Where parts of blobs are.
    fn partial(&self) -> PathBuf {
        self.0.path().join("nelly/data/images/partial")
    }
}

#[track_caller]
fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    (out, err)
}

/// Bytes that no compression and no other layer has.
fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes);
    fs::File::open("/dev/urandom").unwrap().take(bytes as u64).read_to_end(&mut noise).unwrap();
    noise
}

/// skopeo pushes an image of one layer with a file of `bytes` bytes; the layer's digest.
fn pushed(target: &str, bytes: usize, credentials: Option<&str>) -> String {
    pushed_layers(target, bytes, 1, credentials).remove(0)
}

/// The same of `count` such layers.
fn pushed_layers(target: &str, bytes: usize, count: usize, credentials: Option<&str>) -> Vec<String> {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    fs::create_dir_all(at("image/blobs/sha256")).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = Digest::sha256(bytes);
        fs::write(at("image/blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len() })
    };
    let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        fs::write(at("file"), noise(bytes)).unwrap();
        tool(work.path(), &["tar", "-cf", "layer.tar", "file"]);
        diff_ids.push(Digest::sha256(&fs::read(at("layer.tar")).unwrap()).to_string());
        // skopeo would compress a layer that is not.
        tool(work.path(), &["gzip", "-fn", "layer.tar"]);
        layers.push(blob(&fs::read(at("layer.tar.gz")).unwrap(), "layer.v1.tar+gzip"));
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({ "architecture": architecture, "os": "linux", "author": HOSTILE,
        "config": { "Cmd": ["/file"], "Labels": { HOSTILE: HOSTILE }, "WorkingDir": HOSTILE },
        "history": [{ "created_by": format!("a test {HOSTILE}"), "comment": HOSTILE }],
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(at("image/index.json"), index.to_string()).unwrap();
    fs::write(at("image/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let target = format!("docker://{target}");
    let mut words = vec!["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false"];
    if let Some(credentials) = credentials {
        words.extend(["--dest-creds", credentials]);
    }
    words.extend(["oci:image", &target]);
    tool(work.path(), &words);
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

/// Runs a tool that must succeed; what it prints.
#[track_caller]
fn tool(directory: &Path, words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).current_dir(directory).output().unwrap();
    ended(&output, 0).0
}

#[test]
fn an_image_is_pulled_shown_tagged_pushed_and_removed() {
    let mut registry = Registry::start(false);
    let home = Home::new();
    let name = format!("{}/team/app:1", registry.host());
    let layer = pushed(&name, 100_000, None);
    let (out, err) = home.run(&["image", "pull", &name], 0);
    assert!(out.starts_with(&format!("{}/team/app@sha256:", registry.host())), "{out}");
    assert!(err.starts_with(&format!("pulling {name}\n")) && err.contains("done, 9"), "{err}");
    assert!(!err.contains('\x1b') && !err.contains('\r'), "no terminal: {err:?}");
    // Nothing but the digest with --quiet, and nothing that is there is fetched again.
    let (out, err) = home.run(&["image", "pull", "--quiet", &name], 0);
    assert!(out.starts_with("sha256:") && out.lines().count() == 1 && err.is_empty(), "{out}{err}");
    let again = home.json(&["image", "pull", "--json", &name]);
    assert_eq!(again["transferred_bytes"], 0, "{again}");

    let listed = home.json(&["image", "ls", "--json"]);
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"]), (1, &json!(name)));
    let shown = &home.json(&["image", "inspect", "--json", &name])[0];
    assert_eq!((&shown["layers"][0]["digest"], &shown["config"]["cmd"]), (&json!(layer), &json!(["/file"])));
    assert!(home.out(&["image", "history", &name]).contains("a test"));
    // An image's words do not drive the terminal, nor look like other lines.
    for words in [&["image", "inspect", &name][..], &["image", "history", "--no-trunc", &name]] {
        let out = home.out(words);
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!out.contains(bad) && !out.contains("\nuntagged"), "{words:?}: {out:?}");
    }

    let copy = format!("{}/other/app:2", registry.host());
    home.out(&["image", "tag", &name, &copy]);
    let sent = home.json(&["image", "push", "--json", &copy]);
    assert_eq!(sent["digest"], again["manifest_digest"], "{sent}");
    let theirs =
        tool(Path::new("/"), &["skopeo", "inspect", "--tls-verify=false", &format!("docker://{copy}")]);
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    assert_eq!((&theirs["Digest"], &theirs["Layers"]), (&sent["digest"], &json!([layer])));

    registry.stop();
    let (_, err) = home.run(&["image", "pull", &name], 1);
    assert!(err.contains(&name) && err.contains("cannot connect"), "{err}");
    // What is in the store needs no registry.
    assert!(home.out(&["image", "inspect", &name]).contains(&layer));
    let removed = home.out(&["image", "rm", &name, &copy]);
    assert!(
        removed.contains(&format!("untagged {copy}\n")) && removed.contains("removed sha256:"),
        "{removed}"
    );
    assert_eq!(home.json(&["image", "ls", "--json"]), json!([]));
}

#[test]
fn a_private_image_needs_a_login() {
    let registry = Registry::start(true);
    let home = Home::new();
    let (host, name) = (registry.host(), format!("{}/team/app:1", registry.host()));
    pushed(&name, 1000, Some("user:secret"));
    let denied = |home: &Home| {
        let (out, err) = home.run(&["image", "pull", "-q", &name], 1);
        assert!(out.is_empty() && err.contains(&format!("nelly login {host}")), "{out}{err}");
    };
    denied(&home);
    let (_, err) = home.login(&host, "wrong", 1);
    assert!(err.contains(&format!("{host} does not accept this user name and password")), "{err}");
    assert!(!err.contains("wrong"), "{err}");
    denied(&home);
    let (out, _) = home.login(&host, "secret", 0);
    assert_eq!(out, format!("logged in to {host} as user\n"));
    home.out(&["image", "pull", "-q", &name]);
    home.out(&["image", "push", "-q", &name, &format!("{host}/team/app:2")]);
    assert_eq!(home.out(&["logout", &host]), format!("logged out of {host}\n"));
    assert_eq!(home.out(&["logout", &host]), format!("there was no login to {host}\n"));
    denied(&home);
    // A helper that is not installed: both are said, and what is public is pulled.
    fs::write(home.0.path().join(".docker/config.json"), r#"{"credsStore":"nelly-none"}"#).unwrap();
    let (_, err) = home.run(&["image", "pull", "-q", &name], 1);
    let helper = format!("docker-credential-nelly-none for {host}, which is not in PATH");
    assert!(err.contains(&helper) && err.contains(&format!("nelly login {host}")), "{err}");
}

/// Passes connections on to a registry, and holds its answers back after some bytes.
struct Gate {
    port: u16,
    state: Arc<GateState>,
}

struct GateState {
    /// Bytes of answers that passed.
    passed: AtomicU64,
    open: AtomicBool,
}

impl Gate {
    fn start(to: u16, most: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(GateState { passed: AtomicU64::new(0), open: AtomicBool::new(false) });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", to))) else {
                    return;
                };
                let (mut asks, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut asks, &mut asked);
                    let _ = asked.shutdown(Shutdown::Write);
                });
                let state = Arc::clone(&shared);
                thread::spawn(move || state.answers(server, client, most));
            }
        });
        Self { port, state }
    }

    fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Acquire)
    }
}

impl GateState {
    fn answers(&self, mut server: TcpStream, mut client: TcpStream, most: u64) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(got @ 1..) = server.read(&mut buffer) {
            while !self.open.load(Ordering::Acquire) && self.passed.load(Ordering::Acquire) > most {
                thread::sleep(Duration::from_millis(5));
            }
            if client.write_all(&buffer[..got]).is_err() {
                break;
            }
            self.passed.fetch_add(got as u64, Ordering::AcqRel);
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_interrupted_pull_goes_on_and_two_share_one_download() {
    const BYTES: usize = 24 << 20;
    let registry = Registry::start(false);
    pushed(&format!("{}/app", registry.host()), BYTES, None);
    let home = Home::new();
    let gate = Gate::start(registry.port, 8 << 20);
    let name = format!("127.0.0.1:{}/app", gate.port);
    let largest = || {
        let entries = fs::read_dir(home.partial()).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|meta| meta.len()).max().unwrap_or(0)
    };
    let mut first = home.command(&["image", "pull", "-q", &name]);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("a part of the layer came", || largest() > 4 << 20);
    // As by Ctrl-C, whose signal a shell's background makes ignored (terminal.rs has the key).
    tool(Path::new("/"), &["kill", "-TERM", &first.id().to_string()]);
    assert_eq!(first.wait().unwrap().signal(), Some(15), "ended as by Ctrl-C");
    assert_eq!(home.json(&["image", "ls", "--json"]), json!([]), "no image has the name");

    // Two at once: the second finds the download of the first and waits for it.
    let before = gate.passed();
    let pull = || {
        let mut command = home.command(&["image", "pull", "--json", &name]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    gate.state.open.store(true, Ordering::Release);
    let sums: Vec<Value> = [pull(), pull()]
        .into_iter()
        .map(|child| serde_json::from_str(&ended(&child.wait_with_output().unwrap(), 0).0).unwrap())
        .collect();
    assert_eq!(sums[0]["digest"], sums[1]["digest"]);
    let transferred: Vec<u64> = sums.iter().map(|sum| sum["transferred_bytes"].as_u64().unwrap()).collect();
    let layer = transferred.iter().filter(|bytes| **bytes > BYTES as u64).count();
    assert_eq!(layer, 1, "one of the two fetched the layer: {transferred:?}");
    let fetched = gate.passed() - before;
    let most = (BYTES - (4 << 20) + (1 << 20)) as u64;
    assert!(fetched < most, "what came before was fetched again: {fetched} bytes");
}
