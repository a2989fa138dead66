//! Twelve images of different making (`tests/images/make`), beside the same images unpacked by
//! umoci and run by runc: all that a program can see of its files, its user and its surroundings is
//! the same, but for what [`written_at_the_start`] and [`differs`] list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nelly_tests::{Done, run, top};
use serde_json::{Value, json};

use super::keeper::Kept;
use super::{Home, LIMIT};

/// The rights that docker gives, which umoci's template does not have.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Files of the image that Nelly writes at the start, as docker does; runc leaves that to docker.
const WRITTEN: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Lines that one of the two has, or has otherwise, and why.
fn differs(line: &str) -> Option<&'static str> {
    let starts = |text: &str| line.starts_with(text);
    if WRITTEN.iter().any(|path| starts(&format!("file {path} "))) {
        Some("written at the start")
    } else if starts("process environment HOSTNAME=") {
        Some("Nelly sets it, as docker does")
    } else if starts("process environment TERM=") {
        Some("umoci's template sets it, docker only for a terminal")
    } else if starts("device /dev/core ") {
        Some("runc links to /proc/kcore where the kernel has that, and Nelly's has not")
    } else {
        None
    }
}

/// Files whose times are not the image's, and why.
fn written_at_the_start(image: &str) -> Vec<&'static str> {
    // The root of an overlay is that of the layer that is written; /proc, /sys and /dev are mounts.
    let mut paths = vec!["/", "/proc", "/sys", "/dev"];
    paths.extend(match image {
        // Debian's /etc has no hosts: it is made there.
        "debian" => &["/etc"][..],
        // The working directory is made.
        "entrypoint" => &["/srv", "/srv/made", "/srv/made/deep"],
        // No layer has the directory itself. Nelly gives it the time 0, umoci that of unpacking.
        "layers" => &["/layers"],
        // So are these; and umoci gives a directory the time at which it put something there that a
        // later layer has, where Nelly keeps that of the layer.
        "whiteouts" => &["/new", "/new/above", "/a/deep", "/a/deep/er"],
        _ => &[],
    });
    paths
}

/// What an image must show, and what not, if the comparison is to mean something.
const SHOWN: &[(&str, &[&str], &[&str])] = &[
    ("busybox", &["uid=0(root) gid=0(root)", "file /bin/sh "], &[]),
    ("debian", &["Debian dpkg-query", "file /usr/bin/dpkg ", "file /etc/debian_version "], &[]),
    (
        "whiteouts",
        &[
            "file /a/kept ",
            "file /opaque/newer ",
            "file /a/deep/er/new 100640 0 1234",
            "file / 40751 0 1234 ",
        ],
        &["/a/gone", "/opaque/old", "/opaque/sub", "/both/old", "/again/old", "/to-file/", ".wh."],
    ),
    (
        "user",
        &["uid=1000(web) gid=1001(www) groups=1234(extra),1300(last)", "file /srv/theirs/ permission"],
        &["/srv/theirs/file"],
    ),
    ("entrypoint", &["argument two\\x20words\n", "argument $COLOR\n", "directory /srv/made/deep\n"], &[]),
    ("hard-links", &[" 3 1600000000.123456700 same /links/of-below "], &["/links/two"]),
    (
        "xattrs",
        &["CapEff 0000000000000400\n", "Uid 1000 2000 2000 2000\n", "xattr user.of-directory=d\n"],
        &["user.no-value"],
    ),
    ("zstd", &["file /many-frames "], &[]),
    ("zstd-chunked", &["file /chunks/39 "], &[]),
    ("index", &["file /here "], &["/foreign"]),
    ("big", &["file /big0 100644 0 0 "], &[]),
    ("layers", &["file /layers/118 ", "file /layers/last 100666 118 0 4 "], &["/layers/000", "/layers/115"]),
];

/// The images.
struct Images {
    directory: PathBuf,
    sources: BTreeMap<String, String>,
}

impl Images {
    fn new() -> Self {
        let mut make = Command::new(top().join("tests/images/make"));
        // Twice 2 GiB do not fit into the memory that the emulated host usually has.
        if std::env::var_os("NELLY_FULL_IMAGES").is_some() {
            make.arg("--full");
        }
        let directory = PathBuf::from(run(&mut make, b"", LIMIT).expect(0).out().trim_end());
        let sources = fs::read(directory.join("images.json")).unwrap();
        Self { directory, sources: serde_json::from_slice(&sources).unwrap() }
    }

    /// The same image as umoci and skopeo read it.
    fn theirs(&self, name: &str, tag: &str) -> String {
        format!("{}:{tag}", self.directory.join(name).join("theirs").display())
    }

    /// Its configuration for runc, by umoci.
    fn configuration(&self, name: &str, tag: &str) -> PathBuf {
        self.directory.join(name).join(format!("{tag}.json"))
    }
}

/// A file system in memory for what umoci unpacks, which honours setuid and file capabilities.
struct Unpacked(PathBuf);

impl Unpacked {
    fn new(home: &Path) -> Self {
        let place = home.join("unpacked");
        fs::create_dir(&place).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=755,size=80%", "none"]).arg(&place);
        run(&mut mount, b"", LIMIT).expect(0);
        Self(place)
    }

    fn unpack(&self, image: &str) {
        let mut umoci = Command::new("umoci");
        umoci.args(["raw", "unpack", "--image", image]).arg(self.0.join("rootfs"));
        run(&mut umoci, b"", LIMIT).expect(0);
    }

    /// What runc shows of what is unpacked, with the configuration that umoci made of it.
    fn run(&self, configuration: &Path, hostname: &str) -> Done {
        let mut config: Value = serde_json::from_slice(&fs::read(configuration).unwrap()).unwrap();
        // What no image says, and docker sets for runc.
        let process = &mut config["process"];
        process["terminal"] = false.into();
        process["noNewPrivileges"] = false.into();
        process["capabilities"] =
            json!({ "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES });
        config["hostname"] = hostname.into();
        config["root"]["path"] = self.0.join("rootfs").display().to_string().into();
        // This host's file is no part of the image.
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/etc/resolv.conf");
        fs::write(self.0.join("config.json"), config.to_string()).unwrap();
        run(Command::new("runc").args(["run", "--bundle"]).arg(&self.0).arg("beside"), b"", LIMIT)
    }

    fn clear(&self) {
        fs::remove_dir_all(self.0.join("rootfs")).unwrap();
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The lines of what is told that are compared.
fn compared(told: &str, image: &str) -> BTreeSet<String> {
    let changed = written_at_the_start(image);
    let without_time = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let ["file", path, rest @ ..] = &words[..] else { return line.to_owned() };
        if !changed.contains(path) || rest.len() < 6 {
            return line.to_owned();
        }
        [&words[..7], &["-"], &words[8..]].concat().join(" ")
    };
    told.lines().filter(|line| differs(line).is_none()).map(without_time).collect()
}

/// A text of what differs; empty if nothing does.
fn comparison(name: &str, ours: &Done, theirs: &Done) -> String {
    let (shown, beside) = (compared(&ours.out(), name), compared(&theirs.out(), name));
    let mut lines: Vec<String> = shown.difference(&beside).map(|line| format!("nelly: {line}")).collect();
    lines.extend(beside.difference(&shown).map(|line| format!("runc:  {line}")));
    if (ours.code, ours.err()) != (theirs.code, theirs.err()) || ours.code != 0 {
        lines.push(format!("nelly: exit code {}, {}", ours.code, ours.err()));
        lines.push(format!("runc:  exit code {}, {}", theirs.code, theirs.err()));
    }
    let lines: Vec<String> = lines.iter().map(|line| format!("  {line:.500}\n")).collect();
    if lines.is_empty() { String::new() } else { format!("{name}:\n{}", lines.concat()) }
}

#[test]
fn twelve_images_show_what_they_show_under_runc() {
    let home = Home::new();
    let images = Images::new();
    let unpacked = Unpacked::new(home.path());
    assert!(images.sources.keys().eq(SHOWN.iter().map(|(name, ..)| *name).collect::<BTreeSet<_>>()));
    let mut text = String::new();
    for (name, present, absent) in SHOWN {
        let ours = home.nelly(&["run", "--rm", "--hostname", "box", &images.sources[*name]]);
        let image = images.theirs(name, "v1");
        unpacked.unpack(&image);
        let theirs = unpacked.run(&images.configuration(name, "v1"), "box");
        unpacked.clear();
        text += &comparison(name, &ours, &theirs);
        let out = theirs.out();
        for (words, is_there) in [(present, true), (absent, false)] {
            for word in words.iter().filter(|word| out.contains(**word) != is_there) {
                text += &format!("{name}: under runc, {word:?} is there: {}\n", !is_there);
            }
        }
    }
    assert!(text.is_empty(), "{text}");
}

/// One machine for all: the same image with other users.
#[test]
fn users_by_name_and_number_are_as_under_runc() {
    let kept = Kept::new();
    let images = Images::new();
    let source = images.sources["user"].strip_suffix("v1").unwrap().to_owned();
    kept.keep(&[], "sleep 1000");
    let unpacked = Unpacked::new(kept.0.path());
    unpacked.unpack(&images.theirs("user", "v1"));
    let mut text = String::new();
    for (tag, id) in [
        ("group", "uid=1000(web) gid=1234(extra)"),
        ("number", "uid=1000(web) gid=1001(www)"),
        ("numbers", "uid=4242 gid=1300(last)"),
        ("unknown", "uid=4242 gid=0(root)"),
    ] {
        let ours = kept.0.nelly(&["run", "--in", "box", "--name", tag, &format!("{source}{tag}")]);
        let theirs = unpacked.run(&images.configuration("user", tag), tag);
        assert!(ours.out().starts_with(id), "{tag}: {}{}", ours.out(), ours.err());
        text += &comparison(tag, &ours, &theirs);
    }
    assert!(text.is_empty(), "{text}");
}
