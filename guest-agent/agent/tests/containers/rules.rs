//! What a container may not do.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::bench::{World, reading, spec, watched};
use crate::calls;

crate::scenarios!(
    capabilities_and_new_privileges,
    seccomp_decides,
    the_default_profile_refuses_ways_out,
    limits_cannot_be_lifted,
    an_exec_spoils_no_other,
    a_filter_has_no_say_in_capabilities,
    a_session_keyring_each,
    devices_are_fenced,
    an_images_devices_are_not_believed,
    masked_and_read_only_paths,
    limits_of_resources,
    kernel_parameters,
    users_have_ports_and_pings,
    mounts_of_the_spec,
);

fn sh(script: &str) -> Value {
    spec(&["sh", "-c", script])
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with(name)).expect(name);
    u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
}

/// Without a shell, which changes what happens on signals.
fn plain() -> Value {
    let mut spec = spec(&["cat", "/proc/self/status"]);
    spec["process"]["capabilities"]["ambient"] = json!([]);
    spec
}

async fn capabilities_and_new_privileges(world: Arc<World>) {
    // CHOWN 0, DAC_OVERRIDE 1, KILL 5, SETGID 6, SETUID 7, NET_RAW 13, MKNOD 27.
    let given = 1 | 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 27;
    let status = world.run_spec("a", &plain()).await.stdout;
    assert_eq!(field(&status, "CapBnd:"), given, "{status}");
    assert_eq!(field(&status, "CapEff:"), given);
    assert_eq!(field(&status, "CapPrm:"), given);
    assert_eq!((field(&status, "CapInh:"), field(&status, "CapAmb:")), (0, 0));
    assert_eq!(field(&status, "NoNewPrivs:"), 1);
    assert_eq!(field(&status, "SigBlk:"), 0, "signals are blocked");
    // 32 and 33 are the C library's own: it resets them for nobody, and whoever started this test
    // may have ignored them.
    assert_eq!(field(&status, "SigIgn:") & !(3 << 31), 0, "signals are ignored");

    let mut ambient = plain();
    ambient["process"]["user"] = json!({"uid": 1000, "gid": 1000, "umask": 0o27});
    let set = json!(["CAP_NET_RAW"]);
    for name in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        ambient["process"]["capabilities"][name] = set.clone();
    }
    ambient["process"]["noNewPrivileges"] = json!(false);
    let status = world.run_spec("b", &ambient).await.stdout;
    assert_eq!(field(&status, "CapEff:"), 1 << 13, "{status}");
    assert_eq!(field(&status, "CapAmb:"), 1 << 13);
    assert_eq!(field(&status, "NoNewPrivs:"), 0);
    assert_eq!(field(&status, "Umask:"), 0x27);

    let mut none = plain();
    none["process"]["capabilities"] = Value::Null;
    let status = world.run_spec("c", &none).await.stdout;
    assert_eq!((field(&status, "CapEff:"), field(&status, "CapBnd:")), (0, 0));
}

async fn seccomp_decides(world: Arc<World>) {
    for (id, no_new_privileges) in [("a", true), ("b", false)] {
        let mut spec = sh(
            "mkdir /x; echo $?; mkdir /y 2>&1; grep -c . /proc/self/status; grep Seccomp: /proc/self/status",
        );
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
        });
        let outcome = world.run_spec(id, &spec).await;
        assert!(outcome.stdout.contains("No space left on device"), "{outcome:?}");
        assert!(outcome.stdout.contains("Seccomp:\t2"), "{outcome:?}");
        let status = world.client.state(crate::bench::context(), &Default::default()).await.unwrap();
        assert!(!status.containers.is_empty());
    }
    // An exec is under the same filter.
    let mut idle = spec(&["sleep", "1000"]);
    idle["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]});
    world.idle_spec("c", &idle).await;
    let outcome = world.exec_sh("c", "e", "mkdir /x; echo $?").await;
    assert_eq!(outcome.stdout, "159\n", "{outcome:?}");
}

/// What the sandbox sends; a test of its own holds the two together.
const DEFAULT_PROFILE: &str = include_str!("default-seccomp.json");

async fn the_default_profile_refuses_ways_out(world: Arc<World>) {
    let table = [
        // To the host, and around filters.
        ("socket:28,1", -libc::EPERM),
        ("socket:100000028,1", -libc::EPERM),
        ("socketpair:28,1", -libc::EPERM),
        ("io_uring_setup:1", -libc::EPERM),
        ("io_uring_enter", -libc::EPERM),
        ("io_uring_register", -libc::EPERM),
        ("userfaultfd", -libc::EPERM),
        // Namespaces of users: by each call that makes one.
        ("unshare:10000000", -libc::EPERM),
        ("clone:10000011", -libc::EPERM),
        ("clone3", -libc::ENOSYS),
        ("setns", -libc::EPERM),
        ("keyctl", -libc::EPERM),
        ("add_key", -libc::EPERM),
        ("bpf", -libc::EPERM),
        ("mount", -libc::EPERM),
        // And what programs need.
        ("socket:2,1", 3),
        ("personality:ffffffff", 0),
        ("ptrace", 0),
    ];
    let calls: Vec<_> = table.iter().map(|(call, _)| *call).collect();
    let mut spec = calls::program(spec(&[]), &calls);
    spec["linux"]["seccomp"] = serde_json::from_str(DEFAULT_PROFILE).unwrap();
    spec["process"]["noNewPrivileges"] = json!(false);
    let outcome = world.run_spec("a", &spec).await;
    let expected: String = table
        .iter()
        .map(|(call, result)| format!("{} {result}\n", call.split(':').next().unwrap_or_default()))
        .collect();
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
}

/// Root in a user and a cgroup namespace of its own mounts its cgroups to write. It tries to lift
/// the limits at their root, first as that root, then from below it; it moves everything into a
/// child, hands down what controllers there are, and makes cgroups until it may make no more.
const REARRANGE: &str = r#"
    mount -t cgroup2 none /mnt || exit
    cd /mnt
    lift="for file in descendants depth; do (echo max > cgroup.max.\$file) 2>/dev/null; done"
    eval "$lift"
    mkdir child
    while grep -q . cgroup.procs; do
        for pid in $(cat cgroup.procs); do (echo $pid > child/cgroup.procs) 2>/dev/null; done
    done
    /bin/unshare -C sh -c "$lift"
    for controller in $(cat cgroup.controllers); do echo +$controller > cgroup.subtree_control; done
    /bin/busybox mkdir $(/bin/busybox seq 1100) 2>/dev/null
    echo ready"#;

/// A container whose root may be root in namespaces of its own, too.
fn unshared(mut spec: Value) -> Value {
    // Without this right nobody maps root into a namespace of users; docker's containers have it.
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SETFCAP"));
    }
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/bin/unshare", "type": "bind", "source": "/usr/bin/unshare", "options": ["bind", "ro"]}));
    calls::libraries(mounts);
    spec
}

/// Sets a limit, and with it hands down a controller whose cgroups take no process beside others.
/// False where the machine lacks it.
fn limit_hugetlb(world: &World, spec: &mut Value) -> bool {
    let controllers = std::fs::read_to_string(world.cgroup.join("cgroup.controllers")).unwrap();
    let there = controllers.split_whitespace().any(|one| one == "hugetlb");
    if there {
        spec["linux"]["resources"]["unified"] = json!({"hugetlb.2MB.max": "4194304"});
    }
    there
}

/// Here and not in a thread beside: an exec is made by an agent with one thread.
async fn line_of(stdout: &tokio::net::UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        stdout.readable().await.unwrap();
        let mut byte = [0];
        match stdout.try_read(&mut byte) {
            Ok(0) => break,
            Ok(count) => line.extend(&byte[..count]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    String::from_utf8_lossy(&line).into_owned()
}

async fn limits_cannot_be_lifted(world: Arc<World>) {
    let script = format!(
        r#"
        trap 'echo first; wait; exit 0' TERM
        exec 2>&1
        /bin/unshare -UrmC sh -c '
            trap "echo nested; exit 0" TERM
            {REARRANGE}
            while :; do sleep 0.05; done' &
        while :; do sleep 0.05; done"#
    );
    let mut spec = unshared(sh(&script));
    let hugetlb = limit_hugetlb(&world, &mut spec);
    let streams = world.streams();
    world.create(&world.create_request("a", &spec, &streams.stdio)).await.unwrap();
    world.start("a").await;
    let stdout = watched(streams.stdout());
    assert_eq!(line_of(&stdout).await, "ready\n");
    let limits = |file: &str| std::fs::read_to_string(world.cgroup.join("a").join(file)).unwrap();
    assert_eq!(limits("cgroup.max.depth"), "32\n");
    assert_eq!(limits("container/cgroup.max.descendants"), "1024\n");
    assert!(limits("container/cgroup.stat").contains("nr_descendants 1024\n"), "it made others");
    assert_eq!(limits("container/root/cgroup.procs"), "", "it moved itself");
    if hugetlb {
        assert_eq!(limits("hugetlb.2MB.max"), "4194304\n");
        assert!(
            limits("container/root/cgroup.subtree_control").contains("hugetlb"),
            "its cgroup takes no process"
        );
    }
    // An exec still has its place, and sees itself at the root as any process does.
    let outcome = world.exec_sh("a", "e", "grep ^0: /proc/self/cgroup").await;
    assert_eq!(outcome.stdout, "0::/\n", "{outcome:?}");
    // Signals find what moved.
    world.signal("a", "", libc::SIGTERM, true).await.unwrap();
    assert_eq!(world.wait("a", "").await.exit_code, 0);
    let said = reading(stdout.into_std().unwrap()).await;
    assert!(said.contains("first\n") && said.contains("nested\n"), "{said:?}");
}

async fn an_exec_spoils_no_other(world: Arc<World>) {
    let mut spec = unshared(spec(&["sleep", "1000"]));
    limit_hugetlb(&world, &mut spec);
    world.idle_spec("a", &spec).await;
    let streams = world.streams();
    let mut request = world.exec_request("a", "bad", &[], &streams.stdio);
    let script = format!("{REARRANGE}; sleep 1000 < /dev/null > /dev/null 2>&1 &");
    let process = json!({"args": ["/bin/unshare", "-UrmC", "sh", "-c", script], "cwd": "/",
        "env": ["PATH=/bin"], "capabilities": spec["process"]["capabilities"]});
    request.process = serde_json::to_vec(&process).unwrap();
    world.exec(&request).await.unwrap();
    let (stdout, stderr) = (reading(streams.stdout()), reading(streams.stderr()));
    assert_eq!(world.wait("a", "bad").await.exit_code, 0);
    assert_eq!((stdout.await, stderr.await), ("ready\n".to_owned(), String::new()));

    let place = world.cgroup.join("a/exec-0");
    let limits = |file: &str| std::fs::read_to_string(place.join(file)).unwrap();
    assert_eq!(limits("cgroup.max.descendants"), "64\n");
    assert!(limits("cgroup.stat").contains("nr_descendants 64\n"), "it made others");
    assert_eq!(limits("root/cgroup.procs"), "", "it moved itself");
    let outcome = world.exec_sh("a", "e", "grep ^0: /proc/self/cgroup").await;
    assert_eq!(outcome.stdout, "0::/\n", "{outcome:?}");
    // What the first one left behind still has its cgroups, and hears a signal to all; a first
    // process ignores that one.
    assert_ne!(limits("root/child/cgroup.procs"), "");
    world.signal("a", "", libc::SIGTERM, true).await.unwrap();
    while place.exists() {
        assert_eq!(world.exec_sh("a", "e", "echo x").await.stdout, "x\n");
    }
}

async fn a_filter_has_no_say_in_capabilities(world: Arc<World>) {
    // Without no_new_privs the stage needs CAP_SYS_ADMIN to install a filter, and this one says
    // that it gave it back.
    for (n, (errno, uid)) in
        [(0, 0), (0, 1000), (libc::EPERM, 0), (libc::EPERM, 1000)].into_iter().enumerate()
    {
        let mut spec = plain();
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["process"]["user"] = json!({"uid": uid, "gid": uid});
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["capset", "prctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]});
        let status = world.run_spec(&format!("c{n}"), &spec).await.stdout;
        let given = field(&status, "CapBnd:");
        assert_eq!(given & 1 << 21, 0, "{status}");
        let expected = if uid == 0 { given } else { 0 };
        assert_eq!((field(&status, "CapEff:"), field(&status, "CapPrm:")), (expected, expected), "{status}");
        assert_eq!(field(&status, "CapAmb:"), 0);
    }
}

async fn a_session_keyring_each(world: Arc<World>) {
    // KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING: its number, as the process sees it.
    let spec = calls::program(spec(&[]), &["keyctl:0,fffffffffffffffd"]);
    let (one, other) = (world.run_spec("a", &spec).await.stdout, world.run_spec("b", &spec).await.stdout);
    assert!(one.starts_with("keyctl ") && !one.contains('-'), "{one}");
    assert_ne!(one, other);
}

async fn devices_are_fenced(world: Arc<World>) {
    // A node may be made, but not opened: 7:0 is a loop device, 1:1 is /dev/mem.
    let script = "mknod /l b 7 0 && dd if=/l of=/dev/null count=1 2>&1; mknod /m c 1 1 && head -c1 /m 2>&1; \
                  head -c4 /dev/zero | wc -c; echo x > /dev/full; ls /dev/";
    let outcome = world.run_spec("a", &sh(script)).await;
    assert_eq!(outcome.stdout.matches("Operation not permitted").count(), 2, "{outcome:?}");
    assert!(outcome.stdout.contains("4\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");
    for name in
        ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr"]
    {
        assert!(outcome.stdout.lines().any(|line| line == name), "{name}: {outcome:?}");
    }
    let mut open = sh("ls -l /dev/mine; : < /dev/mine");
    open["linux"]["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 5, "minor": 1, "fileMode": 0o600, "uid": 5, "gid": 6}]);
    open["linux"]["resources"]["devices"] =
        json!([{"allow": true, "type": "c", "major": 5, "minor": 1, "access": "r"}]);
    let outcome = world.run_spec("b", &open).await;
    assert!(outcome.stdout.starts_with("crw-------") && outcome.stdout.contains("5,   1"), "{outcome:?}");
    assert!(!outcome.stderr.contains("not permitted"), "{outcome:?}");
}

async fn an_images_devices_are_not_believed(world: Arc<World>) {
    // At /dev is what the image has: its null leads to a file, its zero is one.
    let script = "echo lost > /dev/null; head -c 4 /dev/zero | wc -c; wc -c < /data/garbage; cat /data/plain; ls -l /dev/null";
    let mut spec = sh(script);
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    spec["linux"]["maskedPaths"] = json!(["/data/garbage", "/data/plain/below", "/around", "/dangling"]);
    let outcome = world.run_spec("a", &spec).await;
    let (said, list) = outcome.stdout.split_once("crw-rw-rw-").unwrap_or_else(|| panic!("{outcome:?}"));
    assert_eq!(said, "4\n0\nnot a program\n", "{outcome:?}");
    assert!(list.contains("1,   3"), "{outcome:?}");
}

async fn masked_and_read_only_paths(world: Arc<World>) {
    let mut spec =
        sh("wc -c < /data/plain; ls /home; echo 1 > /proc/sys/vm/drop_caches; touch /sys/x; touch /etc/y");
    spec["linux"]["maskedPaths"] = json!(["/data/plain", "/home"]);
    spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/etc"]);
    let outcome = world.run_spec("a", &spec).await;
    assert_eq!(outcome.stdout, "0\n", "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 3, "{outcome:?}");
}

async fn limits_of_resources(world: Arc<World>) {
    let mut spec = sh("ulimit -n; ulimit -c");
    spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    assert_eq!(world.run_spec("a", &spec).await.stdout, "100\n0\n");
    let (_, hard) = nelly_agent::sys::resource_limit(libc::RLIMIT_NOFILE).unwrap();
    let expected = format!("1024\n{}\n", hard.min(524_288));
    assert_eq!(world.run_spec("b", &sh("ulimit -n; ulimit -Hn")).await.stdout, expected);
    let mut spec = sh("cat /proc/self/oom_score_adj");
    spec["process"]["oomScoreAdj"] = json!(321);
    assert_eq!(world.run_spec("c", &spec).await.stdout, "321\n");
}

async fn kernel_parameters(world: Arc<World>) {
    let mut spec = sh(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax /proc/sys/kernel/domainname",
    );
    spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "77", "kernel.msgmax": "4242"});
    spec["domainname"] = json!("where");
    assert_eq!(world.run_spec("a", &spec).await.stdout, "77\n4242\nwhere\n");
}

async fn users_have_ports_and_pings(world: Arc<World>) {
    let user = |mut spec: Value| {
        // As the sandbox has them.
        spec["linux"]["sysctl"] =
            json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"});
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec
    };
    let script = "nc -l -p 80 < /dev/null & \
                  until echo x | nc 127.0.0.1 80 2> /dev/null || ! kill -0 $! 2> /dev/null; do sleep 0.05; done; \
                  wait $!; echo port $?";
    let outcome = world.run_spec("a", &user(sh(script))).await;
    assert!(outcome.stdout.contains("port 0\n"), "{outcome:?}");
    // A socket for ICMP's echo.
    let outcome = world.run_spec("b", &user(calls::program(spec(&[]), &["socket:2,2,1"]))).await;
    assert_eq!(outcome.stdout, "socket 3\n", "{outcome:?}");
}

async fn mounts_of_the_spec(world: Arc<World>) {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), "from outside\n").unwrap();
    let dir = source.path().to_str().unwrap();
    let script = "cat /in/dir/file /in/file; touch /in/dir/x; touch /rw/made; touch /t/x; stat -c %a /t; grep -E ' /(in|rw|t|outside)' /proc/mounts; ls /outside";
    let mut spec = sh(script);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/in/dir", "source": dir, "options": ["rbind", "ro", "nosuid", "noexec"]}),
    );
    mounts.push(json!({"destination": "/in/file", "type": "bind", "source": format!("{dir}/file"), "options": ["bind"]}));
    mounts.push(json!({"destination": "/rw", "source": dir, "options": ["bind", "rw", "private"]}));
    mounts.push(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "mode=700", "size=64k"]}));
    mounts.push(json!({"destination": "/escape/here", "type": "tmpfs", "source": "tmpfs"}));
    let outcome = world.run_spec("a", &spec).await;
    assert!(outcome.stdout.starts_with("from outside\nfrom outside\n"), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
    assert!(source.path().join("made").exists() && !source.path().join("x").exists());
    assert!(outcome.stdout.contains("700\n"), "{outcome:?}");
    let line = |target: &str| {
        let found = outcome.stdout.lines().find(|line| line.contains(&format!(" {target} ")));
        found.unwrap_or_else(|| panic!("{target}: {outcome:?}")).to_owned()
    };
    assert!(line("/in/dir").contains(" ro,nosuid,noexec"), "{}", line("/in/dir"));
    assert!(line("/rw").contains(" rw"));
    // The link led to a place inside of the container, whatever it says.
    line("/outside/here");
    assert!(!std::path::Path::new("/outside").exists());
}
