//! Relays beside a guest that is played: its agent answers, and sockets for it come to the test.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use async_trait::async_trait;
use nelly_protocol::messages as m;
use nelly_protocol::service::{self as agent_service, create_agent};
use ttrpc::asynchronous::transport::Listener as ServerListener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;

/// An agent whose container serves `/served` and nothing else, and whose connections come from
/// the test.
struct Played {
    accepted: tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<u8>>,
    /// Connections to `/slow`, which are never made.
    begun: Arc<AtomicUsize>,
    forgotten: Forgotten,
}

/// Tokens that the agent was told to forget.
type Forgotten = Arc<Mutex<Vec<Vec<u8>>>>;

fn refusal(text: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::FAILED_PRECONDITION, text.to_owned()))
}

#[async_trait]
impl agent_service::Agent for Played {
    async fn connect(
        &self,
        _: &TtrpcContext,
        request: m::ConnectRequest,
    ) -> ttrpc::Result<m::ConnectResponse> {
        match &request.address.path[..] {
            b"/slow" => {
                self.begun.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            }
            b"/served" => Ok(m::ConnectResponse { token: vec![7; 16], ..Default::default() }),
            _ => Err(refusal(&format!("nobody is there{}", "!".repeat(100_000)))),
        }
    }

    async fn listen(&self, _: &TtrpcContext, request: m::ListenRequest) -> ttrpc::Result<m::ListenResponse> {
        match request.address.port {
            1 => Err(refusal("somebody is there")),
            _ => Ok(m::ListenResponse { listener: 5, ..Default::default() }),
        }
    }

    async fn accept(&self, _: &TtrpcContext, request: m::AcceptRequest) -> ttrpc::Result<m::ConnectResponse> {
        assert_eq!(request.listener, 5);
        let next =
            self.accepted.lock().await.recv().await.ok_or_else(|| refusal("the container has ended"))?;
        Ok(m::ConnectResponse { token: vec![next; 16], ..Default::default() })
    }

    async fn forget(&self, _: &TtrpcContext, request: m::ForgetRequest) -> ttrpc::Result<m::Empty> {
        self.forgotten.lock().unwrap().push(request.token);
        Ok(m::Empty::default())
    }
}

struct Scene {
    carrier: Carrier,
    /// What the container's processes connect.
    dials: tokio::sync::mpsc::UnboundedSender<u8>,
    begun: Arc<AtomicUsize>,
    forgotten: Forgotten,
    /// What the monitor would get; without it, it takes nothing.
    joined: Option<mpsc::Receiver<(Token, OwnedFd)>>,
    place: tempfile::TempDir,
    _server: Server,
}

impl Scene {
    async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("agent");
        let (dials, accepted) = tokio::sync::mpsc::unbounded_channel();
        let begun = Arc::new(AtomicUsize::new(0));
        let forgotten = Forgotten::default();
        let played = Played {
            accepted: tokio::sync::Mutex::new(accepted),
            begun: Arc::clone(&begun),
            forgotten: Arc::clone(&forgotten),
        };
        let listener = ServerListener::bind_unix(path.to_str().unwrap()).unwrap();
        let mut server =
            Server::new().register_service(create_agent(Arc::new(played))).add_listener(listener);
        server.start().await.unwrap();
        let agent = Agent::new(UnixStream::connect(&path).unwrap()).unwrap();
        let (takes, joined) = mpsc::channel();
        let carrier = Carrier { agent, guest: Joins::Played(takes), id: "c".to_owned() };
        Self { carrier, dials, begun, forgotten, joined: Some(joined), place, _server: server }
    }

    async fn serve(&self, relays: &[Relay]) -> Result<Relays, SandboxError> {
        Ok(self.carrier.clone().listen(relays).await?.serve())
    }

    /// The next socket for the guest, blocking.
    async fn next(&self) -> (Token, UnixStream) {
        loop {
            match self.joined.as_ref().unwrap().try_recv() {
                Ok((token, socket)) => {
                    let stream = UnixStream::from(socket);
                    stream.set_nonblocking(false).unwrap();
                    return (token, stream);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

fn inward(listen: &Path, connect: &str) -> Relay {
    Relay::inward(&format!("{}={connect}", listen.display())).unwrap()
}

/// Waits for what is counted of the only relay.
async fn counted(relays: &Relays, connections: u64, failed: u64) -> RelayState {
    loop {
        let state = relays.states().remove(0);
        if (state.connections, state.failed) == (connections, failed) {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn clients_of_a_unix_socket_are_joined_and_the_socket_is_the_users_alone() {
    let scene = Scene::new().await;
    let path = scene.place.path().join("d".repeat(120));
    std::fs::create_dir(&path).unwrap();
    let path = path.join("s");
    let relays = scene.serve(&[inward(&path, "/served")]).await.unwrap();
    assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut clients: Vec<_> = (0..300)
        .map(|number: u32| {
            let client = nelly_vmm::sys::unix::connect(&path).unwrap();
            (&client).write_all(&number.to_be_bytes()).unwrap();
            client
        })
        .collect();
    for _ in 0..300 {
        let (token, mut guest) = scene.next().await;
        assert_eq!(token, [7; 16]);
        let mut number = [0; 4];
        guest.read_exact(&mut number).unwrap();
        guest.write_all(&number).unwrap();
    }
    for (number, client) in (0_u32..).zip(&mut clients) {
        client.set_nonblocking(false).unwrap();
        let mut text = Vec::new();
        client.read_to_end(&mut text).unwrap();
        assert_eq!(text, number.to_be_bytes());
    }
    counted(&relays, 300, 0).await;
    drop(relays);
    tokio::task::yield_now().await;
    while path.symlink_metadata().is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The limit of open files is the process's: this runs alone, in a child.
#[test]
fn without_files_left_a_client_waits_and_it_is_told_once() {
    const CHILD: &str = "NELLY_TEST_CHILD";
    const NAME: &str = "instance::relays::tests::without_files_left_a_client_waits_and_it_is_told_once";
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(without_files_left());
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let output = again.args([NAME, "--exact", "--test-threads=1"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

async fn without_files_left() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let scene = Scene::new().await;
    let path = scene.place.path().join("s");
    let relays = scene.serve(&[inward(&path, "/served")]).await.unwrap();
    let mut held = nelly_vmm::sys::unix::connect(&path).unwrap();
    let (_, mut guest) = scene.next().await;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    let waits = rustix::net::socket_with(family, kind, flags, None).unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    rustix::net::connect(&waits, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    let state = counted(&relays, 1, 1).await;
    let why = state.last_failure;
    assert!(why.contains("cannot accept a connection: Too many open files"), "{why}");
    // It is tried again and again, and a connection that is there goes on.
    tokio::time::sleep(3 * AGAIN).await;
    held.write_all(b"word").unwrap();
    let mut word = [0; 4];
    guest.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"word");
    setrlimit(Resource::Nofile, before).unwrap();
    let mut waits = UnixStream::from(waits);
    waits.write_all(b"late").unwrap();
    let (_, mut guest) = scene.next().await;
    guest.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"late");
    counted(&relays, 2, 1).await;
}

#[tokio::test]
async fn a_free_port_is_found_and_told_and_a_target_that_is_gone_is_a_reset() {
    let scene = Scene::new().await;
    let relays = scene.serve(&[Relay::inward("0=/gone").unwrap()]).await.unwrap();
    let RelayAddress::Tcp(port) = relays.states()[0].relay.listen else { panic!("a port") };
    assert_ne!(port, 0);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let state = counted(&relays, 0, 1).await;
    assert!(state.last_failure.contains("nobody is there"), "{}", state.last_failure);
    assert!(state.last_failure.len() <= SENTENCE_MOST);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // A second one finds the port taken.
    let taken = check(&[Relay::inward(&format!("{port}=80")).unwrap()]).unwrap_err();
    assert!(taken.to_string().contains(&format!("tcp:{port}")), "{taken}");
}

#[tokio::test]
async fn nothing_of_others_is_in_the_way_or_taken_away() {
    let scene = Scene::new().await;
    let at = |name: &str| scene.place.path().join(name);
    std::fs::write(at("file"), "kept").unwrap();
    std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
    let _served = UnixListener::bind(at("served")).unwrap();
    for (name, word) in [
        ("file", "no socket"),
        ("link", "no socket"),
        ("served", "already"),
        ("none/s", "does not exist"),
        ("file/s", ""),
    ] {
        let relays = [inward(&at(name), "/served")];
        for error in [check(&relays).unwrap_err(), scene.serve(&relays).await.unwrap_err()] {
            let text = text::chain(&error);
            assert!(text.contains(name) && text.contains(word), "{text}");
        }
    }
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "kept");
    // That of one that was killed is replaced.
    drop(UnixListener::bind(at("left")).unwrap());
    let relays = [inward(&at("left"), "/served")];
    check(&relays).unwrap();
    let listening = scene.carrier.clone().listen(&relays).await.unwrap();
    std::fs::remove_file(at("left")).unwrap();
    std::fs::write(at("left"), "of another").unwrap();
    drop(listening);
    assert_eq!(std::fs::read_to_string(at("left")).unwrap(), "of another");
    let error =
        scene.serve(&[inward(&at("new"), "/served"), Relay::outward("1=80").unwrap()]).await.unwrap_err();
    assert!(text::chain(&error).contains("somebody is there"));
    assert!(!at("new").exists(), "what was made before an error goes with it");
}

#[tokio::test]
async fn a_relay_that_does_not_listen_says_so() {
    let scene = Scene::new().await;
    // A name that fits a socket's address in a short directory alone.
    let deep = scene.place.path().join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    for (relay, word) in [
        (inward(&deep.join("n".repeat(81)), "/served"), "a last part of 80 instead of 81"),
        (inward(&scene.place.path().join("none/s"), "/served"), "does not exist"),
        (Relay::outward("1=80").unwrap(), "somebody is there"),
    ] {
        let asked = [relay.clone()];
        assert_eq!(check(&asked).is_err(), relay.listens == Side::Host);
        let error = scene.serve(&asked).await.unwrap_err();
        let [state] = Relays::deaf(relay.clone(), &error).states().try_into().unwrap();
        assert!(state.last_failure.starts_with("it does not listen: "), "{}", state.last_failure);
        assert!(state.last_failure.contains(word), "{}", state.last_failure);
        assert_eq!((state.relay, state.connections, state.failed), (relay, 0, 0));
    }
    // One byte less is a name that it has.
    let path = deep.join("n".repeat(80));
    let relays = [inward(&path, "/served")];
    check(&relays).unwrap();
    let _relays = scene.serve(&relays).await.unwrap();
    nelly_vmm::sys::unix::connect(&path).unwrap();
}

#[tokio::test]
async fn connections_of_a_container_are_joined_with_a_socket_of_the_host() {
    let scene = Scene::new().await;
    let path = scene.place.path().join("server");
    let server = UnixListener::bind(&path).unwrap();
    let relay = Relay::outward(&format!("80=unix:{}", path.display())).unwrap();
    let relays = scene.serve(&[relay]).await.unwrap();
    for number in 0..100 {
        scene.dials.send(number).unwrap();
        let (token, mut guest) = scene.next().await;
        assert_eq!(token, [number; 16]);
        let (mut host, _) = server.accept().unwrap();
        guest.write_all(b"question").unwrap();
        drop(guest);
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
    }
    counted(&relays, 100, 0).await;
    drop(server);
    scene.dials.send(200).unwrap();
    // The container's end is closed at once.
    let state = counted(&relays, 100, 1).await;
    assert!(state.last_failure.contains("server"), "{}", state.last_failure);
    assert_eq!(*scene.forgotten.lock().unwrap(), [[200; 16]]);
}

#[tokio::test]
async fn what_the_monitor_does_not_take_is_closed_in_the_container() {
    let mut scene = Scene::new().await;
    let at = |name: &str| scene.place.path().join(name);
    let server = UnixListener::bind(at("server")).unwrap();
    let outward = Relay::outward(&format!("80=unix:{}", at("server").display())).unwrap();
    let (clients, inward) = (at("clients"), inward(&at("clients"), "/served"));
    let relays = scene.serve(&[inward, outward]).await.unwrap();
    drop(scene.joined.take());
    let mut client = nelly_vmm::sys::unix::connect(&clients).unwrap();
    counted(&relays, 0, 1).await;
    scene.dials.send(9).unwrap();
    while relays.states()[1].failed == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(relays.states()[1].last_failure.contains("cannot join"), "{:?}", relays.states());
    assert_eq!(*scene.forgotten.lock().unwrap(), [[7; 16], [9; 16]]);
    // Both ends on the host are closed, too.
    client.set_nonblocking(false).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(server.accept().unwrap().0.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn relays_that_nobody_uses_take_nothing_away() {
    let scene = Scene::new().await;
    let at = |n: usize| scene.place.path().join(format!("s{n}"));
    let many: Vec<Relay> = (0..BEGINNING_MOST).map(|n| inward(&at(n), "/slow")).collect();
    let _relays = scene.serve(&many).await.unwrap();
    let clients: Vec<_> =
        (0..2 * BEGINNING_MOST).map(|_| nelly_vmm::sys::unix::connect(&at(0)).unwrap()).collect();
    // All that may be made at a time are those of the one that is used.
    while scene.begun.load(Ordering::SeqCst) < BEGINNING_MOST {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(clients);
}

#[test]
fn of_many_who_listen_at_one_path_one_does() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("s");
    for _ in 0..20 {
        // That of one that was killed is in the way of all.
        drop(UnixListener::bind(&path).unwrap());
        let together = std::sync::Barrier::new(8);
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let one = || {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    together.wait();
                    let made = runtime.block_on(async { Listener::bind(&RelayAddress::Unix(path.clone())) });
                    made.map(|listener| (runtime, listener))
                })
            };
            let all: Vec<_> = (0..8).map(|_| one()).collect();
            all.into_iter().filter_map(|one| one.join().unwrap().ok()).collect()
        });
        assert_eq!(listeners.len(), 1);
        nelly_vmm::sys::unix::connect(&path).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_socket_is_not_made_while_another_holds_its_directory() {
    let scene = Scene::new().await;
    let held = std::fs::File::open(scene.place.path()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let relays = [inward(&scene.place.path().join("s"), "/served")];
    let error = text::chain(&scene.serve(&relays).await.unwrap_err());
    assert!(error.contains("another process holds a lock of its directory"), "{error}");
    drop(held);
    scene.serve(&relays).await.unwrap();
}
