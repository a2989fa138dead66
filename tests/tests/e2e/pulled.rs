//! Images from a registry, run without it: Debian's docker-registry on the loopback interface,
//! filled by skopeo.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use nelly_tests::{asset, run};

use super::keeper::Kept;
use super::{Home, LIMIT};

/// docker-registry on a port of its own, which ends with this.
struct Registry {
    child: Child,
    home: Home,
    port: u16,
}

impl Registry {
    fn start() -> Self {
        let home = Home::new();
        let place = home.path().display();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\nhttp: {{addr: '127.0.0.1:0', secret: x}}\n"
        );
        fs::write(home.path().join("config.yml"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(home.path().join("config.yml")).env_clear();
        command.env("OTEL_TRACES_EXPORTER", "none").stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("docker-registry is installed");
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
        Self { child, home, port }
    }

    /// skopeo pushes the built-in image with the environment VERSION=`version`, which umoci adds.
    fn push(&self, name: &str, version: &str) {
        let tool = |words: &[&str]| {
            run(Command::new(words[0]).args(&words[1..]).current_dir(self.home.path()), b"", LIMIT).expect(0);
        };
        if !self.home.path().join("layout").exists() {
            tool(&["cp", "-r", &asset("busybox").display().to_string(), "layout"]);
        }
        let environment = format!("VERSION={version}");
        tool(&[
            "umoci",
            "config",
            "--image",
            "layout:latest",
            "--tag",
            version,
            "--config.env",
            &environment,
        ]);
        let (source, target) = (format!("oci:layout:{version}"), format!("docker://{name}"));
        tool(&["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", &source, &target]);
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

#[test]
fn a_pulled_image_runs_with_the_registry_stopped() {
    let mut registry = Registry::start();
    let host = format!("127.0.0.1:{}", registry.port);
    let name = format!("{host}/team/app:1");
    // One home names the registry in its settings, the other asks it as Docker Hub's mirror.
    let (kept, second) = (Kept::new(), Home::new());
    let first = &kept.0;
    let set = |home: &Home, settings: String| {
        fs::create_dir(home.path().join("config")).unwrap();
        fs::write(home.path().join("config/config.toml"), settings).unwrap();
    };
    set(first, format!("[registry.{host:?}]\nplain_http = true\n"));
    set(&second, format!("[registry.\"docker.io\"]\nmirrors = [\"http://{host}\"]\n"));
    let version = |home: &Home, flags: &[&str], name: &str| {
        let words = [&["run", "--rm"], flags, &[name, "sh", "-c", "echo $VERSION"]].concat();
        home.nelly(&words).expect(0).out()
    };

    registry.push(&name, "one");
    let pulled = first.nelly(&["image", "pull", &name]).expect(0).out();
    let (_, digest) = pulled.trim_end().split_once('@').unwrap();
    assert_eq!(version(&second, &[], "team/app:1"), "one\n", "pulled by run");

    // The tag moves: what is there is used until it is asked for anew.
    registry.push(&name, "two");
    assert_eq!(version(&second, &["--pull", "missing"], "team/app:1"), "one\n");
    assert_eq!(version(&second, &["--pull", "always"], "team/app:1"), "two\n");

    // What the registry does not have is told by `run`, too.
    let none = format!("{host}/team/none:1");
    let done = first.nelly(&["run", "--rm", &none, "true"]);
    let err = done.expect(125).err();
    assert!(err.contains("does not have the manifest") && err.contains(&none), "{err}");

    // The first home has pulled, and nothing more: it unpacks without the registry.
    registry.stop();
    let by_digest = format!("{host}/team/app@{digest}");
    assert_eq!(version(first, &["--pull", "never"], &by_digest), "one\n");
    let images = |home: &Home| home.nelly(&["image", "ls", "--json"]).expect(0).out();
    let before = images(first);
    for (words, what) in [
        (["run", "--rm", "--pull", "always", &name, "true"], "cannot connect"),
        (["run", "--rm", "--pull", "missing", &format!("{host}/team/other"), "true"], "cannot connect"),
        (["run", "--rm", "--pull", "never", &format!("{host}/team/other"), "true"], "not in the local store"),
    ] {
        let done = first.nelly(&words);
        let err = done.expect(125).err();
        assert!(err.contains(what) && err.contains(words[4]) && done.out().is_empty(), "{words:?}: {err}");
    }
    assert_eq!(images(first), before, "what failed has changed nothing");
    assert_eq!(first.nelly(&["ps", "-aq"]).expect(0).out(), "");

    // A sandbox of it is made, and started again.
    first.nelly(&["run", "-d", "--name", "box", &name, "sleep", "1000"]).expect(0);
    first.nelly(&["stop", "--time", "0", "box"]).expect(0);
    first.nelly(&["start", "box"]).expect(0);
    assert_eq!(first.nelly(&["exec", "box", "sh", "-c", "echo $VERSION"]).expect(0).out(), "one\n");
    first.nelly(&["rm", "-f", "box"]).expect(0);
}
