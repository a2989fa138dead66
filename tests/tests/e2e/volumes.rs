//! Volumes, an init, devices of the guest and annotations, as a user has them.

use std::process::Command;

use nelly_tests::run;
use serde_json::{Value, json};

use super::LIMIT;
use super::images::write_layout;
use super::keeper::Kept;
use super::machine::busybox;

/// An OCI layout with a busybox, files at `/srv` and two volumes.
fn layout(kept: &Kept) -> String {
    let root = kept.0.path().join("root");
    busybox(&root, &["sh", "cat", "ls", "stat", "mount", "mkdir", "grep", "sleep", "sync", "rm", "touch"]);
    let make = "set -e; mkdir -p srv/deep; echo image >srv/file; chown 7:8 srv/file; chmod 4750 srv/file
        ln srv/file srv/deep/hard; chown 5:6 srv; chmod 1777 srv; ln -s ../../../../../srv link; tar -cf ../root.tar .";
    run(Command::new("sh").args(["-c", make]).current_dir(&root), b"", LIMIT).expect(0);
    let layer = std::fs::read(kept.0.path().join("root.tar")).unwrap();
    let config = json!({ "Env": ["PATH=/bin"], "Volumes": { "/srv": {}, "/cache": {} } });
    let place = kept.0.path().join("image");
    write_layout(&place, &[layer], &config);
    format!("oci:{}", place.display())
}

#[test]
fn volumes_of_an_image_and_of_a_name_stay_and_take_an_overlay() {
    let kept = Kept::new();
    let image = layout(&kept);
    let flags = ["-v", "data:/link/below", "-v", "data:/second:ro", "--mount", "type=tmpfs,target=/tmp"];
    let made = ["run", "-d", "--name", "box", "--privileged", "--init"];
    kept.out(&[&made[..], &flags, &[&image, "sleep", "100000"]].concat());
    // The image's directory as it was, on a disk of its own and not on an overlay.
    let looks = kept.exec(
        "stat -c '%a %u %g' /srv /srv/file; [ /srv/file -ef /srv/deep/hard ] && echo same; cat /srv/file",
    );
    assert_eq!(looks, "1777 5 6\n4750 7 8\nsame\nimage");
    for path in ["/srv", "/cache", "/srv/below", "/second"] {
        let kind = kept.exec(&format!("grep ' {path} ' /proc/mounts"));
        assert!(kind.contains(" ext4 "), "{path}: {kind}");
    }
    assert!(kept.exec("grep ' /tmp ' /proc/mounts").contains("tmpfs"));
    // What docker's overlay2 does in /var/lib/docker, which an overlay refuses.
    let overlay = "set -e; cd /srv/below; mkdir l u w m; echo low >l/a; \
        mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m; echo up >m/b; ls m; cat u/b";
    assert_eq!(kept.exec(overlay), "a\nb\nup");
    assert_eq!(kept.exec("cat /second/u/b; touch /second/x 2>/dev/null || echo refused"), "up\nrefused");
    // Its first process is an init, which SIGTERM reaches the program through.
    assert_eq!(kept.exec("cat /proc/1/comm"), "init");
    kept.exec("echo changed >/srv/file; rm /srv/deep/hard; echo mine >/cache/mine; sync");
    kept.out(&["stop", "box"]);
    assert_eq!(kept.state()["exit"]["code"], 143);
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("cat /srv/file /cache/mine /srv/below/u/b; ls /srv/deep"), "changed\nmine\nup");
    let inspected: Value = serde_json::from_str(&kept.out(&["inspect", "box"])).unwrap();
    let volumes = inspected[0]["container"]["options"]["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 4);
    assert!(
        volumes
            .iter()
            .any(|one| one["name"] == "data" && one["path"] == "/second" && one["read_only"] == true)
    );
    // A further container has the image's volumes, in memory, and none of another's name.
    let inside = ["run", "--in", "box", &image, "cat", "/srv/file"];
    assert_eq!(kept.out(&inside), "image");
    let named = kept.0.nelly(&["run", "--in", "box", "-v", "data:/x", &image, "true"]);
    assert!(named.expect(125).err().contains("first container"), "{}", named.err());
}

#[test]
fn a_read_only_root_has_volumes_devices_and_annotations() {
    let kept = Kept::new();
    let flags =
        ["--read-only", "-v", "data:/data", "--device", "/dev/fuse", "--annotation", "org.example.a=b"];
    kept.keep(&flags, "sleep 100000");
    let script = "echo kept >/data/x; sync; touch /y 2>/dev/null || echo sealed; \
        ls -l /dev/fuse | cut -c1; exec 3<>/dev/fuse && echo opened; ls /dev/net 2>/dev/null || echo none";
    assert_eq!(kept.exec(script), "sealed\nc\nopened\nnone");
    assert_eq!(kept.record()["annotations"]["org.example.a"], "b");
    kept.out(&["kill", "box"]);
    kept.out(&["wait", "box"]);
    kept.out(&["start", "box"]);
    assert_eq!(kept.exec("cat /data/x"), "kept");

    let rm = ["run", "--rm", "-v", "/data", "--device", "/dev/no-such", "--", "true"];
    let missing = kept.0.nelly(&rm);
    assert!(
        missing.expect(125).err().contains("\"/dev/no-such\": the guest has no such device"),
        "{}",
        missing.err()
    );
    for (flags, words) in [
        (&["-v", "a:/data", "-v", "b:/data"][..], "something else is mounted"),
        (&["-v", "a:/"], "must be absolute"),
        (&["--device", "fuse"], "--device"),
    ] {
        let refused = kept.0.nelly(&[&["run", "--rm"], flags, &["--", "true"]].concat());
        assert!(refused.code != 0 && refused.err().contains(words), "{flags:?}: {}", refused.err());
    }
    let useless = kept.0.nelly(&["create", "--read-only", "--storage", "1G", "--", "true"]);
    assert!(useless.code != 0 && useless.err().contains("--storage"), "{}", useless.err());
}
