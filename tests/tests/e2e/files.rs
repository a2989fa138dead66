//! Looking into the container of a sandbox, and its files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::LIMIT;
use super::keeper::{Kept, SERVER, kill};

#[test]
fn files_are_copied_and_processes_and_changes_of_a_container_are_told() {
    let kept = Kept::new();
    kept.keep(&[], SERVER);
    copies(&kept);
    kept.exec("mkdir -p /srv/deep; echo x >/srv/deep/file; rm /etc/passwd; printf 'a' >'/srv/e\x1b[31mvil'");
    kept.out(&["exec", "-d", "-u", "7:7", "box", "sleep", "4321"]);
    let shown = kept.out(&["top", "box"]);
    let mut lines = shown.lines();
    assert!(lines.next().unwrap().starts_with("PID "), "{shown}");
    assert!(lines.any(|line| line.ends_with("sleep 4321") && line.contains(" 7 ")), "{shown}");
    let all: Value = serde_json::from_str(&kept.out(&["top", "--json", "box"])).unwrap();
    let first = all.as_array().unwrap().iter().find(|one| one["pid"] == 1).expect("the first process");
    assert_eq!((&first["parent"], &first["args"][0]), (&0.into(), &"sh".into()), "{first}");

    let diff = kept.out(&["diff", "box"]);
    let lines: Vec<&str> = diff.lines().collect();
    for line in ["A /srv/deep", "A /srv/deep/file", "D /etc/passwd", "C /etc", "A /srv/e\\u{1b}[31mvil"] {
        assert!(lines.contains(&line), "{line}: {diff}");
    }
    assert!(!diff.contains("/proc") && !diff.contains("/bin"), "{diff}");
    let all: Value = serde_json::from_str(&kept.out(&["diff", "--json", "box"])).unwrap();
    assert!(all.as_array().unwrap().iter().any(|one| one["kind"] == "D" && one["path"] == "/etc/passwd"));

    for verb in ["top", "diff"] {
        kept.out(&["pause", "box"]);
        assert!(kept.0.nelly(&[verb, "box"]).expect(1).err().contains("paused"));
        kept.out(&["unpause", "box"]);
        assert!(kept.0.nelly(&[verb, "nosuch"]).expect(1).err().contains("nosuch"));
    }
    kept.out(&["stop", "box"]);
    let refused = kept.0.nelly(&["cp", "box:/etc/hosts", "-"]);
    assert!(refused.expect(1).err().contains("nelly start box"), "{}", refused.err());
    for verb in ["top", "diff"] {
        let refused = kept.0.nelly(&[verb, "box"]);
        assert!(refused.expect(1).err().contains("nelly start box"), "{}", refused.err());
    }
}

/// Both ways, as docker's users expect.
fn copies(kept: &Kept) {
    let home = tempfile::tempdir().unwrap();
    let at = |path: &str| home.path().join(path).to_str().unwrap().to_owned();
    let sums = "cd /w/tree && find . -type f -exec sha256sum {} + | sort; ls -l deep/run | cut -c1-10; readlink link";
    // Many windows of the connection, in a tree.
    let much: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_le_bytes).collect();
    fs::create_dir_all(at("tree/deep")).unwrap();
    fs::write(at("tree/much"), &much).unwrap();
    fs::write(at("tree/deep/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at("tree/deep/run"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("/etc/hostname", at("tree/link")).unwrap();
    kept.exec("mkdir -p /w/dir");
    let (tree, back) = (at("tree"), at("back"));
    assert_eq!(kept.out(&["cp", &tree, "box:/w/"]), "");
    let shown = kept.exec(sums);
    let script = sums.replace("/w/tree", &tree);
    let here = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(shown, String::from_utf8(here.stdout).unwrap().trim_end());
    // Under another name, and again into that, which is there now.
    for _ in 0..2 {
        kept.out(&["cp", "box:/w/tree", &back]);
    }
    for copy in ["back", "back/tree"] {
        assert!(fs::read(at(&format!("{copy}/much"))).unwrap() == much, "{copy}");
        let run = fs::metadata(at(&format!("{copy}/deep/run"))).unwrap();
        assert_eq!(run.permissions().mode() & 0o7777, 0o750);
        assert_eq!(fs::read_link(at(&format!("{copy}/link"))).unwrap().to_str(), Some("/etc/hostname"));
    }
    let run = at("tree/deep/run");
    for (from, to, there) in [
        (run.as_str(), "box:/w/new", "/w/new"),
        (&run, "box:w/dir", "/w/dir/run"),
        (&at("tree/deep/."), "box:/w/dir/in", "/w/dir/in/run"),
    ] {
        kept.out(&["cp", from, to]);
        assert_eq!(kept.exec(&format!("stat -c '%a %u' {there}")), "750 0", "{from} {to}");
    }
    // With owners and set-user-id bits only where that is asked for.
    kept.exec("cp /w/new /w/owned; chown 7:8 /w/owned; chmod 4751 /w/owned");
    let owned = at("owned");
    kept.out(&["cp", "box:/w/owned", &at("mine")]);
    let mine = fs::metadata(at("mine")).unwrap();
    assert_eq!((mine.uid(), mine.mode() & 0o7777), (rustix::process::getuid().as_raw(), 0o751));
    kept.out(&["cp", "-a", "box:/w/owned", &owned]);
    let copy = fs::metadata(&owned).unwrap();
    assert_eq!((copy.uid(), copy.gid(), copy.mode() & 0o7777), (7, 8, 0o4751));
    for (flags, there) in [(&["cp"][..], "751 0:0"), (&["cp", "-a"], "4751 7:8")] {
        kept.out(&[flags, &[&owned, "box:/w/again"]].concat());
        assert_eq!(kept.exec("stat -c '%a %u:%g' /w/again"), there);
    }
    // Archives, whatever made them.
    let packed = Command::new("tar").args(["-C", &tree, "-cf", "-", "deep"]).output().unwrap().stdout;
    kept.0.feed(&["cp", "-", "box:/w/dir"], &packed).expect(0);
    assert_eq!(kept.exec("cat /w/dir/deep/run"), "#!/bin/sh");
    let out = kept.0.nelly(&["cp", "box:/w/tree/.", "-"]);
    fs::create_dir(at("untarred")).unwrap();
    let mut tar =
        Command::new("tar").args(["-C", &at("untarred"), "-xf", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &out.expect(0).stdout).unwrap();
    assert!(tar.wait().unwrap().success());
    assert!(fs::read(at("untarred/much")).unwrap() == much);
    // Links of the container lead to its own files.
    kept.exec(
        "echo inner >/etc/hostname-of-box; ln -s /etc/hostname-of-box /w/abs; ln -s ../../../../etc /w/up",
    );
    kept.out(&["cp", "-L", "box:/w/abs", &at("abs")]);
    assert_eq!(fs::read_to_string(at("abs")).unwrap(), "inner\n");
    let name = format!("nelly-test-{}", std::process::id());
    kept.out(&["cp", &run, &format!("box:/w/up/{name}")]);
    assert!(!std::path::Path::new("/etc").join(&name).exists());
    assert_eq!(kept.exec(&format!("cat /etc/{name}; rm /etc/{name}")), "#!/bin/sh");
    // What it sends does not leave the directory that is written to.
    fs::create_dir(at("evil")).unwrap();
    kept.exec("mkdir -p /w/evil/sub; echo x >/w/evil/sub/file");
    symlink(home.path(), at("evil/sub")).unwrap();
    let refused = kept.0.nelly(&["cp", "box:/w/evil/.", &at("evil")]);
    assert!(refused.expect(1).err().contains("link"), "{}", refused.err());
    assert!(!home.path().join("file").exists());

    for (from, to, code, words) in [
        ("box:/w/none", back.as_str(), 1, "/w/none: there is no such file"),
        ("box:/w/new", &at("none/there"), 1, "no directory"),
        ("box:/w/tree", &at("abs"), 1, "the source is a directory"),
        ("box:/dev/null", &back, 1, "it is a device"),
        (&at("none"), "box:/w", 1, "no such file"),
        (&run, "box:/none/there", 1, "no directory"),
        (&run, "nosuch:/w", 1, "nosuch"),
        (&run, &back, 2, "SANDBOX:PATH"),
        ("box:/w", "box:/v", 2, "nelly cp box:PATH - | nelly cp - box:DIR"),
        ("box:", &back, 2, "box:/"),
    ] {
        let refused = kept.0.nelly(&["cp", from, to]);
        assert!(refused.expect(code).err().contains(words), "{from} {to}: {}", refused.err());
    }
    kept.out(&[
        "run",
        "-d",
        "--in",
        "box",
        "--name",
        "ro",
        "--read-only",
        "--tmpfs",
        "/scratch",
        "--",
        "sh",
        "-c",
        SERVER,
    ]);
    let refused = kept.0.nelly(&["cp", &run, "box/ro:/etc/new"]);
    assert!(refused.expect(1).err().contains("/etc/new is on a read-only file system"), "{}", refused.err());
    kept.out(&["cp", &run, "box/ro:/scratch/"]);
    kept.out(&["cp", "box/ro:/scratch/run", &at("again")]);
    assert_eq!(fs::read(at("again")).unwrap(), b"#!/bin/sh\n");
    kept.out(&["stop", "-t", "0", "box/ro"]);
    assert!(kept.0.feed(&["cp", "-", "box:/w"], b"\x1f\x8b\x08").expect(1).err().contains("gzip -dc"));
    assert!(kept.0.feed(&["cp", "-", "box:/w"], &packed[..700]).expect(1).err().contains("not complete"));

    // Ctrl-C: the file is not there, and nothing else either.
    kept.exec("rm -r /w; mkdir /w");
    let mut command = nelly_tests::nelly(kept.0.path(), &["cp", "-", "box:/w"]);
    let mut copy = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = copy.stdin.take().unwrap();
    let whole = Command::new("tar").args(["-C", &tree, "-cf", "-", "much"]).output().unwrap().stdout;
    std::io::Write::write_all(&mut input, &whole[..2 << 20]).unwrap();
    kept.until("the copy has begun", || !kept.exec("ls -A /w").is_empty());
    kill("INT", copy.id().into());
    assert_eq!(nelly_tests::wait(&mut copy, LIMIT).code(), Some(130));
    kept.until("the part is removed", || kept.exec("ls -A /w").is_empty());
    drop(input);
}
