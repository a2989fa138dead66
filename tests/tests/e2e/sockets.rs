//! Two thousand vsock connections at once, each way; and those that a container must not have.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use nelly_protocol::messages as wire;
use nelly_protocol::ports::{AGENT_PORT, POWER_PORT, READY_PORT, STREAM_PORT, TOKEN_BYTES};
use nelly_protocol::service::AgentClient;
use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::Sandbox;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::spec::{ContainerSpec, ProcessSpec, Seccomp, oci};

use super::Home;
use super::machine::{container, out_of_process, process, root, sandbox};

const COUNT: u64 = 2000;

/// A root file system with the guest half of these tests.
fn image(home: &Home) -> String {
    let root = root(home, &["sh", "cat", "sleep", "touch"]);
    // A program that the agent's own would have to interpret.
    fs::write(root.join("bin/again"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(root.join("bin/again"), fs::Permissions::from_mode(0o755)).unwrap();
    format!("rootfs:{}", root.display())
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn start(sandbox: &Sandbox, mode: &str, port: u32) -> UnixStream {
    let script = format!("ulimit -n 4096; exec guest-vsock {mode} {port} {COUNT}");
    // The default profile refuses sockets to the host.
    let spec = ContainerSpec { seccomp: Seccomp::Unconfined, ..container(&["sh", "-c", &script]) };
    let streams = sandbox.run(mode, &spec, IMAGE_DEVICE, None).await.unwrap().unwrap();
    // What it says on standard error is worth more in a failure than a broken pipe.
    let mut stderr = streams.stderr.unwrap();
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
    streams.stdout.unwrap()
}

async fn end(sandbox: &Sandbox, mode: &str) -> u32 {
    sandbox.agent().wait(ProcessId { container: mode, exec: "" }).await.unwrap().exit_code
}

/// One machine, with a container for each way.
#[test]
fn two_thousand_connections_from_the_guest_and_to_it() {
    let home = Home::new();
    run(async {
        let sandbox = sandbox(&home, out_of_process(), Some(&image(&home))).await;
        from_the_guest(&sandbox).await;
        to_the_guest(&sandbox).await;
    });
}

async fn from_the_guest(sandbox: &Sandbox) {
    let listener = sandbox.machine().vsock().listen(7000).unwrap();
    let mut out = start(sandbox, "dial", 7000).await;
    let mut streams: Vec<UnixStream> = (0..COUNT).map(|_| listener.accept().unwrap()).collect();
    for stream in &mut streams {
        let mut number = [0; 8];
        stream.read_exact(&mut number).unwrap();
        stream.write_all(&(u64::from_le_bytes(number) + 1).to_le_bytes()).unwrap();
    }
    assert_eq!(end(sandbox, "dial").await, 0);
    let mut said = String::new();
    out.read_to_string(&mut said).unwrap();
    assert_eq!(said, format!("ok {COUNT}\n"));
}

async fn to_the_guest(sandbox: &Sandbox) {
    let mut out = BufReader::new(start(sandbox, "listen", 7001).await);
    let mut said = String::new();
    out.read_line(&mut said).unwrap();
    assert_eq!(said, "listening\n");
    let vsock = sandbox.machine().vsock();
    let mut streams: Vec<UnixStream> = (0..COUNT).map(|_| vsock.connect(7001).unwrap()).collect();
    for (stream, number) in streams.iter_mut().zip(0u64..) {
        stream.write_all(&number.to_le_bytes()).unwrap();
    }
    for (stream, number) in streams.iter_mut().zip(0u64..) {
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u64::from_le_bytes(answer), number + 1);
    }
    drop(streams);
    assert_eq!(end(sandbox, "listen").await, 0);
}

const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT \
    SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE \
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

/// Starts a container that has every capability and no filter; answers what it says. The library
/// makes none: this speaks to the agent.
async fn almighty(sandbox: &Sandbox, id: &str, script: &str) -> BufReader<UnixStream> {
    let vsock = sandbox.machine().vsock();
    let stream = vsock.connect(AGENT_PORT).unwrap();
    stream.set_nonblocking(true).unwrap();
    let client = AgentClient::new(ttrpc::r#async::Client::new(stream.try_into().unwrap()));
    let context = || ttrpc::context::with_timeout(60_000_000_000);
    let hello = wire::HelloRequest { protocol: 1, ..Default::default() };
    client.hello(context(), &hello).await.unwrap();

    let container = ContainerSpec { seccomp: Seccomp::Unconfined, ..container(&["sh", "-c", script]) };
    let mut spec = serde_json::to_value(oci::container(&container)).unwrap();
    let all: Vec<_> = CAPABILITIES.split_whitespace().map(|name| format!("CAP_{name}")).collect();
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = all.clone().into();
    }
    let rootfs = wire::Rootfs {
        device: IMAGE_DEVICE.into(),
        filesystem: "erofs".into(),
        upper_bytes: 16 << 20,
        ..Default::default()
    };
    let request = wire::CreateContainerRequest {
        id: id.into(),
        spec: serde_json::to_vec(&spec).unwrap(),
        rootfs: Some(rootfs).into(),
        stdio: Some(wire::Stdio { stdout: true, ..Default::default() }).into(),
        ..Default::default()
    };
    let answer = client.create_container(context(), &request).await.unwrap();
    let start = wire::StartContainerRequest { container_id: id.into(), ..Default::default() };
    let started = client.start_container(context(), &start).await.unwrap();
    assert!(started.failure.is_none(), "{started:?}");
    let mut stdout = vsock.connect(STREAM_PORT).unwrap();
    stdout.write_all(&answer.streams.stdout).unwrap();
    BufReader::new(stdout)
}

/// The next lines of an output.
async fn lines(mut from: BufReader<UnixStream>, count: usize) -> (BufReader<UnixStream>, Vec<String>) {
    let read = move || {
        let lines = from.by_ref().lines().take(count).map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(lines.len(), count, "it ended after {lines:?}");
        (from, lines)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// One process more in the container `c`, which answers what it is told: its streams are its own,
/// whoever else dials.
async fn echoes(sandbox: &Sandbox, name: &str) {
    let id = ProcessId { container: "c", exec: name };
    let cat = ProcessSpec { stdin: true, ..process(&["sh", "-c", "cat; echo done >&2"]) };
    let streams = sandbox.exec(id, &cat, None).await.unwrap().unwrap();
    let mut stdin = streams.stdin.unwrap();
    stdin.write_all(name.as_bytes()).unwrap();
    stdin.shutdown(std::net::Shutdown::Write).unwrap();
    let text = |stream: Option<UnixStream>| {
        let mut text = String::new();
        stream.unwrap().read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!((text(streams.stdout).as_str(), text(streams.stderr).as_str()), (name, "done\n"));
    assert_eq!(sandbox.agent().wait(id).await.unwrap().exit_code, 0);
}

/// One machine for all that such a container tries.
#[test]
fn a_container_with_every_right_takes_no_stream_and_ends_no_machine() {
    let home = Home::new();
    run(async {
        let sandbox = sandbox(&home, out_of_process(), Some(&image(&home))).await;
        let _streams =
            sandbox.run("c", &container(&["sleep", "100000"]), IMAGE_DEVICE, None).await.unwrap().unwrap();
        io_uring_gets_nothing_more(&sandbox).await;
        let accepting = floods_of_dials_disturb_nobody(&sandbox).await;

        // The host itself gets no stream without a token.
        let mut wrong = sandbox.machine().vsock().connect(STREAM_PORT).unwrap();
        wrong.write_all(&[b'o'; TOKEN_BYTES]).unwrap();
        assert_eq!(wrong.read(&mut [0]).unwrap(), 0);

        // Nobody becomes the agent, which would dial the monitor as its first act.
        for program in ["/proc/self/exe", "/bin/again"] {
            let id = ProcessId { container: "c", exec: "again" };
            let failure = sandbox.exec(id, &process(&[program]), None).await.unwrap().unwrap_err();
            assert_eq!(failure.code, 126, "{failure}");
            assert!(failure.message.contains("Permission denied"), "{failure}");
        }
        // The connection that was the first is still the one.
        sandbox.agent().shutdown(0).await.unwrap();
        let ended = sandbox.machine().wait();
        assert!(matches!(ended.reason, nelly_vmm::machine::EndReason::PowerOff), "{:?}", ended.reason);
        assert!(accepting.join().unwrap() > 1000, "the host did not take what the guest holds");
    });
}

/// Dials to the ports of the agent, and connections to the host that stay; the thread that accepts
/// them ends with the machine, and knows how many.
async fn floods_of_dials_disturb_nobody(sandbox: &Sandbox) -> JoinHandle<usize> {
    // It takes whoever comes, and says nothing either.
    let listener = sandbox.machine().vsock().listen(7000).unwrap();
    let accepting = std::thread::spawn(move || {
        let streams = std::iter::from_fn(|| listener.accept().ok());
        streams.collect::<Vec<_>>().len()
    });

    // A thousand dials to each port of the agent by each address, and on until they are told to
    // stop, while others use them; then ten thousand that stay and are silent.
    let ports = [AGENT_PORT, READY_PORT, POWER_PORT, STREAM_PORT];
    let attacks = ports.map(|port| format!("guest-vsock attack {port} 1000 /tmp/stop & "));
    let script = format!("ulimit -n 20000; {}wait; exec guest-vsock hold 7000 10000", attacks.concat());
    let evil = almighty(sandbox, "evil", &script).await;
    let (evil, said) = lines(evil, ports.len()).await;
    assert!(said.iter().all(|line| line.ends_with(": begun")), "{said:?}");
    for number in 0..8 {
        echoes(sandbox, &format!("beside-{number}")).await;
    }
    // None has ended: each goes on until now.
    let stop = ProcessId { container: "evil", exec: "stop" };
    let _streams = sandbox.exec(stop, &process(&["touch", "/tmp/stop"]), None).await.unwrap().unwrap();
    let (evil, mut said) = lines(evil, 2 * ports.len()).await;
    said.retain(|line| line.starts_with("port"));
    said.sort();
    assert_eq!(said, ports.map(|port| format!("port {port}: heard 0 times")));
    let (evil, said) = lines(evil, 1).await;
    let held: u64 = said[0].strip_prefix("held ").expect(&said[0]).parse().unwrap();
    assert!(held > 1000, "the guest holds no more than {held} connections to the host");
    for number in 0..4 {
        echoes(sandbox, &format!("after-{number}")).await;
    }
    drop(evil);
    accepting
}

/// io_uring makes sockets and connections without the system calls that a filter could see, and
/// gets no further by them.
async fn io_uring_gets_nothing_more(sandbox: &Sandbox) {
    // Under the default profile there is none.
    let id = ProcessId { container: "c", exec: "ring" };
    let dial = process(&["guest-vsock", "uring-dial", "7000", "1"]);
    let streams = sandbox.exec(id, &dial, None).await.unwrap().unwrap();
    assert_eq!(sandbox.agent().wait(id).await.unwrap().exit_code, 1);
    let mut said = String::new();
    streams.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("Operation not permitted"), "{said}");

    // Without a filter it works: who listens on the host is reached.
    let listener = sandbox.machine().vsock().listen(7000).unwrap();
    let ports = [AGENT_PORT, READY_PORT, POWER_PORT, STREAM_PORT];
    let attacks = ports.map(|port| format!("guest-vsock uring-attack {port} 100 /bin/sh; "));
    // A dial gives up after two seconds (the kernel's limit), which a busy machine may need.
    let dial = "until guest-vsock uring-dial 7000 1; do echo again >&2; done";
    let script = format!("{dial}; {} sleep 100000", attacks.concat());
    let evil = almighty(sandbox, "ring", &script).await;
    // What this leaves waiting ends with the machine.
    let accepted = tokio::task::spawn_blocking(move || {
        let mut number = [0; 8];
        loop {
            let mut stream = listener.accept().unwrap();
            if stream.read_exact(&mut number).is_ok() {
                return (stream, u64::from_le_bytes(number));
            }
        }
    });
    let limit = nelly_tests::scaled(Duration::from_secs(60));
    let (mut stream, number) = tokio::time::timeout(limit, accepted).await.expect("nobody dialled").unwrap();
    stream.write_all(&(number + 1).to_le_bytes()).unwrap();
    let (evil, said) = lines(evil, 1 + 3 * ports.len()).await;
    let mut expected = vec!["ok 1".to_owned()];
    for port in ports {
        let begun = format!("port {port}: begun");
        expected.extend([begun, format!("port {port}: heard 0 times"), "ok 100".to_owned()]);
    }
    assert_eq!(said, expected);
    echoes(sandbox, "after").await;
    drop(evil);
}
