//! The agent as a service of a guest with an init of its own: this test's machine is the guest, and
//! a shell stands for its init.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nelly_agent::cgroup::Cgroup;
use nelly_protocol::{MACHINE, messages as m};
use ttrpc::Code;

use crate::bench::{World, context, dial, reading, refusal, remove_below, spec, writing};
use crate::copies::{answer_of, file, into, request};
use crate::looks::told;

crate::scenarios!(
    an_exec_is_in_the_guest_itself,
    files_processes_and_sockets_are_those_of_the_guest,
    nothing_of_the_guest_is_made_or_changed,
    the_init_is_asked_for_the_end,
);

/// A guest that is served as a whole. Its init writes down which end it is asked for.
struct Machine {
    world: Arc<World>,
    place: tempfile::TempDir,
    init: std::process::Child,
}

impl Machine {
    fn new(world: &Arc<World>) -> Self {
        let place = tempfile::tempdir().unwrap();
        let script = "for wish in 38 39; do trap \"echo $wish >>asked\" $wish; done; echo >ready; while :; do sleep 0.05; done";
        let mut init = Command::new("sh");
        init.args(["-c", script]).current_dir(place.path()).stdin(Stdio::null());
        let init = init.spawn().unwrap();
        let cgroup = Cgroup::create(&world.cgroup, "execs").unwrap();
        world.guest.serve_machine(i32::try_from(init.id()).unwrap(), cgroup).unwrap();
        Self { world: Arc::clone(world), place, init }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.place.path().join(name)
    }

    /// Waits for a file of the init's to have this text.
    async fn has(&self, name: &str, text: &str) {
        while fs::read_to_string(self.at(name)).unwrap_or_default() != text {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn sh(&self, exec: &str, script: &str) -> String {
        let done = self.world.exec_sh(MACHINE, exec, script).await;
        assert_eq!(done.exit.exit_code, 0, "{done:?}");
        done.stdout
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended = self.init.kill();
        remove_below(&self.world.cgroup);
    }
}

/// The namespaces of this process, or of what runs `of`.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

async fn an_exec_is_in_the_guest_itself(world: Arc<World>) {
    let machine = Machine::new(&world);
    let script = "for kind in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$kind; done; id -u; umask; \
        grep CapEff /proc/self/status; grep CapBnd /proc/self/status; grep NoNewPrivs /proc/self/status; pwd";
    let said = machine.sh("e", script).await;
    let own = |kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let permitted = line("CapPrm:").replace("CapPrm", "CapEff");
    let mut expected = NAMESPACES.map(own).to_vec();
    expected.extend(["0".into(), "0022".into(), permitted.clone(), permitted.replace("CapEff", "CapBnd")]);
    expected.extend(["NoNewPrivs:\t0".into(), "/".into()]);
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert_eq!(world.exec_sh(MACHINE, "code", "exit 9").await.exit.exit_code, 9);
    // A user has none of the agent's rights.
    let streams = world.streams();
    let as_user = ["sh", "-c", "id -un; grep -E 'Cap(Eff|Prm|Amb)' /proc/self/status | cut -f2 | sort -u"];
    let mut request = world.exec_request(MACHINE, "user", &as_user, &streams.stdio);
    request.user = "nobody".into();
    world.exec(&request).await.unwrap();
    assert_eq!(reading(streams.stdout()).await, "nobody\n0000000000000000\n");
    // A terminal of the guest's own.
    let streams = world.terminal(24, 80);
    let words = ["sh", "-c", "test -t 0 && stty size && tty"];
    let started = world.exec(&world.exec_request(MACHINE, "tty", &words, &streams.stdio)).await.unwrap();
    assert!(started.failure.is_none(), "{started:?}");
    let shown = reading(streams.stdin()).await;
    assert!(shown.starts_with("24 80\r\n/dev/pts/"), "{shown}");
}

async fn files_processes_and_sockets_are_those_of_the_guest(world: Arc<World>) {
    let machine = Machine::new(&world);
    fs::write(machine.at("page"), "hello").unwrap();
    let path = machine.at("page").to_str().unwrap().to_owned();
    let out = m::CopyOutRequest { container_id: MACHINE.into(), path: path.into(), ..Default::default() };
    let (archive, result) = answer_of(&world, out).await;
    assert_eq!(result.code, 0, "{result:?}");
    assert!(archive.windows(5).any(|bytes| bytes == b"hello"));
    let into_it = m::CopyInRequest {
        container_id: MACHINE.into(),
        ..request(machine.at("new").to_str().unwrap(), "x")
    };
    let result = into(&world, &into_it, &file("x", 0o640, b"text")).await;
    assert_eq!(result.code, 0, "{result:?}");
    let made = fs::metadata(machine.at("new")).unwrap();
    assert_eq!((made.mode() & 0o777, made.uid(), made.len()), (0o640, 0, 4));
    // All of the guest, the agent itself too.
    let asked = m::ProcessesRequest { container_id: MACHINE.into(), ..Default::default() };
    let (all, _, result) = told::<m::Process>(&world, world.client.processes(context(), &asked).await).await;
    assert_eq!(result.code, 0, "{result:?}");
    for there in [std::process::id(), machine.init.id()] {
        assert!(all.iter().any(|process| process.pid == there), "{there}: {all:?}");
    }
    let asked = m::StatsRequest { container_id: MACHINE.into(), ..Default::default() };
    let stats = world.client.stats(context(), &asked).await.unwrap();
    assert_eq!(stats.memory_limit_bytes, stats.guest_memory_total_bytes);
    assert!(stats.memory_current_bytes > 0 && stats.pids_current > 1, "{stats:?}");
    let listener = UnixListener::bind(machine.at("s")).unwrap();
    let address =
        m::ContainerAddress { path: machine.at("s").to_str().unwrap().into(), ..Default::default() };
    let connect = m::ConnectRequest {
        container_id: MACHINE.into(),
        address: Some(address).into(),
        ..Default::default()
    };
    let token = world.client.connect(context(), &connect).await.unwrap().token;
    let host = writing(dial(&world.promises, &token), b"to the guest".to_vec(), true).await;
    // In the bench's own time, which ends: a wait that blocks would stop its clock.
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let mut server = server.into_std().unwrap();
    server.set_nonblocking(false).unwrap();
    let echo = crate::bench::beside(move || {
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut server, &mut got).unwrap();
        server.write_all(&got).unwrap();
    });
    assert_eq!(reading(host).await, "to the guest");
    echo.await;
}

async fn nothing_of_the_guest_is_made_or_changed(world: Arc<World>) {
    let machine = Machine::new(&world);
    let client = &world.client;
    let create = world.create(&world.create_request("a", &spec(&["true"]), &m::Stdio::new())).await;
    let changes = m::ChangesRequest { container_id: MACHINE.into(), ..Default::default() };
    let update = m::UpdateContainerRequest { container_id: MACHINE.into(), ..Default::default() };
    let hello = m::HelloRequest {
        protocol: 1,
        network: Some(m::Network::new()).into(),
        ..m::HelloRequest::default()
    };
    let wait = m::WaitRequest { container_id: MACHINE.into(), ..Default::default() };
    let refused = [
        refusal(create),
        refusal(client.changes(context(), &changes).await),
        refusal(client.update_container(context(), &update).await),
        refusal(client.hello(context(), &hello).await),
        refusal(client.probe_devices(context(), &m::ProbeDevicesRequest::new()).await),
        refusal(client.release_device(context(), &m::ReleaseDeviceRequest::new()).await),
        refusal(client.touch(context(), &m::TouchRequest::new()).await),
        refusal(client.wait(context(), &wait).await),
        refusal(world.signal(MACHINE, "", libc::SIGKILL, false).await),
        refusal(world.signal(MACHINE, "", libc::SIGKILL, true).await),
    ];
    for (code, text) in refused {
        assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
        assert!(text.starts_with("the agent of this machine is one of its services, and "), "{text}");
    }
    assert_eq!(machine.sh("e", "echo on").await, "on\n");
    assert!(fs::metadata(format!("/proc/{}", machine.init.id())).is_ok(), "the init lives");
}

async fn the_init_is_asked_for_the_end(world: Arc<World>) {
    let machine = Machine::new(&world);
    machine.has("ready", "\n").await;
    for (reboot, told) in [(false, "38\n"), (true, "38\n39\n")] {
        let end = m::ShutdownRequest { reboot, ..Default::default() };
        world.client.shutdown(context(), &end).await.unwrap();
        machine.has("asked", told).await;
    }
    // It is the init's to end it, and until then all goes on.
    assert_eq!(machine.sh("e", "echo on").await, "on\n");
}
