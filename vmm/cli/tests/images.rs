//! The verbs of images with archives and other engines, and what a sandbox takes from its image: no
//! guest is needed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nelly_image::Digest;
use serde_json::{Value, json};

/// The architecture of this host, and one that it is not, as images call them.
const ARCHITECTURES: [&str; 2] =
    if cfg!(target_arch = "aarch64") { ["arm64", "amd64"] } else { ["amd64", "arm64"] };

/// A place for images and sandboxes, with assets that nothing is started of.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let data = home.at("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        let manifest = json!({ "schema": 1, "build_id": "b1", "kernel": "vmlinux", "platform": "mptable",
            "initramfs": "i.cpio", "builtin": "busybox", "kernel_source": "linux-6.12.99" });
        fs::write(data.join("assets.json"), manifest.to_string()).unwrap();
        fs::write(data.join("vmlinux"), "k").unwrap();
        fs::write(data.join("i.cpio"), "i").unwrap();
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// `nelly WORDS`, which finds no other engine but those in `engines` of this place.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(words).env_clear().env("NELLY_HOME", self.0.path()).env("NELLY_MONITOR", "/bin/true");
        command.env("PATH", self.at("engines")).stdin(Stdio::null());
        command
    }

    /// What a command says that must end with this code: its output and its errors.
    #[track_caller]
    fn run(&self, words: &[&str], code: i32) -> (String, String) {
        ended(&self.command(words).output().unwrap(), code)
    }

    #[track_caller]
    fn out(&self, words: &[&str]) -> String {
        self.run(words, 0).0
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.out(words)).unwrap()
    }

    /// Runs a tool of the host in this place; what it prints.
    #[track_caller]
    fn tool(&self, words: &[&str]) -> String {
        ended(&Command::new(words[0]).args(&words[1..]).current_dir(self.0.path()).output().unwrap(), 0).0
    }

    /// An OCI layout in the directory `name`, whose image has one file and a label, and is called
    /// `app:1`.
    fn layout(&self, name: &str, architecture: &str) {
        let blobs = self.at(name).join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(self.at("file"), name).unwrap();
        self.tool(&["tar", "-cf", "layer.tar", "file"]);
        let blob = |bytes: &[u8], kind: &str| {
            let digest = Digest::sha256(bytes);
            fs::write(blobs.join(digest.hex()), bytes).unwrap();
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len() })
        };
        let layer = blob(&fs::read(self.at("layer.tar")).unwrap(), "layer.v1.tar");
        let config = json!({ "architecture": architecture, "os": "linux",
            "config": { "Cmd": ["/file"], "Labels": { "stage": "image", "of": "image" } },
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] } });
        let config = blob(config.to_string().as_bytes(), "config.v1+json");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "app:1" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(self.at(name).join("index.json"), index.to_string()).unwrap();
        fs::write(self.at(name).join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    /// The same in an archive, `NAME.tar`.
    fn archive(&self, name: &str, architecture: &str) -> String {
        self.layout(name, architecture);
        self.tool(&["tar", "-cf", &format!("{name}.tar"), "-C", name, "."]);
        self.word(&format!("{name}.tar"))
    }

    /// A command `name` that nelly finds, as docker or podman would be.
    fn engine(&self, name: &str, script: &str) {
        fs::create_dir_all(self.at("engines")).unwrap();
        fs::write(self.at("script"), format!("#!/bin/sh\n{script}\n")).unwrap();
        // By another process: what this one has open to write, its other threads pass on to theirs.
        self.tool(&["install", "-m", "755", "script", &format!("engines/{name}")]);
    }

    fn images(&self) -> Value {
        self.json(&["image", "ls", "--json"])
    }
}

#[track_caller]
fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    (out, err)
}

#[test]
fn an_image_is_loaded_from_a_file_and_saved_to_one_in_both_forms() {
    let home = Home::new();
    let archive = home.archive("layout", ARCHITECTURES[0]);
    home.tool(&["gzip", "-kn", "layout.tar"]);
    assert_eq!(home.out(&["image", "load", "-i", &archive]), "loaded app:1\n");
    let id = home.images()[0]["id"].clone();
    assert_eq!(
        home.json(&["image", "load", "--json", "-i", &format!("{archive}.gz"), "--name", "zipped:2"]),
        json!([{ "schema": 1, "id": id, "name": "zipped:2" }])
    );
    home.out(&["image", "rm", "zipped:2"]);

    // As OCI, the default: the same bytes as through a pipe, and the same image again.
    let saved = home.word("saved.tar");
    fs::write(&saved, "of before").unwrap();
    home.out(&["image", "save", "--quiet", "-o", &saved, "app:1"]);
    let piped = home.command(&["image", "save", "--quiet", "--format", "oci", "app:1"]).output().unwrap();
    assert!(piped.status.success() && fs::read(&saved).unwrap() == piped.stdout, "the same bytes");
    assert!(home.tool(&["tar", "-tf", &saved]).contains("oci-layout"));
    // As docker saves.
    let docker = home.word("docker.tar");
    home.out(&["image", "save", "--quiet", "--format", "docker", "--output", &docker, "app:1"]);
    let manifest: Value =
        serde_json::from_str(&home.tool(&["tar", "-xOf", &docker, "manifest.json"])).unwrap();
    assert_eq!(manifest[0]["RepoTags"], json!(["app:1"]));
    let theirs = home.tool(&["skopeo", "inspect", "--config", &format!("docker-archive:{docker}")]);
    assert_eq!(serde_json::from_str::<Value>(&theirs).unwrap()["config"]["Cmd"], json!(["/file"]));
    for (file, same) in [(&saved, true), (&docker, false)] {
        home.out(&["image", "rm", "app:1"]);
        assert_eq!(home.out(&["image", "load", "--input", file]), "loaded app:1\n");
        assert_eq!(home.images()[0]["id"] == id, same, "digests stay the same in OCI archives alone");
        let shown = &home.json(&["image", "inspect", "--json", "app:1"])[0];
        assert_eq!(
            (&shown["config"]["cmd"], &shown["config"]["labels"]["of"]),
            (&json!(["/file"]), &json!("image"))
        );
    }

    // What fails leaves the file as it was, and nothing beside it.
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(home.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = (fs::read(&saved).unwrap(), names());
    for (words, part) in [
        (&["image", "save", "-o", saved.as_str(), "none"][..], "there is no image `none`"),
        (&["image", "save", "-o", "/nonexistent/x.tar", "app:1"], "/nonexistent/x.tar"),
        (&["image", "save", "-o", "/", "app:1"], "-o"),
        (&["image", "load", "-i", "/nonexistent/x.tar"], "/nonexistent/x.tar"),
        (&["image", "load", "-i", &home.word("file")], "file"),
    ] {
        let (out, err) = home.run(words, 1);
        assert!(out.is_empty() && err.contains(part), "{words:?}: {out}{err}");
    }
    assert!(before == (fs::read(&saved).unwrap(), names()), "{:?}", names());
}

#[test]
fn an_image_is_taken_out_of_the_store_of_another_engine() {
    let home = Home::new();
    let archive = home.archive("layout", ARCHITECTURES[0]);
    // It says what it was asked, and gives the archive.
    let save = format!("echo \"$@\" >\"$0.asked\"; exec /bin/cat '{archive}'");
    for (engine, asked) in [
        ("docker", "save -- app:1 other\n"),
        ("podman", "save --quiet --format docker-archive --multi-image-archive -- app:1 other\n"),
    ] {
        let (_, err) = home.run(&["image", "load", "--from", engine, "app:1"], 1);
        assert!(err.contains(&format!("there is no command {engine} in PATH")), "{err}");
        assert!(err.contains("nelly image load -i images.tar"), "what to do: {err}");
        home.engine(engine, &save);
        assert_eq!(home.out(&["image", "load", "--from", engine, "app:1", "other"]), "loaded app:1\n");
        assert_eq!(fs::read_to_string(home.at(&format!("engines/{engine}.asked"))).unwrap(), asked);
        home.out(&["image", "rm", "app:1"]);
        // The end of what failed is not taken for an image, whole as it looks.
        home.engine(engine, &format!("/bin/cat '{archive}'; echo 'no such image: app:1' >&2; exit 1"));
        let (out, err) = home.run(&["image", "load", "--from", engine, "app:1"], 1);
        assert!(
            err.contains("no such image: app:1") && err.contains(&format!("{engine} save app:1")),
            "{err}"
        );
        assert!(out.is_empty() && home.images() == json!([]), "{out}");
    }
    let (_, err) = home.run(&["image", "load", "--from", "rkt", "app:1"], 2);
    assert!(err.contains("docker") && err.contains("podman"), "{err}");
    let (_, err) = home.run(&["image", "load", "--from", "docker"], 2);
    assert!(err.contains("IMAGE"), "{err}");
}

#[test]
fn inspect_shows_what_would_run_an_image() {
    let home = Home::new();
    let archive = home.archive("layout", ARCHITECTURES[0]);
    home.out(&["image", "load", "-q", "-i", &archive]);
    let shown = &home.json(&["image", "inspect", "--json", "app:1"])[0]["runs_with"];
    let expected = json!({ "kernel": home.word("data/vmlinux"), "kernel_source": "linux-6.12.99",
        "initramfs": home.word("data/i.cpio"), "build_id": "b1", "agent_version": env!("CARGO_PKG_VERSION") });
    assert_eq!(shown, &expected);
    let lines = home.out(&["image", "inspect", "app:1"]);
    for (key, value) in
        [("kernel_source", "linux-6.12.99"), ("build_id", "b1"), ("agent_version", env!("CARGO_PKG_VERSION"))]
    {
        assert!(lines.contains(&format!("{:<14} {value}\n", format!("{key}:"))), "{key}: {lines}");
    }
}

#[test]
fn a_sandbox_is_found_by_the_labels_of_its_image() {
    let home = Home::new();
    let archive = home.archive("layout", ARCHITECTURES[0]);
    home.out(&["image", "load", "-q", "-i", &archive]);
    let create = |name: &str, flags: &[&str]| {
        home.out(&[&["create", "--net", "none", "--name", name], flags, &["app:1"]].concat());
    };
    create("plain", &[]);
    create("own", &["--label", "stage=flag", "--label", "by=flag"]);
    let found = |filter: &str| {
        let mut ids: Vec<_> =
            home.json(&["ps", "-a", "--json", "--filter", filter]).as_array().unwrap().clone();
        ids.sort_by_key(|one| one["name"].to_string());
        ids.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    for (filter, names) in [
        ("label=of=image", "own plain"),
        ("label=stage", "own plain"),
        ("label=stage=image", "plain"),
        ("label=stage=flag", "own"),
        ("label=by", "own"),
        ("label=none", ""),
    ] {
        assert_eq!(found(filter), names, "{filter}");
    }
}

#[test]
fn an_image_of_another_architecture_is_refused_by_its_name() {
    let home = Home::new();
    let [own, other] = ARCHITECTURES;
    let archive = home.archive("layout", other);
    let of = |err: &str| err.contains(&format!("linux/{other}")) && err.contains(&format!("linux/{own}"));
    // It is kept, as it may be for another host, and run by none of these.
    assert_eq!(home.out(&["image", "load", "-i", &archive]), "loaded app:1\n");
    let layout = format!("oci:{}", home.word("layout"));
    for (words, code) in [
        (["run", "--net", "none", "--rm", "app:1"], 125),
        (["run", "--net", "none", "-d", &layout], 125),
        (["run", "--net", "none", "--dry-run", "app:1"], 125),
        (["create", "--net", "none", "--quiet", "app:1"], 1),
    ] {
        let (out, err) = home.run(&words, code);
        assert!(out.is_empty() && of(&err), "{words:?}: {out}{err}");
    }
    assert_eq!(home.json(&["ps", "-a", "--json"]), json!([]));
    // What is refused is said for a platform that is asked for, too.
    let (_, err) = home.run(&["run", "--net", "none", "--platform", &format!("linux/{other}"), &layout], 125);
    assert!(of(&err), "{err}");
}
