//! Volumes, an init, and devices of the guest.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nelly_protocol::messages as m;
use serde_json::json;

use crate::bench::{Outcome, World, refusal, spec};
use crate::storage::{Disk, output, request};

crate::scenarios!(
    volumes_are_filled_once_and_are_no_overlay,
    volumes_stay_inside_of_the_container,
    volumes_without_a_disk_and_with_a_read_only_root,
    an_init_forwards_reaps_and_ends_with_its_child,
    an_init_tells_why_a_program_did_not_start,
    an_init_has_nothing_of_the_agent_and_what_its_program_has,
    devices_of_the_guest,
);

fn volume(name: &str, path: &str, read_only: bool) -> m::Volume {
    m::Volume {
        name: name.to_owned(),
        path: path.to_owned(),
        read_only,
        copy_up: true,
        ..m::Volume::default()
    }
}

async fn run(
    world: &World,
    id: &str,
    script: &str,
    change: impl FnOnce(&mut m::CreateContainerRequest),
) -> Outcome {
    let streams = world.streams();
    let mut request = world.create_request(id, &spec(&["sh", "-c", script]), &streams.stdio);
    change(&mut request);
    world.run_request(&request, &streams).await
}

async fn volumes_are_filled_once_and_are_no_overlay(world: Arc<World>) {
    let disk = Disk::new();
    let with = |volumes: Vec<m::Volume>| {
        |request: &mut m::CreateContainerRequest| {
            let rootfs = request.rootfs.mut_or_insert_default();
            rootfs.upper_device.clone_from(&disk.device);
            rootfs.volumes = volumes;
        }
    };
    let script = "set -e; grep ' /data ' /proc/mounts | grep -c ext4; ls /data; stat -c '%a %u' /data/garbage; \
        rm /data/garbage; echo mine >/data/mine; echo deep >/data/deep/file; mkdir -p /data/o/u /data/o/w /data/o/m";
    let volumes = vec![volume("deep", "/data/deep", false), volume("data", "/data/", false)];
    let outcome = run(&world, "one", script, with(volumes)).await;
    assert_eq!(
        outcome.stdout, "1\ndeep\ngarbage\norphan\nplain\nsmall\nsmall-script\n755 0\n",
        "{outcome:?}"
    );
    assert_eq!(outcome.exit.exit_code, 0, "{outcome:?}");
    // It is there again and is not filled again, wherever it is mounted.
    let script =
        "ls /mnt/data; cat /mnt/data/mine; echo no >/mnt/data/x || echo refused; cat /deep/file; ls /data";
    let volumes = vec![volume("data", "/mnt/data", true), volume("deep", "/deep", false)];
    let outcome = run(&world, "two", script, with(volumes)).await;
    let expected = "deep\nmine\no\norphan\nplain\nsmall\nsmall-script\nmine\nrefused\ndeep\n\
        deep\ngarbage\norphan\nplain\nsmall\nsmall-script\n";
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    // What docker's overlay2 does in /var/lib/docker.
    let place = tempfile::tempdir().unwrap();
    output(Command::new("mount").arg(&disk.device).arg(place.path()));
    let at = |name: &str| format!("{}/volumes/data/{name}", place.path().display());
    let layers = format!("lowerdir={},upperdir={},workdir={}", at("deep"), at("o/u"), at("o/w"));
    let mounted =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers, &at("o/m")]).status().unwrap();
    if mounted.success() {
        output(Command::new("umount").arg(at("o/m")));
    }
    output(Command::new("umount").arg(place.path()));
    assert!(mounted.success(), "an overlay on a volume");
}

async fn volumes_stay_inside_of_the_container(world: Arc<World>) {
    let outside = std::path::Path::new("/outside");
    let was = outside.exists();
    let script = "grep -c ' /outside ' /proc/mounts; grep -c ' /srv/target ' /proc/mounts; touch /escape/x";
    let outcome = run(&world, "links", script, |request| {
        request.rootfs.mut_or_insert_default().volumes = vec![
            volume("a", "/escape", false),
            volume("b", "/dangling", false),
            volume("c", "/../../../up", false),
        ];
    })
    .await;
    assert_eq!(outcome.stdout, "1\n1\n", "{outcome:?}");
    assert!(outside.exists() == was && !std::path::Path::new("/up").exists());
    for (number, (name, path, code, words)) in [
        ("v", "/", ttrpc::Code::INTERNAL, "Operation not permitted"),
        ("v", "/a/..", ttrpc::Code::INTERNAL, "which is /"),
        ("v", "/proc/sys", ttrpc::Code::INTERNAL, "which is /proc/sys"),
        ("v", "/data/plain", ttrpc::Code::INTERNAL, "Not a directory"),
        ("v", "/around", ttrpc::Code::INTERNAL, "symbolic link"),
        ("v", "data", ttrpc::Code::INVALID_ARGUMENT, "absolute"),
        ("../upper", "/data", ttrpc::Code::INVALID_ARGUMENT, "rootfs.volumes.name"),
        (".v.new", "/data", ttrpc::Code::INVALID_ARGUMENT, "rootfs.volumes.name"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut request = world.create_request(&format!("c{number}"), &spec(&["true"]), &m::Stdio::new());
        request.rootfs.mut_or_insert_default().volumes = vec![volume(name, path, false)];
        let (refused, text) = refusal(world.create(&request).await);
        assert!(refused == code && text.contains(words), "{name} {path}: {text}");
    }
    // A directory of the host that this guest has no device for.
    for (tag, path, code, words) in [
        ("nosuch", "/data", ttrpc::Code::INTERNAL, "mount the shared directory nosuch for /data"),
        ("../x", "/data", ttrpc::Code::INVALID_ARGUMENT, "rootfs.shares.tag"),
        ("tag", "data", ttrpc::Code::INVALID_ARGUMENT, "rootfs.shares.path"),
    ] {
        let mut request = world.create_request("shared", &spec(&["true"]), &m::Stdio::new());
        let (tag, path) = (tag.to_owned(), path.to_owned());
        request.rootfs.mut_or_insert_default().shares = vec![m::Share { tag, path, ..m::Share::default() }];
        let (refused, text) = refusal(world.create(&request).await);
        assert!(refused == code && text.contains(words), "{text}");
    }
    // What root in a container with all rights may have put on its disk.
    let disk = Disk::new();
    let place = tempfile::tempdir().unwrap();
    output(Command::new("mount").arg(&disk.device).arg(place.path()));
    std::fs::create_dir(place.path().join("volumes")).unwrap();
    std::os::unix::fs::symlink("/etc", place.path().join("volumes/v")).unwrap();
    output(Command::new("umount").arg(place.path()));
    let mut hostile = request(&world, "hostile", &spec(&["true"]), &disk, &m::Stdio::new());
    hostile.rootfs.mut_or_insert_default().volumes = vec![volume("v", "/data", false)];
    let (_, text) = refusal(world.create(&hostile).await);
    assert!(text.contains("volumes/v: Not a directory"), "{text}");
}

async fn volumes_without_a_disk_and_with_a_read_only_root(world: Arc<World>) {
    let script = "grep ' /data ' /proc/mounts | grep -c tmpfs; ls /data; echo x >/data/x && cat /data/x; \
        echo x >/x || echo sealed";
    let expected = "1\ngarbage\norphan\nplain\nsmall\nsmall-script\nx\nsealed\n";
    let outcome = run(&world, "memory", script, |request| {
        let rootfs = request.rootfs.mut_or_insert_default();
        rootfs.read_only = true;
        rootfs.volumes = vec![volume("v", "/data", false)];
    })
    .await;
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    let disk = Disk::new();
    let on_disk = |request: &mut m::CreateContainerRequest| {
        let rootfs = request.rootfs.mut_or_insert_default();
        rootfs.read_only = true;
        rootfs.upper_device.clone_from(&disk.device);
        rootfs.volumes = vec![volume("v", "/data", false)];
    };
    let outcome = run(&world, "disk", &script.replace("tmpfs", "ext4"), on_disk).await;
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    assert_eq!(run(&world, "again", "cat /data/x", on_disk).await.stdout, "x\n");
}

async fn an_init_forwards_reaps_and_ends_with_its_child(world: Arc<World>) {
    let init = |request: &mut m::CreateContainerRequest| request.init = true;
    let script = "echo $$; cat /proc/1/comm; grep -E 'NoNewPrivs|CapEff' /proc/1/status; \
        (sleep 0.1 & ) ; sleep 0.5; grep -l 'State:.Z' /proc/[0-9]*/status | wc -l; readlink /proc/1/exe >/dev/null || echo closed; exit 7";
    let mut spec_of_user = spec(&["sh", "-c", script]);
    spec_of_user["process"]["user"] = json!({"uid": 1000, "gid": 1001});
    let streams = world.streams();
    let mut request = world.create_request("user", &spec_of_user, &streams.stdio);
    request.init = true;
    let outcome = world.run_request(&request, &streams).await;
    assert_eq!(outcome.exit.exit_code, 7, "{outcome:?}");
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert!(lines[0] != "1" && lines[1] == "init", "{outcome:?}");
    assert!(outcome.stdout.contains("CapEff:\t0000000000000000"), "{outcome:?}");
    assert!(outcome.stdout.ends_with("0\nclosed\n"), "an orphan is left, or the init is open: {outcome:?}");

    // A signal whose action is the default one ends the child, which it would not end as PID 1.
    for (id, script, code) in [
        ("default", "echo up; sleep 1000", 143),
        ("trap", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done", 5),
    ] {
        let streams = world.streams();
        let mut request = world.create_request(id, &spec(&["sh", "-c", script]), &streams.stdio);
        init(&mut request);
        world.create(&request).await.unwrap();
        assert!(world.start(id).await.failure.is_none());
        // Beside: the pump is of this thread.
        let mut stdout = streams.stdout();
        let _stdout = crate::bench::beside(move || {
            std::io::Read::read_exact(&mut stdout, &mut [0; 3]).unwrap();
            stdout
        })
        .await;
        world.signal(id, "", libc::SIGTERM, false).await.unwrap();
        let exit = tokio::time::timeout(Duration::from_secs(60), world.wait(id, "")).await.unwrap();
        assert_eq!((exit.exit_code, exit.signal), (code, 0), "{id}");
    }
    let killed = run(&world, "killed", "kill -9 $$", init).await;
    assert_eq!(killed.exit.exit_code, 137);
}

async fn an_init_tells_why_a_program_did_not_start(world: Arc<World>) {
    for (id, program, kind) in [
        ("missing", "/no/such", m::start_failure::Kind::NOT_FOUND),
        ("text", "/data/plain", m::start_failure::Kind::NOT_EXECUTABLE),
        ("garbage", "/data/garbage", m::start_failure::Kind::NOT_EXECUTABLE),
    ] {
        let mut request = world.create_request(id, &spec(&[program]), &m::Stdio::new());
        request.init = true;
        world.create(&request).await.unwrap();
        let failure = world.start(id).await.failure;
        assert_eq!(failure.kind, kind.into(), "{failure:?}");
        assert!(failure.message.contains(program), "{failure:?}");
    }
}

async fn an_init_has_nothing_of_the_agent_and_what_its_program_has(world: Arc<World>) {
    // As a container that may look into everything of its own.
    let script = "sleep 0.3; cat /proc/1/cmdline; echo; readlink /proc/1/exe; \
        (echo x >/proc/1/exe) 2>/dev/null && echo changed; echo $(ls /proc/1/fd); \
        grep -E '^(NoNewPrivs|Seccomp|CapEff|CapPrm):' /proc/1/status; \
        grep CapEff /proc/self/status; exit 3";
    let mut spec = spec(&["sh", "-c", script]);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
    }
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["execveat", "capset"], "action": "SCMP_ACT_KILL_PROCESS"}]});
    let streams = world.streams();
    let mut request = world.create_request("looks", &spec, &streams.stdio);
    request.init = true;
    let outcome = world.run_request(&request, &streams).await;
    assert_eq!(outcome.exit.exit_code, 3, "{outcome:?}");
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert!(lines[0].starts_with("nelly-init\0"), "{outcome:?}");
    assert_eq!(lines[1], "/memfd:nelly-init (deleted)", "{outcome:?}");
    assert!(!outcome.stdout.contains("changed"), "{outcome:?}");
    assert!(lines[2] == "0 1 2", "it holds something open: {outcome:?}");
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    for (name, value) in [("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
        assert!(words.windows(2).any(|pair| pair == [name, value]), "{name} {outcome:?}");
    }
    let sets: Vec<_> = words.windows(2).filter(|pair| pair[0] == "CapEff:").map(|pair| pair[1]).collect();
    assert!(sets.len() == 2 && sets[0] == sets[1], "{outcome:?}");
}

async fn devices_of_the_guest(world: Arc<World>) {
    let device = |source: &str, path: &str, access: &str| m::Device {
        source: source.to_owned(),
        path: path.to_owned(),
        access: access.to_owned(),
        ..m::Device::default()
    };
    let disk = Disk::new();
    let source = disk.device.clone();
    let script =
        "test -b /dev/disk && head -c 0 /dev/disk && echo read; echo x 2>/dev/null >/dev/disk || echo no";
    let outcome =
        run(&world, "one", script, |request| request.devices = vec![device(&source, "/dev/disk", "r")]).await;
    assert_eq!(outcome.stdout, "read\nno\n", "{outcome:?}");
    for (number, (source, path, access, words)) in [
        ("/dev/no-such", "/dev/x", "rwm", "\"/dev/no-such\": the guest has no such device"),
        ("/etc/passwd", "/dev/x", "rwm", "\"/etc/passwd\": in the guest it is no device"),
        ("dev/null", "/dev/x", "rwm", "absolute"),
        ("/dev/null", "x", "rwm", "absolute"),
        ("/dev/null", "/dev/x", "rx", "\"rx\""),
    ]
    .into_iter()
    .enumerate()
    {
        let mut request = world.create_request(&format!("c{number}"), &spec(&["true"]), &m::Stdio::new());
        request.devices = vec![device(source, path, access)];
        let (code, text) = refusal(world.create(&request).await);
        assert!(code == ttrpc::Code::INVALID_ARGUMENT && text.contains(words), "{text}");
    }
}
