//! `nelly image pull URL`, `nelly boot --image URL`, and what the machines of the Hydra scripts
//! fetch, from a server of this test's own. What is packed is unpacked by a stand-in here, since
//! the program is another package's, whose tests have it (vmm/unpack/tests/fetched.rs).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nelly_image::Digest;
use nelly_sandbox::state::{SandboxRecord, Sandboxes, Timestamp};
use serde_json::{Value, json};

/// Knows what the tests need of the program's order.
const UNPACKER: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin
case "$1 $2" in
  'stream xz') xz -dc ;;
  'stream zip') cat >"$0.zip"; python3 -c 'import sys,zipfile
try: sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))
except KeyError: sys.exit(3)' "$0.zip" "$4" ;;
  'stream tar.gz') tar -xzOf - "./$4" ;;
  *) exit 1 ;;
esac
"#;

const LIMIT: Duration = Duration::from_secs(60);

/// A server of files by their paths. With a secret, it wants to see it; one that is slow sends half
/// of a file and waits.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: Vec<(&'static str, Vec<u8>)>, secret: Option<&'static str>, slow: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let files = Arc::new(files);
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log) = (Arc::clone(&files), Arc::clone(&log));
                thread::spawn(move || answer(stream, &files, secret, slow, &log));
            }
        });
        Self { port, asked }
    }

    fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &[(&str, Vec<u8>)],
    secret: Option<&str>,
    slow: bool,
    log: &Mutex<Vec<String>>,
) {
    let mut head = String::new();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next()
        && !line.is_empty()
    {
        head += &line;
        head.push('\n');
    }
    log.lock().unwrap().push(head.clone());
    let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
    let file = files.iter().find(|(name, _)| *name == path).map(|(_, bytes)| bytes);
    let _ = match file {
        _ if secret.is_some_and(|secret| !head.contains(secret)) => {
            stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        }
        None => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        Some(_) if head.contains("if-none-match: \"x\"") => {
            stream.write_all(b"HTTP/1.1 304 Not Modified\r\n\r\n")
        }
        Some(bytes) => {
            let from =
                head.split("range: bytes=").nth(1).and_then(|rest| rest.split('-').next()?.parse().ok());
            let (size, from): (usize, usize) = (bytes.len(), from.unwrap_or(0));
            let status = match from {
                0 => "200 OK".to_owned(),
                _ => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}", size - 1),
            };
            let head = format!("HTTP/1.1 {status}\r\nETag: \"x\"\r\nContent-Length: {}\r\n\r\n", size - from);
            let _ = stream.write_all(head.as_bytes());
            if slow && from == 0 {
                let _ = stream.write_all(&bytes[..size / 2]);
                thread::sleep(LIMIT);
            }
            stream.write_all(&bytes[from..])
        }
    };
    let _ = stream.shutdown(Shutdown::Both);
}

struct Place(tempfile::TempDir);

impl Place {
    /// An installation of its own, whose unpacker is the stand-in.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("bin")).unwrap();
        let nelly = place.path("bin/nelly");
        if fs::hard_link(env!("CARGO_BIN_EXE_nelly"), &nelly).is_err() {
            fs::copy(env!("CARGO_BIN_EXE_nelly"), &nelly).unwrap();
        }
        for name in ["bin/nelly-unpack", "bin/nelly-usernet", "monitor"] {
            fs::write(place.path(name), if name.ends_with("unpack") { UNPACKER } else { "#!/bin/sh\n" })
                .unwrap();
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/nelly"));
        command.args(words).current_dir(&self.0).env_clear().env("NELLY_HOME", self.path("home"));
        command.env("PATH", "/usr/bin:/bin").env("NELLY_MONITOR", self.path("monitor"));
        command
    }

    #[track_caller]
    fn run(&self, words: &[&str], code: i32) -> (String, String) {
        ended(&self.command(words).output().unwrap(), code)
    }

    /// The files that were fetched, without what is known of them.
    fn fetched(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in fs::read_dir(self.path("home/data/disks")).into_iter().flatten() {
            found.extend(fs::read_dir(place.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.retain(|path| path.extension().is_none_or(|ending| ending != "json"));
        found
    }
}

#[track_caller]
fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    assert!(!err.contains("panicked"), "{err}");
    (out, err)
}

fn disk() -> Vec<u8> {
    (0..600_000_u32).map(|n| (n % 251).to_le_bytes()[0] | 1).collect()
}

fn packed(disk: &[u8]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("disk"), disk).unwrap();
    Command::new("xz").args(["-c", "disk"]).current_dir(&place).output().unwrap().stdout
}

#[test]
fn a_disk_is_pulled_with_its_checksum_and_unpacked_once() {
    let (place, disk) = (Place::new(), disk());
    let server = Server::start(vec![("debian.raw.xz", packed(&disk))], None, false);
    let url = server.url("debian.raw.xz");
    let sum = Digest::sha256(&packed(&disk)).to_string();
    let (out, err) = place.run(&["image", "pull", "--checksum", &sum, &url], 0);
    assert!(err.starts_with("fetching http://127.0.0.1:") && !err.contains('\x1b'), "{err:?}");
    let path = PathBuf::from(out.trim_end());
    assert!(fs::read(&path).unwrap() == disk && path.ends_with(format!("debian-{}.raw", &sum[7..])), "{out}");
    let (out, err) = place.run(&["image", "pull", "--json", "-q", &url], 0);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((json["path"].as_str(), json["fetched"].as_bool()), (path.to_str(), Some(false)));
    assert_eq!(
        (json["format"].as_str(), json["digest"].as_str(), &err[..]),
        (Some("raw"), Some(&sum[..]), "")
    );
    // To a file of the user's own.
    place.run(&["image", "pull", "-q", "-o", "own.raw", &url], 0);
    assert!(fs::read(place.path("own.raw")).unwrap() == disk);
    let (_, err) = place.run(&["image", "pull", "-q", "-o", "own.raw", &url], 1);
    assert!(err.contains("own.raw exists already"), "{err}");
    let wrong = format!("sha512:{}", "0".repeat(128));
    let (_, err) = place.run(&["image", "pull", "--checksum", &wrong, &url], 1);
    assert!(err.contains("has the checksum sha512:") && err.contains(&wrong), "{err}");
    assert_eq!(place.fetched(), [path]);
    for (words, what) in [
        (&["image", "pull", "--checksum", "md5:1", "https://h.example/x"][..], "--checksum"),
        (&["image", "pull", "--checksum", &sum, "alpine"], "for the image of a disk"),
        (&["image", "pull", "--platform", "linux/amd64", "./x"], "--platform is for images of registries"),
        (&["image", "pull", "--unpack", "rar", "./x"], "rar"),
        (&["image", "pull", "http://h.example/x"], "not encrypted"),
        (&["image", "pull", "ftp://h.example/x"], "no URL of a file"),
        (&["image", "pull", "https://me:sesame@h.example/x"], "has a user or a password in it"),
    ] {
        let (_, err) = place.run(words, 2);
        assert!(err.contains(what) && !err.contains("sesame"), "{words:?}: {err}");
    }
}

#[test]
fn what_a_server_is_shown_stands_in_no_argument_and_no_message() {
    let place = Place::new();
    let server = Server::start(vec![("x.raw", disk())], Some("authorization: Bearer sesame"), false);
    let url = server.url("x.raw");
    let (_, err) = place.run(&["image", "pull", &url], 1);
    assert!(
        err.contains("needs credentials") && err.contains("hint: --credentials FILE or $NELLY_CREDENTIALS"),
        "{err}"
    );
    fs::write(place.path("token"), "bearer sesame\n").unwrap();
    place.run(&["image", "pull", "-q", "--credentials", "token", "-o", "one", &url], 0);
    let done =
        place.command(&["image", "pull", "-q", &url]).env("NELLY_CREDENTIALS", "bearer sesame").output();
    ended(&done.unwrap(), 0);
    let done = place.command(&["image", "pull", &url]).env("NELLY_CREDENTIALS", "sesame").output().unwrap();
    let (_, err) = ended(&done, 2);
    assert!(err.contains("$NELLY_CREDENTIALS is none of `bearer TOKEN`") && !err.contains("sesame"), "{err}");
}

#[test]
fn one_that_is_interrupted_leaves_a_part_to_go_on_with() {
    let (place, disk) = (Place::new(), disk());
    let server = Server::start(vec![("x.raw", disk.clone())], None, true);
    let url = server.url("x.raw");
    let mut pull = place.command(&["image", "pull", "-q", "-o", "x.raw", &url]);
    let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let part = place.path("x.raw.part");
    while fs::metadata(&part).map_or(0, |meta| meta.len()) < disk.len() as u64 / 2 {
        assert!(begun.elapsed() < LIMIT, "nothing came");
        thread::sleep(Duration::from_millis(5));
    }
    // As by Ctrl-C.
    assert!(Command::new("kill").args(["-INT", &pull.id().to_string()]).status().unwrap().success());
    let status = pull.wait().unwrap();
    // A shell's background has that signal ignored, and tests may run in one.
    if status.signal() != Some(2) {
        panic!("{status}");
    }
    assert!(!place.path("x.raw").exists());
    place.run(&["image", "pull", "-q", "-o", "x.raw", &url], 0);
    assert!(fs::read(place.path("x.raw")).unwrap() == disk);
    assert!(server.asked.lock().unwrap()[1].contains(&format!("range: bytes={}-", disk.len() / 2)));
    assert!(!part.exists() && !place.path("x.raw.part.json").exists());
}

#[test]
fn boot_fetches_an_image_once_and_never_writes_it() {
    let place = Place::new();
    let server = Server::start(vec![("debian.raw", disk())], None, false);
    let url = server.url("debian.raw");
    // It is a disk without partitions, so that nothing boots; what was fetched stays.
    let (_, err) = place.run(&["boot", "--image", &url], 125);
    assert!(err.contains("debian-") && err.contains("fetching http"), "{err}");
    assert_eq!((place.fetched().len(), server.asked()), (1, 1));
    let sum = Digest::sha256(&disk()).to_string();
    let with = format!("{url},checksum={sum},size=1G,ephemeral");
    let (_, err) = place.run(&["boot", "--dry-run", "--image", &with], 125);
    assert!(err.contains("debian-") && !err.contains("fetching"), "{err}");
    assert_eq!(server.asked(), 1);
    for (option, what) in
        [("rw", "is not written"), ("checksum=sha256:1", "checksum"), ("frobnicate", "frobnicate")]
    {
        let (_, err) = place.run(&["boot", "--image", &format!("{url},{option}")], 125);
        assert!(err.contains(what), "{option}: {err}");
    }
    let (_, err) = place.run(&["boot", "--dry-run", "--image", &server.url("other.raw")], 125);
    assert!(err.contains("not fetched yet") && err.contains("hint: nelly image pull"), "{err}");
    let (_, err) = place.run(&["boot", "--image", "x.raw,checksum=sha256:1"], 125);
    assert!(err.contains("checksum= is for the image of a URL"), "{err}");
    assert_eq!(server.asked(), 1);
}

#[test]
fn fetched_disks_are_listed_and_those_in_use_stay() {
    let (place, disk) = (Place::new(), disk());
    let mut second = disk.clone();
    second[0] = 2;
    let files = vec![("a.raw.xz", packed(&disk)), ("b.raw", second), ("c.raw", disk[..4096].to_vec())];
    let server = Server::start(files, None, false);
    let pull =
        |name: &str| PathBuf::from(place.run(&["image", "pull", "-q", &server.url(name)], 0).0.trim_end());
    let (first, second, third) = (pull("a.raw.xz"), pull("b.raw"), pull("c.raw"));
    let (out, _) = place.run(&["image", "ls"], 0);
    let line = |name: &str| out.lines().find(|line| line.starts_with(name)).map(str::to_owned).unwrap();
    assert!(line("a.raw").contains("KiB") && line("DISK").contains("FETCHED"), "{out}");
    let (out, _) = place.run(&["image", "ls", "--json"], 0);
    let rows: Vec<Value> = serde_json::from_str(&out).unwrap();
    let row = |path: &Path| rows.iter().find(|row| row["path"].as_str() == path.to_str()).unwrap().clone();
    assert_eq!(row(&first)["bytes"], disk.len());
    assert_eq!((row(&first)["kind"].as_str(), row(&first)["format"].as_str()), (Some("disk"), Some("raw")));
    let (quiet, _) = place.run(&["image", "ls", "-q"], 0);
    // `nelly image rm $(nelly image ls -q)` removes no disks.
    assert!(quiet.is_empty(), "{quiet}");

    // One that a machine has open.
    let open = fs::File::open(&first).unwrap();
    open.lock_shared().unwrap();
    let (_, err) = place.run(&["image", "rm", "a.raw"], 1);
    assert!(err.contains("is in use: a machine runs with it") && first.exists(), "{err}");
    drop(open);
    // One below an overlay that boot was told of, whether or not that boots; by its path, too.
    let link = place.path("link.raw");
    std::os::unix::fs::symlink(&second, &link).unwrap();
    for (flags, image) in [
        (&["--image"][..], server.url("b.raw")),
        (&["--image"], second.display().to_string()),
        (&["--image"], "link.raw".to_owned()),
        (&["--kernel", "none", "--disk"], link.display().to_string()),
    ] {
        let over = place.path("over.qcow2");
        let disk = format!("{image},overlay=over.qcow2");
        place.run(&[&["boot"][..], flags, &[disk.as_str()]].concat(), 125);
        let make = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", second.to_str().unwrap()];
        let made = Command::new("qemu-img").args(make).arg(&over).status().unwrap();
        assert!(made.success());
        let (_, err) = place.run(&["image", "rm", "b.raw"], 1);
        assert!(err.contains("over.qcow2 lies above it") && second.exists(), "{err}");
        fs::remove_file(over).unwrap();
        // It is noted once.
        let noted = fs::read_to_string(second.parent().unwrap().join("overlays")).unwrap();
        assert_eq!(noted.lines().count(), 1, "{noted}");
    }
    // One that a machine boots from which does not run.
    let all = Sandboxes::make(&place.path("home/data/sandboxes")).unwrap();
    let image = format!("{},ephemeral", third.display());
    let (dir, lock) = all.draft(booted(&image)).unwrap().publish().unwrap();
    drop(lock);
    let (_, err) = place.run(&["image", "rm", third.to_str().unwrap()], 1);
    assert!(err.contains("machine dev boots from it") && third.exists(), "{err}");
    place.run(&["rm", "dev"], 0);
    assert!(!dir.ssh_keys().exists());

    let (out, _) = place.run(&["image", "rm", "a.raw", second.to_str().unwrap()], 0);
    assert!(
        out.contains("removed ") && out.contains("freed ") && !first.exists() && !second.exists(),
        "{out}"
    );
    let id = row(&third)["id"].as_str().unwrap()[7..19].to_owned();
    let (out, _) = place.run(&["image", "rm", "--json", &id], 0);
    assert!(serde_json::from_str::<Value>(&out).unwrap()[0]["freed_bytes"].as_u64() >= Some(4096), "{out}");
    assert!(place.fetched().is_empty(), "{:?}", place.fetched());
    assert_eq!(fs::read_dir(place.path("home/data/disks")).unwrap().count(), 0);
    let (_, err) = place.run(&["image", "rm", "a.raw"], 1);
    assert!(!err.is_empty());
    // It can be fetched again.
    assert!(pull("c.raw").exists());
}

/// The record of a machine that boots from this image.
fn booted(image: &str) -> SandboxRecord {
    let process = json!({ "args": [], "env": [], "cwd": "/", "user": "0", "terminal": true, "stdin": true });
    let container = json!({ "process": process, "hostname": "dev", "read_only": false, "tmpfs": [], "upper_bytes": 0, "seccomp": "default" });
    serde_json::from_value(json!({ "id": "a".repeat(64), "name": "dev", "created": Timestamp::now(),
        "image": { "reference": image, "digest": "", "disk_paths": [] }, "container": container,
        "machine": { "cpus": 1, "memory_bytes": 536_870_912_u64, "kernel": "", "initrd": "", "monitor": "/m", "network": { "mode": "none" } },
        "boot": { "image": image, "on_reset": "reboot" } }))
    .unwrap()
}

#[test]
fn the_machines_of_the_scripts_fetch_what_they_need() {
    let (place, disk) = (Place::new(), disk());
    let server = Server::start(vec![("d/debian.raw.xz", packed(&disk))], None, false);
    let mut isolated = place.command(&["isolated"]);
    isolated.envs([("VM_PASSWORD", "open sesame"), ("DISABLE_CONTAINERD_CSI_PROXY", "1")]);
    isolated.envs([("DEFAULT_IMAGE", "debian.raw.xz"), ("DEFAULT_IMAGE_SOURCE_URL", &server.url("d/"))]);
    let (_, err) = ended(&isolated.output().unwrap(), 125);
    // Nothing in it boots, and it is there for the next time.
    assert!(fs::read(place.path("image/debian.raw")).unwrap() == disk, "{err}");
    assert!(err.contains("image/debian.raw"), "{err}");
    ended(&isolated.output().unwrap(), 125);
    assert_eq!(server.asked(), 1);

    let made = Command::new("python3")
        .args(["-c", "import zipfile,sys; z=zipfile.ZipFile(sys.stdout.buffer,'w'); z.writestr('f/Image','kernel'); z.writestr('f/initrd','initrd'); z.close()"])
        .output()
        .unwrap();
    assert!(made.status.success());
    let server = Server::start(vec![("artifacts", made.stdout)], Some("private-token: sesame"), false);
    let bare = |token: Option<&str>, words: &[&str]| {
        let mut command = place.command(&[&["isolated", "--bare"], words].concat());
        command
            .env("DEFAULT_RIMD_ARTIFACT_URL", server.url("artifacts"))
            .env("DISABLE_CONTAINERD_CSI_PROXY", "1");
        command
            .envs([("DEFAULT_RIMD_KERNEL_FILENAME", "f/Image"), ("DEFAULT_RIMD_IMAGE_FILENAME", "f/initrd")]);
        command.envs(token.map(|token| ("RIMD_ARTIFACT_URL_TOKEN", token)));
        let done = command.output().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let top = place.path("image-hydra-isolated-bare");
    let (code, err) = bare(None, &["--", "--dry-run"]);
    assert!(code == 125 && err.contains("there is no kernel") && !top.exists(), "{err}");
    let (code, err) = bare(None, &[]);
    assert!(code == 125 && err.contains("RIMD_ARTIFACT_URL_TOKEN"), "{err}");
    let (_, err) = bare(Some("sesame"), &["--", "--dry-run"]);
    assert!(err.contains("there is no kernel"), "{err}");
    let (_, err) = bare(Some("sesame"), &[]);
    assert!(top.join("f/Image").exists(), "{err}");
    assert_eq!(fs::read(top.join("f/Image")).unwrap(), b"kernel", "{err}");
    assert_eq!(fs::read(top.join("f/initrd")).unwrap(), b"initrd");
    assert!(!err.contains("sesame") && !top.join("final_artifact/something.qcow2").exists(), "{err}");
    let before = server.asked();
    fs::remove_file(top.join("f/initrd")).unwrap();
    bare(None, &[]);
    assert!(top.join("f/initrd").exists() && server.asked() == before, "the archive is there");
    // One that is a tar archive, whatever its name says, with what it was packed from.
    fs::remove_dir_all(top.join("f")).unwrap();
    let tar = "mkdir -p f && echo one >f/Image && echo two >f/initrd && tar -cf - ./f | gzip >image-hydra-isolated-bare/artifacts.zip";
    let made = Command::new("sh").args(["-c", tar]).current_dir(place.path(".")).status().unwrap();
    let (_, err) = bare(None, &[]);
    assert!(made.success() && fs::read(top.join("f/initrd")).unwrap() == b"two\n", "{err}");
    fs::write(top.join("artifacts.zip"), "neither").unwrap();
    fs::remove_file(top.join("f/initrd")).unwrap();
    let (code, err) = bare(None, &[]);
    assert!(
        code == 125 && err.contains("cannot take f/initrd out of") && err.contains("zip and tar"),
        "{err}"
    );
}
