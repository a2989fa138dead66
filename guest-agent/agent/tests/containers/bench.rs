//! What every scenario stands on: an image, a cgroup, a guest, a client.

use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nelly_agent::cgroup::delegate_controllers;
use nelly_agent::mounts;
use nelly_agent::service::{Config, GuestState, serve};
use nelly_agent::spawn::launch::Launcher;
use nelly_agent::stdio::{Patience, Promises, Stream};
use nelly_agent::sys;
use nelly_agent::timeline::Marks;
use nelly_protocol::messages as m;
use nelly_protocol::service::AgentClient;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// One test.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub name: &'static str,
    pub run: fn(Arc<World>) -> Running,
    /// How long the agent waits for streams to be dialled.
    pub claim: Duration,
}

/// `scenarios!(a, b)`: a table of async functions. `scenarios!(a, b; c)`: in `c` the agent does not
/// wait for streams.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)? $(; $impatient:ident)?) => {
        pub(crate) const ALL: &[$crate::bench::Scenario] = &[
            $($crate::scenarios!(@one $name, $crate::bench::LIMIT),)*
            $($crate::scenarios!(@one $impatient, std::time::Duration::from_millis(1)),)?
        ];
    };
    (@one $name:ident, $claim:expr) => {
        $crate::bench::Scenario {
            name: concat!(module_path!(), "::", stringify!($name)),
            run: |world| Box::pin($name(world)),
            claim: $claim,
        }
    };
}

/// Longest time for one scenario: a hang is a failure, a busy machine is none.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct Bench {
    directory: tempfile::TempDir,
    cgroup: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// What a scenario has.
pub(crate) struct World {
    pub guest: Arc<GuestState>,
    pub client: AgentClient,
    pub image: String,
    pub cgroup: PathBuf,
    pub promises: Arc<Promises>,
    /// The streams made last, until an answer has their tokens.
    asked: Mutex<Option<Ends>>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        sys::set_propagation("/", libc::MS_PRIVATE | libc::MS_REC).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["cgroup", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        make_image(&at("root"), &at("image"));
        let mount = at("cgroup");
        sys::mount("cgroup2", mount.to_str().unwrap(), "cgroup2", 0, mounts::CGROUP_OPTIONS)
            .expect("mounting cgroup2");
        let cgroup = mount.join(format!("nelly-test-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        for cgroup in [&mount, &cgroup] {
            delegate_controllers(cgroup).expect("cgroups without processes of their own");
        }
        // A controller that no container has by itself; a machine may lack it.
        let _ = fs::write(mount.join("cgroup.subtree_control"), "+hugetlb");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { directory, cgroup, runtime }
    }

    /// Runs one scenario in a fresh guest; tells whether it passed.
    pub(crate) fn run(&self, scenario: &Scenario) -> bool {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.runtime.block_on(async {
                let (world, _serving, _reaping) = self.world(scenario.claim).await;
                let run = tokio::time::timeout(LIMIT, (scenario.run)(world.clone()));
                run.await.expect("the scenario takes too long");
                world.guest.stop_containers(Duration::ZERO).await;
                let left = fs::read_dir(&self.cgroup).unwrap();
                let left: Vec<_> = left.flatten().filter(|one| one.path().is_dir()).collect();
                assert!(left.is_empty(), "cgroups are left: {left:?}");
            });
        }));
        println!("test {} ... {}", scenario.name, if outcome.is_ok() { "ok" } else { "FAILED" });
        if outcome.is_err() {
            self.sweep();
        }
        outcome.is_ok()
    }

    /// What a failed scenario left running must not disturb the next.
    fn sweep(&self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        for _ in 0..20 {
            while sys::reap().is_some() {}
            remove_below(&self.cgroup);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    async fn world(&self, claim: Duration) -> (Arc<World>, Aborting, Aborting) {
        let at = |name: &str| self.directory.path().join(name).to_str().unwrap().to_owned();
        let launcher = Launcher { workdir: at("work") };
        let config = Config {
            launcher,
            cgroup_root: self.cgroup.clone(),
            boot_ns: 1,
            ready_ns: 2,
            marks: Arc::new(Marks::new(1)),
        };
        let promises = Promises::new(Patience { claim, ..Patience::default() });
        let (guest, _) = GuestState::new(config, promises.clone());
        let signals = sys::watch(sys::signal_fd().unwrap(), Interest::READABLE).unwrap();
        let reaping = Aborting(tokio::spawn(reap(guest.clone(), signals)));
        let (client, serving) = connect(&guest).await;
        let mut hello = m::HelloRequest::new();
        hello.protocol = 1;
        client.hello(context(), &hello).await.unwrap();
        let world = World {
            guest,
            client,
            image: at("image"),
            cgroup: self.cgroup.clone(),
            promises,
            asked: Mutex::default(),
        };
        (Arc::new(world), serving, reaping)
    }
}

/// Removes cgroups that are empty of processes.
pub(crate) fn remove_below(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.sweep();
        let _ = fs::remove_dir(&self.cgroup);
        let _ = sys::unmount(self.cgroup.parent().unwrap().to_str().unwrap());
    }
}

pub(crate) struct Aborting(tokio::task::JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn reap(guest: Arc<GuestState>, signals: AsyncFd<OwnedFd>) {
    let mut info = [0; 128];
    while signals.async_io(Interest::READABLE, |fd| sys::read(fd.as_fd(), &mut info)).await.is_ok() {
        while let Some(news) = sys::reap() {
            guest.on_news(news);
        }
    }
}

/// A connection that has not said Hello.
pub(crate) async fn connect(guest: &Arc<GuestState>) -> (AgentClient, Aborting) {
    let (host, agent) = UnixStream::pair().unwrap();
    let agent = Stream::new(agent.into()).unwrap();
    let guest = guest.clone();
    let serving = Aborting(tokio::spawn(async move { serve(guest, agent).await.unwrap() }));
    let client = Client::new(Socket::new(Stream::new(host.into()).unwrap()));
    (AgentClient::new(client), serving)
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(30))
}

/// A small root file system with every applet of busybox that the scenarios call.
/// Puts into the image what this program needs to run in it: it is the init of containers, too. The
/// agent is static.
fn copy_libraries(root: &Path) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut paths: Vec<_> = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    paths.retain(|path| path.contains(".so"));
    paths.dedup();
    for path in paths {
        let name = path.rsplit('/').next().unwrap();
        let mut places = vec![path.trim_start_matches('/').to_owned()];
        if name.starts_with("ld-") {
            // Where the program looks for it.
            places.extend(["lib", "lib64"].map(|directory| format!("{directory}/{name}")));
        }
        for place in places {
            fs::create_dir_all(root.join(&place).parent().unwrap()).unwrap();
            fs::copy(path, root.join(&place)).unwrap();
        }
    }
}

fn make_image(root: &Path, image: &Path) {
    for directory in ["bin", "etc", "data", "proc", "home/app", "outside", "mnt"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("a static busybox (busybox-static)");
    for applet in [
        "sh", "cat", "ls", "echo", "sleep", "id", "env", "pwd", "mkdir", "touch", "stty", "head", "true",
        "grep", "hostname", "dd", "ps", "kill", "yes", "mknod", "tty", "umask", "stat", "ulimit", "setsid",
        "wc", "ping", "ip", "readlink", "md5sum", "mount", "nc", "rm", "mv", "chmod", "sync", "test", "df",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    copy_libraries(root);
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1001:\naudio:x:29:app\nextra:x:77:\n").unwrap();
    fs::write(root.join("data/plain"), "not a program\n").unwrap();
    fs::write(root.join("data/garbage"), [0x7f, 1, 2, 3]).unwrap();
    fs::write(root.join("data/orphan"), "#!/no/such/interpreter\n").unwrap();
    // The head of a program of 32 bits, and no more of it.
    let small = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0";
    fs::write(root.join("data/small"), small.iter().chain(&[0; 40]).copied().collect::<Vec<_>>()).unwrap();
    fs::write(root.join("data/small-script"), "#!/data/small -x\n").unwrap();
    for name in ["garbage", "orphan", "small", "small-script"] {
        let path = root.join("data").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // A link that leads out of the image, were it resolved outside of it.
    symlink("../../../../../../../../outside", root.join("escape")).unwrap();
    symlink("/srv/target", root.join("dangling")).unwrap();
    symlink("around", root.join("around")).unwrap();
    fs::write(root.join("etc/resolv.conf"), "nameserver 10.9.8.7\n").unwrap();
    // What an image has at /dev, most containers never see.
    fs::create_dir(root.join("dev")).unwrap();
    symlink("/data/plain", root.join("dev/null")).unwrap();
    fs::write(root.join("dev/zero"), "no device\n").unwrap();
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(image).arg(root).output();
    let made = made.expect("mkfs.erofs (erofs-utils)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A spec as the sandbox writes it.
pub(crate) fn spec(args: &[&str]) -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETUID",
        "CAP_SETGID"
    ]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "cgroup"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/acpi", "/no/such/path"],
            "readonlyPaths": ["/proc/sys", "/no/such/path"],
        },
    })
}

/// What came out of a process.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub exit: m::WaitResponse,
}

/// The host's ends of a process's streams, dialled when the answer to the request came.
pub(crate) struct Streams {
    pub stdio: m::Stdio,
    ends: Ends,
}

/// Standard input, output and error.
type Ends = Arc<Mutex<[Option<UnixStream>; 3]>>;

impl Streams {
    fn take(&self, index: usize) -> UnixStream {
        self.ends.lock().unwrap()[index].take().expect("the answer had a token")
    }

    pub(crate) fn stdin(&self) -> UnixStream {
        self.take(0)
    }

    pub(crate) fn stdout(&self) -> UnixStream {
        self.take(1)
    }

    pub(crate) fn stderr(&self) -> UnixStream {
        self.take(2)
    }
}

/// A connection of the host that began with these bytes.
pub(crate) fn dial(promises: &Arc<Promises>, first: &[u8]) -> UnixStream {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(first).unwrap();
    promises.admit(theirs.into());
    ours
}

impl World {
    pub(crate) fn streams(&self) -> Streams {
        let mut stdio = m::Stdio::new();
        (stdio.stdin, stdio.stdout, stdio.stderr) = (true, true, true);
        let ends = Ends::default();
        *self.asked.lock().unwrap() = Some(ends.clone());
        Streams { stdio, ends }
    }

    /// Dials the streams of an answer, as the host does.
    fn answered(&self, given: Option<&m::StreamTokens>) {
        let Some(given) = given.filter(|given| **given != m::StreamTokens::new()) else { return };
        let asked = self.asked.lock().unwrap().take().expect("streams that were asked for");
        let dial = |token: &[u8]| (!token.is_empty()).then(|| dial(&self.promises, token));
        *asked.lock().unwrap() = [dial(&given.stdin), dial(&given.stdout), dial(&given.stderr)];
    }

    pub(crate) fn terminal(&self, rows: u32, columns: u32) -> Streams {
        let mut streams = self.streams();
        (streams.stdio.stdout, streams.stdio.stderr) = (false, false);
        streams.stdio.terminal = true;
        (streams.stdio.rows, streams.stdio.columns) = (rows, columns);
        streams
    }

    pub(crate) fn create_request(
        &self,
        id: &str,
        spec: &Value,
        stdio: &m::Stdio,
    ) -> m::CreateContainerRequest {
        let mut request = m::CreateContainerRequest::new();
        request.id = id.to_owned();
        request.spec = serde_json::to_vec(spec).unwrap();
        request.stdio = Some(stdio.clone()).into();
        let rootfs = m::Rootfs {
            device: self.image.clone(),
            filesystem: "erofs".to_owned(),
            upper_bytes: 16 << 20,
            ..m::Rootfs::default()
        };
        request.rootfs = Some(rootfs).into();
        request
    }

    pub(crate) async fn create(&self, request: &m::CreateContainerRequest) -> ttrpc::Result<()> {
        let answer = self.client.create_container(context(), request).await?;
        self.answered(answer.streams.as_ref());
        Ok(())
    }

    pub(crate) async fn start(&self, id: &str) -> m::StartResponse {
        let request = m::StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.client.start_container(context(), &request).await.unwrap()
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> m::WaitResponse {
        let request =
            m::WaitRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
        self.client.wait(context(), &request).await.unwrap()
    }

    pub(crate) async fn signal(&self, id: &str, exec: &str, signal: i32, all: bool) -> ttrpc::Result<()> {
        let request = m::SignalRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal: u32::try_from(signal).unwrap(),
            all,
            ..Default::default()
        };
        self.client.signal(context(), &request).await.map(drop)
    }

    /// Runs a request to its end.
    pub(crate) async fn run_request(
        &self,
        request: &m::CreateContainerRequest,
        streams: &Streams,
    ) -> Outcome {
        self.create(request).await.unwrap();
        let (stdout, stderr) = (reading(streams.stdout()), reading(streams.stderr()));
        drop(streams.stdin());
        let started = self.start(&request.id).await;
        assert!(started.failure.is_none(), "{started:?}");
        let exit = self.wait(&request.id, "").await;
        Outcome { stdout: stdout.await, stderr: stderr.await, exit }
    }

    pub(crate) async fn run_spec(&self, id: &str, spec: &Value) -> Outcome {
        let streams = self.streams();
        let request = self.create_request(id, spec, &streams.stdio);
        self.run_request(&request, &streams).await
    }

    /// A shell command in a container of its own.
    pub(crate) async fn sh(&self, id: &str, script: &str) -> Outcome {
        self.run_spec(id, &spec(&["sh", "-c", script])).await
    }

    /// A container that stays.
    pub(crate) async fn idle(&self, id: &str) {
        self.idle_spec(id, &spec(&["sleep", "1000"])).await;
    }

    pub(crate) async fn idle_spec(&self, id: &str, spec: &Value) {
        self.create(&self.create_request(id, spec, &m::Stdio::new())).await.unwrap();
        let started = self.start(id).await;
        assert!(started.failure.is_none(), "{started:?}");
    }

    pub(crate) fn exec_request(
        &self,
        id: &str,
        exec: &str,
        args: &[&str],
        stdio: &m::Stdio,
    ) -> m::ExecRequest {
        let process = json!({"args": args, "cwd": "/", "env": ["PATH=/bin"]});
        m::ExecRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process: serde_json::to_vec(&process).unwrap(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        }
    }

    pub(crate) async fn exec(&self, request: &m::ExecRequest) -> ttrpc::Result<m::StartResponse> {
        let answer = self.client.exec(context(), request).await?;
        self.answered(answer.streams.as_ref());
        Ok(answer)
    }

    /// A shell command in a running container.
    pub(crate) async fn exec_sh(&self, id: &str, exec: &str, script: &str) -> Outcome {
        let streams = self.streams();
        let request = self.exec_request(id, exec, &["sh", "-c", script], &streams.stdio);
        let started = self.exec(&request).await.unwrap();
        assert!(started.failure.is_none(), "{started:?}");
        let (stdout, stderr) = (reading(streams.stdout()), reading(streams.stderr()));
        drop(streams.stdin());
        let exit = self.wait(id, exec).await;
        Outcome { stdout: stdout.await, stderr: stderr.await, exit }
    }
}

/// For reading and writing in tasks.
pub(crate) fn watched(stream: UnixStream) -> tokio::net::UnixStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::UnixStream::from_std(stream).unwrap()
}

/// Reads a stream to its end, in a task: a process can be made only while the agent has one thread.
pub(crate) fn reading(stream: UnixStream) -> impl Future<Output = String> {
    let stream = watched(stream);
    let task = tokio::spawn(async move {
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            stream.readable().await.unwrap();
            match stream.try_read(&mut buffer) {
                Ok(n @ 1..) => bytes.extend(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return String::from_utf8_lossy(&bytes).into_owned(),
            }
        }
    });
    async move { task.await.unwrap() }
}

/// Writes to a stream, in a task, then shuts its sending down if asked.
pub(crate) fn writing(stream: UnixStream, bytes: Vec<u8>, end: bool) -> impl Future<Output = UnixStream> {
    let stream = watched(stream);
    let task = tokio::spawn(async move {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            stream.writable().await.unwrap();
            match stream.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        if end {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        stream
    });
    async move { task.await.unwrap() }
}

/// Runs something that blocks beside the agent.
pub(crate) fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = tell.send(work());
    });
    async move { told.await.unwrap() }
}

/// The code of a refused call, and its words.
pub(crate) fn refusal<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.expect_err("it must be refused") {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}
