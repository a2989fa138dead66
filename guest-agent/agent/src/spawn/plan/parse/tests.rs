use super::*;

/// What `runc spec` writes, in the parts that matter.
const SPEC: &str = r#"{"ociVersion":"1.0.2","process":{"terminal":false,"user":{"uid":0,"gid":0},"args":["sh"],
  "env":["PATH=/bin"],"cwd":"/","capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],
  "permitted":["CAP_KILL"],"ambient":[]},"rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":512}],
  "noNewPrivileges":true},"root":{"path":"rootfs","readonly":true},"hostname":"box",
  "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
    {"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["nosuid","ro"]},
    {"destination":"/data","source":"/srv","options":["rbind","ro"]}],
  "linux":{"resources":{"devices":[{"allow":false,"access":"rwm"}],"pids":{"limit":10}},
    "namespaces":[{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"cgroup"}],
    "maskedPaths":["/proc/kcore"],"readonlyPaths":["/proc/sys"],"sysctl":{"net.ipv4.ip_forward":"1"}}}"#;

fn rootfs() -> Rootfs {
    Rootfs { device: "/dev/vda".into(), filesystem: "erofs".into(), ..Rootfs::default() }
}

fn request(spec: &[u8]) -> CreateContainerRequest {
    CreateContainerRequest {
        id: "c1".into(),
        spec: spec.to_vec(),
        rootfs: Some(rootfs()).into(),
        ..CreateContainerRequest::default()
    }
}

fn plan(spec: &str) -> Result<ContainerRequest, PlanError> {
    container(&request(spec.as_bytes()))
}

#[test]
fn lines_of_hosts_are_an_address_and_a_name() {
    let with = |line: &str| {
        container(&CreateContainerRequest { hosts: vec![line.to_owned()], ..request(SPEC.as_bytes()) })
    };
    for line in ["10.0.0.2 db", "::1 six.example"] {
        let hosts = with(line).expect(line).stage.container.expect("a container").hosts;
        assert_eq!(hosts, [line.replace(' ', "\t")]);
    }
    for line in ["", "db", "10.0.0.2", "10.0.0.2 ", "10.0.0.2 a b", "x y", "10.0.0.2 a\nb", "10.0.0.2 #"] {
        assert!(with(line).is_err(), "{line:?}");
    }
}

#[test]
fn an_ordinary_spec() {
    let request = plan(SPEC).expect("a good spec");
    let container = request.stage.container.expect("a container");
    assert_eq!(
        container.namespaces,
        libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
    );
    assert!(container.rootfs.mount_read_only && !container.rootfs.read_only);
    assert_eq!(container.mounts[1].kind, "cgroup2");
    assert_eq!(container.mounts[2].kind, "bind");
    assert_eq!(container.hostname.as_deref(), Some("box"));
    assert_eq!(request.stage.process.capabilities.bounding, 1 << 5);
    assert_eq!(request.stage.process.rlimits, vec![(libc::RLIMIT_NOFILE, 512, 1024)]);
    assert_eq!(request.surroundings.cgroup, "c1");
    assert_eq!(request.surroundings.settings[0].file, "pids.max");
}

#[test]
fn what_cannot_be_enforced_is_named() {
    for (from, to, name) in [
        (r#""cwd":"/""#, r#""cwd":"/","apparmorProfile":"docker-default""#, "process.apparmorProfile"),
        (r#""cwd":"/""#, r#""cwd":"/","execCPUAffinity":{}"#, "process.execCPUAffinity"),
        (r#""cwd":"/""#, r#""cwd":"/","scheduler":{"policy":"SCHED_FIFO"}"#, "process.scheduler"),
        (r#""cwd":"/""#, r#""cwd":"rel""#, "process.cwd"),
        (r#""CAP_KILL"],"effective""#, r#""CAP_FLY"],"effective""#, "CAP_FLY"),
        (r#""permitted":["CAP_KILL"]"#, r#""permitted":[]"#, "process.capabilities.effective"),
        (r#""ambient":[]"#, r#""ambient":["CAP_KILL"]"#, "process.capabilities.ambient"),
        (r#""soft":512"#, r#""soft":5000"#, "RLIMIT_NOFILE"),
        (r#"{"type":"uts"}"#, r#"{"type":"user"}"#, "user"),
        (r#"{"type":"uts"}"#, r#"{"type":"time"}"#, "time"),
        (r#"{"type":"uts"},"#, "", "hostname"),
        (r#"{"type":"mount"},"#, "", "mount namespace"),
        (r#"{"type":"pid"},"#, "", "pid namespace"),
        (r#""rbind","ro""#, r#""rbind","rro""#, "rro"),
        (r#""source":"/srv""#, r#""source":"srv""#, "mounts.source"),
        (r#""args":["sh"]"#, r#""args":[]"#, "process.args"),
        (r#""args":["sh"]"#, r#""args":["s\u0000h"]"#, "process.args"),
        (r#""pids":{"limit":10}"#, r#""memory":{"swappiness":10}"#, "memory.swappiness"),
        (r#""access":"rwm""#, r#""access":"rwx""#, "rwx"),
        (r#""sysctl":{"#, r#""personality":{"domain":"LINUX32"},"sysctl":{"#, "linux.personality"),
        (
            r#""sysctl":{"#,
            r#""uidMappings":[{"hostID":1,"containerID":0,"size":1}],"sysctl":{"#,
            "linux.uidMappings",
        ),
        (r#""sysctl":{"#, r#""seccomp":{"defaultAction":"SCMP_ACT_NOTIFY"},"sysctl":{"#, "SCMP_ACT_NOTIFY"),
        (r#""sysctl":{"#, r#""cgroupsPath":"/a/../b","sysctl":{"#, "linux.cgroupsPath"),
        ("net.ipv4.ip_forward", "net..ip", "linux.sysctl"),
        (r#""hostname":"box""#, r#""hooks":{"prestart":[{"path":"/x"}]},"hostname":"box""#, "hooks"),
        (r#""ociVersion""#, r#""process":{"#, "spec"),
    ] {
        let changed = SPEC.replacen(from, to, 1);
        assert_ne!(changed, SPEC, "{from} is not in the spec");
        let error = plan(&changed).expect_err(to).to_string();
        assert!(error.contains(name), "{to}: {error:?} does not name {name:?}");
    }
}

#[test]
fn ids_and_root_file_systems() {
    for id in ["a", "A9_.-", &"x".repeat(128)] {
        assert!(check_id("id", id).is_ok(), "{id}");
    }
    for id in ["", ".a", "a/b", "a b", "ä", &"x".repeat(129)] {
        assert!(check_id("id", id).is_err(), "{id}");
    }
    for (device, filesystem) in [("", "erofs"), ("vda", "erofs"), ("/dev/vda", "ntfs"), ("/dev/vda", "")] {
        let rootfs = Rootfs { device: device.into(), filesystem: filesystem.into(), ..Rootfs::default() };
        let request = CreateContainerRequest { rootfs: Some(rootfs).into(), ..request(SPEC.as_bytes()) };
        assert!(container(&request).is_err());
    }
}

#[test]
fn an_exec_inherits_the_filter_and_its_terminal() {
    let stdio = Stdio { terminal: true, rows: 24, columns: 80, ..Stdio::default() };
    let filter = SeccompFilter { program: Vec::new(), flags: 0 };
    let (plan, score) = exec(
        br#"{"args":["id"],"oomScoreAdj":5}"#,
        "app",
        &["audio".to_owned()],
        &stdio,
        Some(filter.clone()),
    )
    .expect("a good process");
    assert_eq!(plan.process.terminal, Some((24, 80)));
    assert_eq!(plan.process.seccomp, Some(filter));
    assert_eq!(plan.process.cwd, "/");
    assert_eq!(score, Some(5));
    assert!(exec(br#"{"args":["id"],"oomScoreAdj":5000}"#, "", &[], &stdio, None).is_err());
    assert!(exec(b"[", "", &[], &stdio, None).is_err());
    let wide = Stdio { columns: 70_000, ..stdio };
    let error = exec(br#"{"args":["id"]}"#, "", &[], &wide, None).expect_err("no terminal is so wide");
    assert!(error.to_string().contains("stdio.columns is \"70000\""), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_spec_makes_it_panic(at in 0..SPEC.len(), cut in 0..40usize, put in "[ -~]{0,12}") {
        let mut bytes = SPEC.as_bytes().to_vec();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, put.bytes());
        // Whatever it says of the spec, it says it.
        let _ = container(&request(&bytes));
        let _ = exec(&bytes, "", &[], &Stdio::default(), None);
    }
}
