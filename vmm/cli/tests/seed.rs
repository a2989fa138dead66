//! `nelly disk seed`, as a command.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(["disk", "seed"]).args(words).current_dir(&self.0);
        command.env_clear().env("NELLY_HOME", self.0.path().join("home")).output().unwrap()
    }

    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The message of a command that fails with `code` and makes nothing.
    #[track_caller]
    fn refused(&self, words: &[&str], code: i32) -> String {
        let output = self.run(&[words, &["no.img"]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(output.stdout.is_empty() && !said.contains("panicked"), "{words:?}: {said}");
        assert!(!self.path("no.img").exists(), "{words:?}");
        said
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A file of a seed, read by mtools.
    fn file(&self, image: &str, name: &str) -> String {
        let said = Command::new("mtype").arg("-i").arg(self.path(image)).arg(format!("::{name}")).output();
        let said = said.unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap()
    }

    fn instance(&self, image: &str) -> String {
        let data: Value = serde_json::from_str(&self.file(image, "meta-data")).unwrap();
        data["instance-id"].as_str().unwrap().to_owned()
    }
}

#[test]
fn a_seed_says_what_its_flags_do_and_equal_flags_make_equal_seeds() {
    let place = Place::new();
    place.write("secret", "hailhydra\n");
    place.write("motd", "welcome\n");
    let words = [
        "--user",
        "ada",
        "--password-file",
        "secret",
        "--ssh-dir",
        "keys",
        "--hostname",
        "web",
        "--write-file",
        "/etc/motd=motd",
        "--package",
        "curl",
        "--runcmd",
        "touch /done",
        "--mac",
        "52:54:00:00:00:01",
    ];
    let made = place.good(&[&words[..], &["a.img"]].concat());
    assert!(made.starts_with("created a.img, a seed for cloud-init"), "{made}");
    place.good(&[&words[..], &["b.img"]].concat());
    let [a, b] = ["a.img", "b.img"].map(|name| std::fs::read(place.path(name)).unwrap());
    assert!(a == b, "equal flags, keys that were made by the first");
    assert_eq!(std::fs::metadata(place.path("a.img")).unwrap().permissions().mode() & 0o777, 0o600);
    let user_data = place.file("a.img", "user-data");
    let config: Value = serde_json::from_str(user_data.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    let user = &config["users"][0];
    assert_eq!(user["name"], "ada");
    assert!(user["hashed_passwd"].as_str().unwrap().starts_with("$6$") && !user_data.contains("hailhydra"));
    let key = std::fs::read_to_string(place.path("keys/id_ed25519.pub")).unwrap();
    assert_eq!(user["ssh_authorized_keys"][0], key.trim_end());
    assert_eq!(config["write_files"][0]["content"], "welcome\n");
    assert_eq!((&config["packages"][0], &config["runcmd"][0]), (&"curl".into(), &"touch /done".into()));
    let host = std::fs::read_to_string(place.path("keys/known_hosts")).unwrap();
    let public = config["ssh_keys"]["ed25519_public"].as_str().unwrap();
    assert!(public.starts_with(host.trim_end().strip_prefix("web ").unwrap()), "{host}: {public}");
    assert!(place.file("a.img", "network-config").contains("52:54:00:00:00:01"));
    // A changed setting is a new instance.
    place.good(&[&words[..], &["--no-grow", "c.img"]].concat());
    assert_ne!(place.instance("a.img"), place.instance("c.img"));
    let json: Value = serde_json::from_str(&place.good(&["--json", "d.img"])).unwrap();
    let bytes = std::fs::metadata(place.path("d.img")).unwrap().len();
    assert_eq!((&json["schema"], &json["size_bytes"]), (&1.into(), &bytes.into()));
}

#[test]
fn files_of_the_user_are_taken_as_they_are() {
    let place = Place::new();
    place.write("user", "#!/bin/sh\necho hi\n");
    place.write("meta", "instance-id: mine\n");
    place.write("net", "version: 2\n");
    place.good(&["--user-data", "user", "--meta-data", "meta", "--network-config", "net", "a.img"]);
    assert_eq!(place.file("a.img", "user-data"), "#!/bin/sh\necho hi\n");
    assert_eq!(place.file("a.img", "meta-data"), "instance-id: mine\n");
    assert_eq!(place.file("a.img", "network-config"), "version: 2\n");
    place.good(&["--user-data", "user", "--hostname", "web", "b.img"]);
    assert!(place.file("b.img", "meta-data").contains("\"local-hostname\": \"web\""));
}

#[test]
fn what_cannot_be_is_refused_by_its_flag_and_file() {
    let place = Place::new();
    place.write("plain", "packages: [curl]\n");
    place.write("good", "#cloud-config\n");
    place.write("private", "-----BEGIN OPENSSH PRIVATE KEY-----\n");
    place.write("two", "a\nb\n");
    let table: &[(&[&str], i32, &[&str])] = &[
        (&["--user", "Ada L"], 2, &["--user", "small letters"]),
        (&["--hostname", "a_b"], 2, &["--hostname", "hyphens"]),
        (&["--ssh-key", "private"], 1, &["--ssh-key", "private", "line 1", ".pub"]),
        (&["--ssh-key", "none"], 1, &["--ssh-key", "none"]),
        (&["--password-file", "two", "--salt", "s"], 1, &["--password-file", "two", "one line"]),
        (&["--password-hash", "plain"], 2, &["--password-hash", "crypt"]),
        (&["--salt", "a"], 2, &["--password-file"]),
        (&["--ssh-dir", "keys"], 2, &["--user"]),
        (&["--write-file", "/etc/motd"], 2, &["--write-file", "PATH=FILE"]),
        (&["--write-file", "motd=plain"], 2, &["--write-file", "absolute"]),
        (&["--package", "a b"], 2, &["--package"]),
        (&["--mac", "52:54"], 2, &["--mac"]),
        (&["--user-data", "plain"], 1, &["--user-data", "plain", "#cloud-config"]),
        (&["--user-data", "good", "--user", "ada"], 1, &["takes no users"]),
    ];
    for (words, code, expected) in table {
        let said = place.refused(words, *code);
        assert!(expected.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    }
    place.write("there.img", "mine");
    let output = place.run(&["there.img"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read(place.path("there.img")).unwrap(), b"mine");
}

#[test]
fn a_machine_has_its_seed_as_the_last_disk_and_nothing_is_made_of_a_dry_run() {
    let place = Place::new();
    place.write("kernel", "k");
    std::fs::write(place.path("disk.img"), [0; 4096]).unwrap();
    let planned = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nelly"));
        command.args(["boot", "--dry-run", "--kernel", "kernel", "--disk", "disk.img"]).args(words);
        command.current_dir(&place.0).env_clear().env("NELLY_HOME", place.path("home"));
        let output = command.env("NELLY_MONITOR", "/bin/true").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{words:?}: {said}");
        (serde_json::from_slice::<Value>(&output.stdout).unwrap()["disks"].clone(), said)
    };
    let (disks, said) = planned(&[]);
    assert_eq!((disks.as_array().unwrap().len(), &*said), (1, ""));
    let (disks, said) = planned(&["--hostname", "web"]);
    let [first, seed] = &disks.as_array().unwrap()[..] else { panic!("{disks}") };
    assert_eq!(
        (&first["id"], &seed["id"], &seed["read_only"]),
        (&"disk0".into(), &"seed".into(), &true.into())
    );
    assert!(said.contains("nobody can log in") && said.contains("--ssh-key"), "{said}");
    let refused =
        Command::new(env!("CARGO_BIN_EXE_nelly")).args(["boot", "--no-seed", "--kernel", "k"]).output();
    assert!(String::from_utf8(refused.unwrap().stderr).unwrap().contains("--image"));
    let (disks, said) = planned(&["--user", "ada", "--ssh-dir", "keys"]);
    assert_eq!(disks.as_array().unwrap().len(), 2);
    assert!(said.contains("only ssh keys can log in, and the machine has no network"), "{said}");
    assert!(!place.path("keys").exists());
}
