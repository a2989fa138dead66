//! Images made by other tools, beside the same image under runc: what a program can see is the
//! same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nelly_image::Digest;
use nelly_tests::{Done, run};
use serde_json::Value;

use super::machine::busybox;
use super::{Home, LIMIT};

/// What the image's entrypoint tells of its surroundings.
const ENTRYPOINT: &str = r#"#!/bin/sh
echo "arguments: $*"
echo "id: $(id)"
echo "pwd: $(pwd)"
env | grep -v -e '^HOSTNAME=' -e '^SHLVL=' -e '^_=' | sort
grep -e '^Cap' -e '^NoNewPrivs' -e '^Seccomp:' /proc/self/status
# what is masked is there only when the kernel has it, and the two kernels differ
grep -v -e ' / ' -e ' /proc/[a-z_]* tmpfs ' -e ' /sys/devices/' /proc/mounts | awk '{print $2, $3, $4}' | sed -E 's/,(inode64|size=[0-9]+k|nr_inodes=[0-9]+|nsdelegate|memory_recursiveprot|memory_hugetlb_accounting)//g' | sort
ls -l /dev | grep -v kcore | awk '{print $1, $3, $4, $NF}' | sort
echo "to stderr" >&2
exit 42
"#;

/// Runs a tool that must succeed.
#[track_caller]
fn tool(directory: &Path, words: &[&str]) -> Done {
    let done = run(Command::new(words[0]).args(&words[1..]).current_dir(directory), b"", LIMIT);
    done.expect(0);
    done
}

/// An OCI layout `image:v1` by umoci, of a busybox with a user of its own and an entrypoint.
fn layout(work: &Path) {
    tool(work, &["umoci", "init", "--layout", "image"]);
    tool(work, &["umoci", "new", "--image", "image:v1"]);
    tool(work, &["umoci", "unpack", "--image", "image:v1", "bundle"]);
    let root = work.join("bundle/rootfs");
    busybox(&root, &["sh", "id", "env", "grep", "sort", "awk", "sed", "ls", "cat", "pwd"]);
    for directory in ["etc", "srv/data", "home/web"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nwww:x:1001:\nextra:x:1234:web\n").unwrap();
    fs::write(root.join("entry"), ENTRYPOINT).unwrap();
    fs::set_permissions(root.join("entry"), fs::Permissions::from_mode(0o755)).unwrap();
    tool(work, &["umoci", "repack", "--image", "image:v1", "bundle"]);
    tool(
        work,
        &[
            "umoci",
            "config",
            "--image",
            "image:v1",
            "--config.entrypoint",
            "/entry",
            "--config.cmd",
            "one",
            "--config.cmd",
            "two words",
            "--config.env",
            "PATH=/bin",
            "--config.env",
            "COLOR=blue",
            "--config.user",
            "web",
            "--config.workingdir",
            "/srv/data",
        ],
    );
}

/// Of the machine's network runc knows nothing: a container of its own has none.
const WORDS: [&str; 6] = ["run", "--rm", "--net", "none", "--hostname", "box"];

/// The same under runc: our runtime specification, umoci's unpacked root.
fn under_runc(work: &Path, home: &Home, image: &str) -> Done {
    let planned = home.nelly(&[&WORDS[..], &["--dry-run", image]].concat());
    let planned: Value = serde_json::from_slice(&planned.expect(0).stdout).unwrap();
    let mut spec = planned["container"].clone();
    // The agent resolves the user in the container; here the answer is known.
    spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1001, "additionalGids": [1234] });
    spec["root"]["path"] = work.join("bundle/rootfs").display().to_string().into();
    let bundle = work.join("runc");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    run(Command::new("runc").args(["run", "--bundle"]).arg(&bundle).arg("beside-image"), b"", LIMIT)
}

/// Whether the cache has what the guest reads of an image, as a run would find it.
fn is_cached(home: &Home, image: &str) -> bool {
    let planned = home.nelly(&["run", "--rm", "--dry-run", image]);
    let planned: Value = serde_json::from_slice(&planned.expect(0).stdout).unwrap();
    planned["image_cached"].as_bool().unwrap()
}

/// Runs the image and compares what it shows with what runc showed.
fn compare(home: &Home, image: &str, theirs: &Done) {
    let ours = home.nelly(&[&WORDS[..], &[image]].concat());
    assert_eq!(
        ours.out(),
        theirs.out(),
        "standard output (left: nelly, right: runc)\n{}{}",
        ours.err(),
        theirs.err()
    );
    assert_eq!(ours.err(), theirs.err(), "standard error");
    assert_eq!((ours.code, theirs.code), (42, 42));
    assert!(ours.out().contains("arguments: one two words"), "{}", ours.out());
    assert!(ours.out().contains("uid=1000(web) gid=1001(www)"), "{}", ours.out());
}

fn work(home: &Home) -> PathBuf {
    let work = home.path().join("work");
    fs::create_dir(&work).unwrap();
    work
}

/// One image in two forms; the second run of one finds it cached, and shows the same.
#[test]
fn an_oci_layout_by_umoci_and_a_docker_archive_by_skopeo_are_as_under_runc() {
    let home = Home::new();
    let work = work(&home);
    layout(&work);
    let archive = "docker-archive:image.tar:example/app:1.2";
    tool(&work, &["skopeo", "copy", "--insecure-policy", "oci:image:v1", archive]);
    let image = format!("oci:{}:v1", work.join("image").display());
    let theirs = under_runc(&work, &home, &image);
    for cached in [false, true] {
        assert_eq!(is_cached(&home, &image), cached);
        compare(&home, &image, &theirs);
    }
    // A disk is found by its layers, in whatever form they come: the archive's are to be unpacked.
    fs::remove_dir_all(home.path().join("cache")).unwrap();
    let image = format!("docker-archive:{}:example/app:1.2", work.join("image.tar").display());
    assert!(!is_cached(&home, &image));
    compare(&home, &image, &theirs);
}

/// A tar archive (POSIX ustar) of one file: a process for each of a hundred archives would take the
/// longest of all here.
fn tar_of(path: &str, contents: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}", contents.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(contents);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// Writes an OCI layout of these layers, with this configuration of its container.
pub(super) fn write_layout(layout: &Path, tars: &[Vec<u8>], config: &Value) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = Digest::sha256(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len() })
    };
    let layers: Vec<Value> = tars.iter().map(|tar| blob(tar, "layer.v1.tar")).collect();
    let ids: Vec<String> = tars.iter().map(|tar| Digest::sha256(tar).to_string()).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({ "architecture": architecture, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// An OCI layout whose first layer is busybox, and then one layer for each file.
fn layout_of_many(work: &Path, name: &str, files: &[(String, String)]) -> String {
    let root = work.join("root");
    if !root.exists() {
        busybox(&root, &["sh", "cat", "grep", "ls", "wc"]);
    }
    tool(&root, &["tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf", "../root.tar", "."]);
    let mut tars = vec![fs::read(work.join("root.tar")).unwrap()];
    tars.extend(files.iter().map(|(path, text)| tar_of(path, text.as_bytes())));
    write_layout(&work.join(name), &tars, &serde_json::json!({ "Env": ["PATH=/bin"] }));
    format!("oci:{}", work.join(name).display())
}

/// What lies in a directory of the cache.
fn cached(home: &Home, directory: &str) -> Vec<PathBuf> {
    let directory = home.path().join("cache").join(directory);
    let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

/// The layers of an image are one disk of the guest, whatever their number; what images have in
/// common is in the cache once.
#[test]
fn a_hundred_and_twenty_layers_are_one_disk_and_shared() {
    let home = Home::new();
    let work = work(&home);
    let file = |number: usize| (format!("layers/{number:03}"), format!("{number:03}\n"));
    let mut files: Vec<_> = (0..119).map(file).collect();
    files.push(("layers/007".into(), "above\n".into()));
    let many = layout_of_many(&work, "many", &files);
    let script = "ls /sys/block | grep -c vd; cat /layers/* | wc; cat /layers/007 /layers/118";
    let done = home.nelly(&["run", "--rm", &many, "sh", "-c", script]);
    done.expect(0);
    let out = done.out();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["1", "119", "119", "478", "above", "118"], "{}", done.err());

    let few: Vec<_> = (0..3).map(file).collect();
    let first = layout_of_many(&work, "first", &few[..2]);
    home.nelly(&["run", "--rm", &first, "cat", "/layers/000", "/layers/001"]).expect(0);
    let (images, layers) = (cached(&home, "images"), cached(&home, "layers"));
    // One more layer above the same ones: its own two files and a metadata file are new.
    let second = layout_of_many(&work, "second", &few);
    let done = home.nelly(&["run", "--rm", &second, "cat", "/layers/000", "/layers/001", "/layers/002"]);
    assert_eq!(done.expect(0).out(), "000\n001\n002\n");
    assert_eq!(cached(&home, "images").len(), images.len() + 1);
    assert_eq!(cached(&home, "layers").len(), layers.len() + 2);
    assert!(layers.iter().all(|path| path.exists()));
}
