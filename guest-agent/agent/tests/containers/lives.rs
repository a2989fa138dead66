//! Containers from their making to their end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nelly_protocol::messages::{self as m, container_state::Status, start_failure::Kind};
use serde_json::json;
use ttrpc::Code;

use crate::bench::{World, connect, context, refusal, spec};

crate::scenarios!(
    output_and_exit_code,
    first_process_sees_only_its_own,
    writable_layer_over_a_read_only_image,
    read_only_root,
    paths_lead_through_links,
    names_are_the_containers,
    start_failures_are_exact,
    hello_comes_first,
    ids_and_states,
    bad_requests_leave_nothing,
    signals,
    two_steps,
    users_and_groups,
    shutdown_with_grace,
    after_shutdown_nothing_begins,
    stats_and_state,
    a_limit_that_takes_its_time_holds_up_nothing_else,
    the_guests_stamps,
    a_container_dies_with_its_first_process,
);

async fn output_and_exit_code(world: Arc<World>) {
    let outcome = world.sh("a", "echo out; echo err >&2; exit 7").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!((outcome.exit.exit_code, outcome.exit.signal, outcome.exit.oom_killed), (7, 0, false));
    assert!(outcome.exit.exited_ns > 0);
}

async fn first_process_sees_only_its_own(world: Arc<World>) {
    let outcome = world
        .sh("a", "echo $$; ls -d /proc/[0-9]*; hostname; cat /proc/mounts; ls -l /proc/self/fd; ip -o link")
        .await;
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], "1", "{outcome:?}");
    let processes: Vec<_> = lines.iter().filter(|line| line.starts_with("/proc/")).collect();
    // The shell itself expands the pattern.
    assert_eq!(processes, [&"/proc/1"]);
    assert!(lines.contains(&"box"));
    assert!(lines.iter().any(|line| line.starts_with("overlay / overlay rw")), "{outcome:?}");
    for (target, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
        ("/sys/fs/cgroup", "cgroup2"),
    ] {
        let wanted = format!(" {target} {kind} ");
        assert!(lines.iter().any(|line| line.contains(&wanted)), "{wanted}: {outcome:?}");
    }
    // Nothing of the host's tree, no descriptor but the three streams (that of the directory has no
    // target any more).
    assert!(!outcome.stdout.contains("ext4"), "{outcome:?}");
    let descriptors = lines.iter().filter(|line| line.contains(" -> ")).count();
    assert_eq!(descriptors, 3, "{outcome:?}");
    assert!(lines.iter().any(|line| line.contains("lo:") && line.contains("UP")), "{outcome:?}");
}

async fn writable_layer_over_a_read_only_image(world: Arc<World>) {
    let script = "echo x > /data/new && cat /data/new && echo changed > /data/plain && cat /data/plain; \
                  dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null || echo full";
    let outcome = world.sh("a", script).await;
    assert_eq!(outcome.stdout, "x\nchanged\nfull\n", "{outcome:?}");
    // The image itself did not change.
    assert_eq!(world.sh("b", "cat /data/plain; ls /data/new").await.stdout, "not a program\n");
}

async fn read_only_root(world: Arc<World>) {
    let streams = world.streams();
    let mut spec = spec(&[
        "sh",
        "-c",
        "touch /x; touch /dev/shm/y && echo shm; echo d > /dev/null && echo null; pwd; stat -c %a /not /dev/null",
    ]);
    spec["process"]["cwd"] = json!("/not/there/yet");
    let mut request = world.create_request("a", &spec, &streams.stdio);
    if let Some(rootfs) = request.rootfs.as_mut() {
        rootfs.read_only = true;
    }
    let outcome = world.run_request(&request, &streams).await;
    assert_eq!(outcome.stdout, "shm\nnull\n/not/there/yet\n755\n666\n");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

async fn paths_lead_through_links(world: Arc<World>) {
    for (n, (cwd, expected)) in [
        ("/dangling", "/srv/target\n"),
        ("/dangling/a/b", "/srv/target/a/b\n"),
        ("/escape/x", "/outside/x\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = spec(&["sh", "-c", "readlink -f ."]);
        spec["process"]["cwd"] = json!(cwd);
        assert_eq!(world.run_spec(&format!("c{n}"), &spec).await.stdout, expected, "{cwd}");
    }
    // Mounts and devices follow them, too.
    let mut spec = spec(&["sh", "-c", "grep -c ' /srv/target/[mf] ' /proc/mounts; ls /srv/target"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/dangling/m", "type": "tmpfs", "source": "tmpfs"}));
    mounts.push(
        json!({"destination": "/dangling/f", "type": "bind", "source": "/etc/passwd", "options": ["bind"]}),
    );
    spec["linux"]["devices"] = json!([{"path": "/dangling/d", "type": "c", "major": 1, "minor": 3}]);
    assert_eq!(world.run_spec("mounts", &spec).await.stdout, "2\nd\nf\nm\n");
    spec["process"]["cwd"] = json!("/around/x");
    let request = world.create_request("around", &spec, &m::Stdio::new());
    let (_, words) = refusal(world.create(&request).await);
    assert!(words.contains("/around/x") && words.contains("symbolic links"), "{words}");
}

async fn names_are_the_containers(world: Arc<World>) {
    for (id, read_only) in [("a", false), ("b", true)] {
        let streams = world.streams();
        let script = "cat /etc/hosts /etc/hostname /etc/resolv.conf; ls -l /etc/hosts";
        let mut request = world.create_request(id, &spec(&["sh", "-c", script]), &streams.stdio);
        request.rootfs.as_mut().unwrap().read_only = read_only;
        request.hosts = vec!["10.0.0.2 db".to_owned()];
        let outcome = world.run_request(&request, &streams).await;
        let (names, list) = outcome.stdout.split_once("-rw-r--r--").expect(&outcome.stdout);
        assert_eq!(
            names,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox\n10.0.0.2\tdb\nbox\nnameserver 10.9.8.7\n"
        );
        assert!(list.contains(" root "), "{list}");
    }
}

async fn start_failures_are_exact(world: Arc<World>) {
    for (n, (program, kind, words)) in [
        ("no-such-program", Kind::NOT_FOUND, "not found in PATH"),
        ("/no/such/program", Kind::NOT_FOUND, "No such file"),
        ("/data/plain/x", Kind::NOT_FOUND, "/data/plain/x"),
        ("/data/orphan", Kind::NOT_FOUND, "interpreter"),
        ("/data/plain", Kind::NOT_EXECUTABLE, "Permission denied"),
        ("/data/garbage", Kind::NOT_EXECUTABLE, "Exec format"),
        (
            "/data/small",
            Kind::NOT_EXECUTABLE,
            "/data/small is a 32-bit program (i386); the guest runs 64-bit",
        ),
        ("/data/small-script", Kind::NOT_EXECUTABLE, "/data/small is a 32-bit program"),
        ("/data", Kind::NOT_EXECUTABLE, "directory"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("c{n}");
        world.create(&world.create_request(&id, &spec(&[program]), &m::Stdio::new())).await.unwrap();
        let started = world.start(&id).await;
        let failure = started.failure.as_ref().expect(program);
        assert_eq!((started.pid, failure.kind.unwrap()), (0, kind), "{program}: {failure:?}");
        assert!(failure.message.contains(words), "{program}: {}", failure.message);
        // It is forgotten, and the id is free again.
        let request = m::WaitRequest { container_id: id.clone(), ..Default::default() };
        assert_eq!(refusal(world.client.wait(context(), &request).await).0, Code::NOT_FOUND);
        assert_eq!(world.sh(&id, "exit 3").await.exit.exit_code, 3);
    }
}

async fn hello_comes_first(world: Arc<World>) {
    let (client, _serving) = connect(&world.guest).await;
    let (code, words) = refusal(client.state(context(), &m::StateRequest::new()).await);
    assert!(code == Code::FAILED_PRECONDITION && words.contains("Hello"), "{words}");
    let hello = |protocol: u32, features: &[&str]| m::HelloRequest {
        protocol,
        features: features.iter().map(|one| (*one).to_owned()).collect(),
        ..Default::default()
    };
    let (code, words) = refusal(client.hello(context(), &hello(2, &[])).await);
    assert!(code == Code::UNIMPLEMENTED && words.contains('2'), "{words}");
    let (code, words) = refusal(client.hello(context(), &hello(1, &["containers", "telepathy"])).await);
    assert!(code == Code::UNIMPLEMENTED && words.contains("telepathy"), "{words}");
    assert_eq!(refusal(client.state(context(), &m::StateRequest::new()).await).0, Code::FAILED_PRECONDITION);
    let answer = client.hello(context(), &hello(1, &["containers", "terminal"])).await.unwrap();
    assert_eq!((answer.protocol, answer.boot_ns, answer.ready_ns), (1, 1, 2));
    assert!(!answer.kernel_release.is_empty() && answer.features.contains(&"seccomp".to_owned()));
    client.state(context(), &m::StateRequest::new()).await.unwrap();
}

async fn ids_and_states(world: Arc<World>) {
    world.idle("a").await;
    let again = world.create(&world.create_request("a", &spec(&["true"]), &m::Stdio::new())).await;
    assert_eq!(refusal(again).0, Code::ALREADY_EXISTS);
    let start = m::StartContainerRequest { container_id: "a".into(), ..Default::default() };
    let (code, words) = refusal(world.client.start_container(context(), &start).await);
    assert!(code == Code::FAILED_PRECONDITION && words.contains("running"), "{words}");
    let start = m::StartContainerRequest { container_id: "b".into(), ..Default::default() };
    assert_eq!(refusal(world.client.start_container(context(), &start).await).0, Code::NOT_FOUND);
    assert_eq!(refusal(world.signal("a", "none", libc::SIGTERM, false).await).0, Code::NOT_FOUND);
    assert_eq!(refusal(world.signal("a", "", 65, false).await).0, Code::INVALID_ARGUMENT);
    let resize = m::ResizePtyRequest { container_id: "a".into(), rows: 1, columns: 1, ..Default::default() };
    assert_eq!(refusal(world.client.resize_pty(context(), &resize).await).0, Code::FAILED_PRECONDITION);
}

async fn bad_requests_leave_nothing(world: Arc<World>) {
    let good = world.create_request("a", &spec(&["true"]), &m::Stdio::new());
    let mut cases = Vec::new();
    for (part, value, code, words) in [
        ("/process/capabilities/bounding", json!(["CAP_FLY"]), Code::INVALID_ARGUMENT, "CAP_FLY"),
        ("/linux/namespaces/0/type", json!("user"), Code::UNIMPLEMENTED, "user"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), Code::INVALID_ARGUMENT, "NOTIFY"),
        ("/mounts/0/type", json!("no-such-fs"), Code::INTERNAL, "no-such-fs"),
        ("/linux/resources/unified", json!({"no.file": "1"}), Code::INTERNAL, "no.file"),
        ("/linux/sysctl", json!({"no.such.parameter": "1"}), Code::INTERNAL, "no/such/parameter"),
    ] {
        let mut changed = spec(&["true"]);
        let (parent, name) = part.rsplit_once('/').unwrap();
        match changed.pointer_mut(part) {
            Some(place) => *place = value,
            None => changed.pointer_mut(parent).unwrap()[name] = value,
        }
        let mut request = good.clone();
        request.spec = serde_json::to_vec(&changed).unwrap();
        cases.push((request, code, words));
    }
    let mut request = good.clone();
    request.rootfs.as_mut().unwrap().device = "/no/such/device".into();
    cases.push((request, Code::INTERNAL, "/no/such/device"));
    let mut request = good.clone();
    let stdio = request.stdio.as_mut().unwrap();
    (stdio.terminal, stdio.stdout) = (true, true);
    cases.push((request, Code::INVALID_ARGUMENT, "terminal"));
    let mut request = good.clone();
    request.id = "../a".into();
    cases.push((request, Code::INVALID_ARGUMENT, "../a"));
    for (request, code, words) in cases {
        let (found, message) = refusal(world.create(&request).await);
        assert!(found == code && message.contains(words), "{words}: {found:?} {message}");
        let state = world.client.state(context(), &m::StateRequest::new()).await.unwrap();
        assert!(state.containers.is_empty(), "{words}");
    }
    assert_eq!(world.sh("a", "true").await.exit.exit_code, 0);
}

async fn signals(world: Arc<World>) {
    let streams = world.streams();
    let script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    world.create(&world.create_request("a", &spec(&["sh", "-c", script]), &streams.stdio)).await.unwrap();
    let mut stdout = streams.stdout();
    world.start("a").await;
    let stdout = crate::bench::beside(move || {
        let mut line = [0; 6];
        std::io::Read::read_exact(&mut stdout, &mut line).unwrap();
        assert_eq!(&line, b"ready\n");
        stdout
    })
    .await;
    world.signal("a", "", libc::SIGTERM, false).await.unwrap();
    assert_eq!(world.wait("a", "").await.exit_code, 5);
    assert_eq!(crate::bench::reading(stdout).await, "got\n");
    assert_eq!(refusal(world.signal("a", "", libc::SIGTERM, false).await).0, Code::FAILED_PRECONDITION);

    world.idle("b").await;
    world.signal("b", "", libc::SIGKILL, false).await.unwrap();
    let exit = world.wait("b", "").await;
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
    world.idle("c").await;
    world.signal("c", "", libc::SIGKILL, true).await.unwrap();
    assert_eq!(world.wait("c", "").await.exit_code, 137);
}

async fn two_steps(world: Arc<World>) {
    let streams = world.streams();
    world.create(&world.create_request("a", &spec(&["echo", "ran"]), &streams.stdio)).await.unwrap();
    let state = world.client.state(context(), &m::StateRequest::new()).await.unwrap();
    let container = &state.containers[0];
    assert_eq!((container.id.as_str(), container.status.unwrap()), ("a", Status::CREATED));
    assert!(container.pid > 0);
    let exec = world.exec_request("a", "e", &["true"], &m::Stdio::new());
    assert_eq!(refusal(world.exec(&exec).await).0, Code::FAILED_PRECONDITION);
    let stdout = crate::bench::reading(streams.stdout());
    let started = world.start("a").await;
    assert_eq!(started.pid, container.pid);
    world.wait("a", "").await;
    assert_eq!(stdout.await, "ran\n");

    // Killed at its gate.
    world.create(&world.create_request("b", &spec(&["true"]), &m::Stdio::new())).await.unwrap();
    world.signal("b", "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(world.wait("b", "").await.exit_code, 137);
    let start = m::StartContainerRequest { container_id: "b".into(), ..Default::default() };
    assert_eq!(refusal(world.client.start_container(context(), &start).await).0, Code::FAILED_PRECONDITION);
}

async fn users_and_groups(world: Arc<World>) {
    for (n, (user, more, expected)) in [
        ("app", vec![], "uid=1000(app) gid=1001(app) groups=29(audio)\n/home/app\n"),
        ("app:audio", vec![], "uid=1000(app) gid=29(audio)\n/home/app\n"),
        ("app", vec!["extra"], "uid=1000(app) gid=1001(app) groups=29(audio),77(extra)\n/home/app\n"),
        ("4242", vec![], "uid=4242 gid=0(root)\n/\n"),
        ("4242:4343", vec![], "uid=4242 gid=4343\n/\n"),
        ("", vec![], "uid=0(root) gid=0(root)\n/root\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let streams = world.streams();
        let script = "id; echo $HOME; echo again > /dev/stderr";
        let mut request =
            world.create_request(&format!("u{n}"), &spec(&["sh", "-c", script]), &streams.stdio);
        request.user = user.to_owned();
        request.additional_groups = more.into_iter().map(str::to_owned).collect();
        let outcome = world.run_request(&request, &streams).await;
        let sorted = |text: &str| {
            let (head, tail) = text.split_once("groups=").unwrap_or((text, ""));
            let (groups, rest) = tail.split_once('\n').unwrap_or((tail, ""));
            let mut groups: Vec<_> = groups.split(',').map(str::to_owned).collect();
            groups.sort();
            (head.to_owned(), groups, rest.to_owned())
        };
        let found =
            outcome.stdout.replace("uid=0(root) gid=0(root) groups=0(root)", "uid=0(root) gid=0(root)");
        assert_eq!(sorted(&found), sorted(expected), "{user}");
        assert_eq!(outcome.stderr, "again\n", "{user} cannot open its own stream again");
    }
    let mut request = world.create_request("x", &spec(&["true"]), &m::Stdio::new());
    request.user = "nobody-there".into();
    world.create(&request).await.unwrap();
    let started = world.start("x").await;
    let failure = started.failure.as_ref().unwrap();
    assert_eq!(failure.kind.unwrap(), Kind::OTHER);
    assert!(failure.message.contains("nobody-there"), "{failure:?}");
}

async fn shutdown_with_grace(world: Arc<World>) {
    let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
    world.idle_spec("polite", &spec(&["sh", "-c", script])).await;
    world.idle("deaf").await;
    let begun = Instant::now();
    world.guest.stop_containers(Duration::from_millis(400)).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_secs(60), "{took:?}");
    assert_eq!(world.wait("polite", "").await.exit_code, 0);
    assert_eq!(world.wait("deaf", "").await.exit_code, 137);
    let begun = Instant::now();
    world.guest.stop_containers(Duration::from_secs(600)).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "nothing is left to wait for");
}

async fn after_shutdown_nothing_begins(world: Arc<World>) {
    world.idle("a").await;
    world.create(&world.create_request("b", &spec(&["true"]), &m::Stdio::new())).await.unwrap();
    world.client.shutdown(context(), &m::ShutdownRequest::new()).await.unwrap();
    let create = world.create(&world.create_request("c", &spec(&["true"]), &m::Stdio::new())).await;
    let (code, words) = refusal(create);
    assert!(code == Code::FAILED_PRECONDITION && words.contains("shutting down"), "{words}");
    let exec = world.exec_request("a", "e", &["true"], &m::Stdio::new());
    assert_eq!(refusal(world.exec(&exec).await).0, Code::FAILED_PRECONDITION);
    let start = m::StartContainerRequest { container_id: "b".into(), ..Default::default() };
    assert_eq!(refusal(world.client.start_container(context(), &start).await).0, Code::FAILED_PRECONDITION);
}

async fn stats_and_state(world: Arc<World>) {
    world.idle("a").await;
    let of = |id: &str| m::StatsRequest { container_id: id.into(), ..Default::default() };
    let guest = world.client.stats(context(), &of("")).await.unwrap();
    assert!(guest.guest_memory_total_bytes > guest.guest_memory_available_bytes);
    assert!(guest.agent_resident_bytes > 0 && guest.pids_current > 0);
    let container = world.client.stats(context(), &of("a")).await.unwrap();
    assert!(container.cpu_usage_ns > 0, "{container:?}");
    assert_eq!(refusal(world.client.stats(context(), &of("b")).await).0, Code::NOT_FOUND);
    // The limits of a container that runs are held in a guest (e2e::keeper): many hosts have no
    // memory controller in version 2.
    let limit = |id: &str, bytes| {
        let memory_limit_bytes = bytes;
        m::UpdateContainerRequest { container_id: id.into(), memory_limit_bytes, ..Default::default() }
    };
    let update = async |id: &str, bytes| world.client.update_container(context(), &limit(id, bytes)).await;
    assert_eq!(refusal(update("b", 1 << 30).await).0, Code::NOT_FOUND);
    world.signal("a", "", libc::SIGKILL, false).await.unwrap();
    world.wait("a", "").await;
    assert_eq!(refusal(update("a", 1 << 30).await).0, Code::FAILED_PRECONDITION);
    let state = world.client.state(context(), &m::StateRequest::new()).await.unwrap();
    assert_eq!(state.containers[0].status.unwrap(), Status::STOPPED);
    assert_eq!(state.containers[0].exit.exit_code, 137);
    // The cgroup is gone, its last figures are not.
    assert!(!world.cgroup.join("a").exists());
    assert!(world.client.stats(context(), &of("a")).await.unwrap().cpu_usage_ns > 0);
}

async fn a_limit_that_takes_its_time_holds_up_nothing_else(world: Arc<World>) {
    world.idle("a").await;
    // Files in the place of the cgroup's, of which one is a pipe that nobody reads yet.
    let cgroup = world.cgroup.join("a");
    let path = cgroup.to_str().unwrap();
    nelly_agent::sys::mount("none", path, "tmpfs", 0, "").unwrap();
    std::fs::create_dir_all(cgroup.join("container/root")).unwrap();
    std::fs::write(cgroup.join("container/root/memory.max"), "").unwrap();
    let pipe = cgroup.join("memory.max");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!("until [ -e {path}/go ]; do sleep 0.02; done; cat {path}/memory.max >{path}/read");
    // The agent of the scenario reaps it.
    let reads = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let limit = m::UpdateContainerRequest {
        container_id: "a".into(),
        memory_limit_bytes: 64 << 20,
        ..Default::default()
    };
    let update = async { world.client.update_container(context(), &limit).await };
    let state = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let state = world.client.state(context(), &m::StateRequest::new()).await.unwrap();
        // Only now the limit can be written: who asked meanwhile was answered before that.
        std::fs::write(cgroup.join("go"), "").unwrap();
        state.containers.len()
    };
    let (updated, count) = tokio::join!(update, state);
    drop(reads);
    updated.unwrap();
    assert_eq!(count, 1);
    assert_eq!(std::fs::read_to_string(cgroup.join("container/root/memory.max")).unwrap(), "67108864");
    nelly_agent::sys::unmount(path).unwrap();
    world.signal("a", "", libc::SIGKILL, false).await.unwrap();
    world.wait("a", "").await;
}

async fn the_guests_stamps(world: Arc<World>) {
    let (stranger, _serving) = connect(&world.guest).await;
    let refused = stranger.timeline(context(), &m::TimelineRequest::new()).await;
    assert_eq!(refusal(refused).0, Code::FAILED_PRECONDITION);
    let told = world.client.timeline(context(), &m::TimelineRequest::new()).await.unwrap();
    // This guest was never booted: what was not stamped is not told.
    let agent: Vec<_> = told.agent.iter().map(|stamp| (stamp.name.as_str(), stamp.at)).collect();
    assert_eq!(agent, [("agent_main", 1)]);
    // The kernel's log of this machine, where it may be read.
    assert_eq!(told.kernel.is_empty(), told.counter == 0, "{told:?}");
    for stamp in &told.kernel {
        assert!(
            ["kernel_entry", "init"].contains(&stamp.name.as_str()) && stamp.at <= told.clock_ns,
            "{told:?}"
        );
    }
}

async fn a_container_dies_with_its_first_process(world: Arc<World>) {
    let outcome = world.sh("a", "sleep 1000 & sleep 1000 & echo started").await;
    assert_eq!((outcome.stdout.as_str(), outcome.exit.exit_code), ("started\n", 0));
    assert!(!world.cgroup.join("a").exists(), "its processes keep the cgroup");
}
