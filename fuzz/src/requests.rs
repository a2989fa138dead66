//! Requests of a host to the guest's agent: messages by protobuf, and in them the OCI runtime
//! specification as JSON. (`agent` is the other direction.)

use nelly_agent::network::host_line;
use nelly_agent::spawn::plan::{self, ContainerRequest};
use nelly_agent::spawn::users;
use nelly_protocol::Message as _;
use nelly_protocol::archive::ArchiveReader;
use nelly_protocol::inspect;
use nelly_protocol::messages::{CreateContainerRequest, ExecRequest, HelloRequest, Rootfs, Stdio};

use super::{spelt, text};

/// Words of a specification.
const WORDS: &[&str] = &[
    "\"process\":",
    "\"root\":",
    "\"mounts\":",
    "\"linux\":",
    "\"args\":",
    "\"cwd\":",
    "\"env\":",
    "\"user\":",
    "\"uid\":",
    "\"gid\":",
    "\"additionalGids\":",
    "\"capabilities\":",
    "\"bounding\":",
    "\"effective\":",
    "\"permitted\":",
    "\"inheritable\":",
    "\"ambient\":",
    "\"CAP_KILL\"",
    "\"CAP_SYS_ADMIN\"",
    "\"rlimits\":",
    "\"type\":",
    "\"RLIMIT_NOFILE\"",
    "\"hard\":",
    "\"soft\":",
    "\"noNewPrivileges\":",
    "\"oomScoreAdj\":",
    "\"hostname\":",
    "\"destination\":",
    "\"source\":",
    "\"options\":",
    "\"namespaces\":",
    "\"pid\"",
    "\"network\"",
    "\"mount\"",
    "\"ipc\"",
    "\"uts\"",
    "\"cgroup\"",
    "\"user\"",
    "\"time\"",
    "\"path\":",
    "\"resources\":",
    "\"devices\":",
    "\"allow\":",
    "\"access\":",
    "\"major\":",
    "\"minor\":",
    "\"rwm\"",
    "\"memory\":",
    "\"limit\":",
    "\"swap\":",
    "\"cpu\":",
    "\"shares\":",
    "\"quota\":",
    "\"period\":",
    "\"cpus\":",
    "\"pids\":",
    "\"unified\":",
    "\"sysctl\":",
    "\"seccomp\":",
    "\"defaultAction\":",
    "\"SCMP_ACT_ERRNO\"",
    "\"SCMP_ACT_ALLOW\"",
    "\"syscalls\":",
    "\"names\":",
    "\"action\":",
    "\"index\":",
    "\"value\":",
    "\"valueTwo\":",
    "\"op\":",
    "\"SCMP_CMP_MASKED_EQ\"",
    "\"SCMP_CMP_GE\"",
    "\"maskedPaths\":",
    "\"readonlyPaths\":",
    "\"rootfsPropagation\":",
    "\"shared\"",
    "\"cgroupsPath\":",
    "\"fileMode\":",
    "\"terminal\":",
    "\"consoleSize\":",
    "\"/\"",
    "\"sh\"",
    "\"proc\"",
    "\"bind\"",
    "\"rbind\"",
    "\"ro\"",
    "\"tmpfs\"",
    "\"size=1m\"",
    "\"read\"",
    "\"clone\"",
    "\"a\"",
    "true",
    "false",
    "null",
    "[",
    "]",
    "{",
    "}",
    ",",
    "18446744073709551615",
    "-1",
    "4294967296",
    "2147483648",
    "\"architectures\":",
    "\"SCMP_ARCH_X86_64\"",
    "\"flags\":",
    "\"errnoRet\":",
    "\"uidMappings\":",
    "\"intelRdt\":",
    "\"hooks\":",
    "\"domainname\":",
    "\"readonly\":",
    "\"weight\":",
    "\"hugepageLimits\":",
    "\"ociVersion\":\"1.0.2\"",
    "\"/dev/fuse\"",
    "\"c\"",
    "\"..\"",
    "\\u0000",
];

/// The first byte chooses what the rest is.
///
/// # Panics
/// When a plan breaks the rules that whoever carries it out relies on.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether it was accepted.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let Some((choice, rest)) = data.split_first() else { return false };
    match choice % 8 {
        0 => CreateContainerRequest::parse_from_bytes(rest)
            .is_ok_and(|request| plan::container(&request).is_ok_and(|planned| sound(&planned))),
        1..=3 => {
            let rootfs =
                Rootfs { device: "/dev/vda".into(), filesystem: "erofs".into(), ..Rootfs::default() };
            let request = CreateContainerRequest {
                id: "fuzz".into(),
                spec: text(rest, WORDS).into_bytes(),
                rootfs: Some(rootfs).into(),
                ..CreateContainerRequest::default()
            };
            plan::container(&request).is_ok_and(|planned| sound(&planned))
        }
        4 => {
            let process = text(rest, WORDS);
            plan::exec(process.as_bytes(), "", &[], &Stdio::default(), None).is_ok()
        }
        5 => ExecRequest::parse_from_bytes(rest).is_ok_and(|request| {
            let stdio = request.stdio.into_option().unwrap_or_default();
            plan::exec(&request.process, &request.user, &request.additional_groups, &stdio, None).is_ok()
        }),
        6 => HelloRequest::parse_from_bytes(rest).is_ok_and(|hello| {
            hello.network.hosts.iter().filter_map(|line| host_line(line)).count() > 0 || hello.protocol > 0
        }),
        _ => files(rest),
    }
}

/// What the set-up of a container relies on.
fn sound(planned: &ContainerRequest) -> bool {
    let container = planned.stage.container.as_ref().expect("a container");
    let good = |path: &str| path.starts_with('/') && !path.contains('\0');
    assert!(container.mounts.iter().all(|mount| good(&mount.destination)), "{:?}", container.mounts);
    assert!(container.masked.iter().chain(&container.readonly).all(|path| good(path)));
    assert!(good(&planned.stage.process.cwd) && !planned.stage.process.args.is_empty());
    assert!(
        !planned.surroundings.cgroup.split('/').any(|name| name == ".."),
        "{}",
        planned.surroundings.cgroup
    );
    for (name, value) in &container.sysctls {
        assert!(!name.contains("..") && !name.contains('\0') && !value.contains('\0'), "{name:?}");
    }
    true
}

/// The files of a container, which its image wrote, and headers of what a copy sends.
fn files(rest: &[u8]) -> bool {
    let text = String::from_utf8_lossy(rest);
    let (user, files) = text.split_once('\n').unwrap_or_default();
    let (passwd, group) = files.split_once("\n\n").unwrap_or((files, ""));
    let found = users::resolve(user, passwd, group).is_ok() | users::group_id(user, group).is_ok();
    let _ = users::home_of(0, passwd);
    let mut reader = ArchiveReader::new(rest);
    let copied = std::io::copy(&mut reader, &mut std::io::sink()).is_ok();
    let framed = rest.first_chunk().is_some_and(|header| {
        inspect::parse(*header).is_ok_and(|(kind, length)| {
            assert_eq!(inspect::header(kind, length), *header);
            true
        })
    });
    found | copied | framed
}

/// A specification, a process, messages and files.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let process = r#"{"args":["sh"],"cwd":"/","env":["a"],"user":{"uid":0,"gid":0},"capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":["CAP_KILL"]},"rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":512}],"noNewPrivileges":true}"#;
    let spec = format!(
        r#"{{"ociVersion":"1.0.2","process":{process},"root":{{"path":"a","readonly":true}},"hostname":"a","mounts":[{{"destination":"/","type":"proc","source":"proc","options":["ro"]}}],"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"uts"}},{{"type":"mount"}}],"resources":{{"devices":[{{"allow":false,"access":"rwm"}}],"memory":{{"limit":4294967296}},"pids":{{"limit":9}}}},"seccomp":{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read","clone"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":9,"op":"SCMP_CMP_GE"}}]}}]}},"maskedPaths":["/"],"sysctl":{{"net.ipv4.ip_forward":"1"}}}}}}"#
    );
    let rootfs = Rootfs { device: "/dev/vda".into(), filesystem: "erofs".into(), ..Rootfs::default() };
    let create = CreateContainerRequest {
        id: "a".into(),
        spec: spec.clone().into_bytes(),
        rootfs: Some(rootfs).into(),
        hosts: vec!["10.0.0.2 db".into()],
        ..CreateContainerRequest::default()
    };
    let exec = ExecRequest { process: process.into(), exec_id: "b".into(), ..ExecRequest::default() };
    let hello = HelloRequest { protocol: 1, build: "a".into(), ..HelloRequest::default() };
    let bytes = |choice: u8, rest: Vec<u8>| [&[choice], rest.as_slice()].concat();
    vec![
        bytes(0, create.write_to_bytes().expect("a message")),
        bytes(1, spelt(&spec, WORDS)),
        bytes(4, spelt(process, WORDS)),
        bytes(5, exec.write_to_bytes().expect("a message")),
        bytes(6, hello.write_to_bytes().expect("a message")),
        bytes(7, b"user:1\nroot:x:0:0::/root:\nuser:x:7:8::/u:/bin/sh\n\ngroup:x:9:user\n".to_vec()),
    ]
}
