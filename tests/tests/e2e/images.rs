//! Images made by other tools, beside the same image under runc: what a program can see is the
//! same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// The same under runc: our runtime specification, umoci's unpacked root.
fn under_runc(work: &Path, home: &Home, image: &str) -> Done {
    let planned = home.nelly(&["run", "--dry-run", "--hostname", "box", image]);
    let planned: Value = serde_json::from_slice(&planned.expect(0).stdout).unwrap();
    let mut spec = planned["container"].clone();
    // The agent resolves the user in the container; here the answer is known.
    spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1001, "additionalGids": [1234] });
    spec["root"]["path"] = work.join("bundle/rootfs").display().to_string().into();
    let bundle = work.join("runc");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    run(Command::new("runc").args(["run", "--bundle"]).arg(&bundle).arg("beside"), b"", LIMIT)
}

fn compare(work: &Path, home: &Home, image: &str) {
    let ours = home.nelly(&["run", "--hostname", "box", image]);
    let theirs = under_runc(work, home, image);
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

#[test]
fn an_oci_layout_by_umoci_is_as_under_runc() {
    let home = Home::new();
    let work = work(&home);
    layout(&work);
    compare(&work, &home, &format!("oci:{}:v1", work.join("image").display()));
}

#[test]
fn a_docker_archive_by_skopeo_is_as_under_runc() {
    let home = Home::new();
    let work = work(&home);
    layout(&work);
    tool(
        &work,
        &["skopeo", "copy", "--insecure-policy", "oci:image:v1", "docker-archive:image.tar:example/app:1.2"],
    );
    compare(&work, &home, &format!("docker-archive:{}:example/app:1.2", work.join("image.tar").display()));
}

#[test]
fn a_second_run_finds_the_image_cached() {
    let home = Home::new();
    let image = "builtin:busybox";
    let planned = |home: &Home| -> Value {
        let done = home.nelly(&["run", "--dry-run", image, "true"]);
        serde_json::from_slice(&done.expect(0).stdout).unwrap()
    };
    assert_eq!(planned(&home)["image_cached"], false);
    home.nelly(&["run", image, "true"]).expect(0);
    assert_eq!(planned(&home)["image_cached"], true);
    home.nelly(&["run", image, "true"]).expect(0);
}
