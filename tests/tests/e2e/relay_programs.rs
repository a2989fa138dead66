//! Programs that others made, at both ends of relays: HTTP/2 (of curl, h2load and nghttpd, from
//! nghttp2), gRPC over it, and SSH.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nelly_tests::{Done, program, run, scaled};

use super::LIMIT;

/// Many times the windows of HTTP/2 and of SSH's channels, which are 64 KiB and 2 MiB at first.
const MUCH: usize = 4 << 20;

/// A program that serves a port of the host until the test ends.
pub(super) struct Server {
    process: Child,
    pub(super) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended is to be collected, too.
        let _ended = self.process.kill();
        let _collected = self.process.wait();
    }
}

/// Starts what `command` makes for a free port, and waits until it listens there.
fn serve(command: impl FnOnce(u16) -> Command) -> Server {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut command = command(port);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut server = Server { process, port };
    let limit = Instant::now() + scaled(LIMIT);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let ended = server.process.try_wait().unwrap();
        assert!(ended.is_none() && Instant::now() < limit, "{command:?}: {ended:?}");
        thread::sleep(Duration::from_millis(20));
    }
    server
}

fn pattern() -> Vec<u8> {
    (0..MUCH).map(|at| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
}

/// A server of HTTP/2 without TLS: a file, and whatever is sent to it.
pub(super) fn http2_server(place: &Path) -> Server {
    fs::create_dir(place.join("files")).unwrap();
    fs::write(place.join("files/much"), pattern()).unwrap();
    serve(|port| {
        let mut command = Command::new("nghttpd");
        command.args(["--no-tls", "--echo-upload", "--address=127.0.0.1", "--htdocs"]);
        command.arg(place.join("files")).arg(port.to_string());
        command
    })
}

/// Talks to that server through the socket `enters`: long streams one by one, both ways at once,
/// and many on one connection.
pub(super) fn http2(place: &Path, enters: &str) {
    let curl = |words: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", "--http2-prior-knowledge", "--unix-socket", enters]);
        run(command.args(["-o", "got", "-w", "%{http_version}"]).args(words).current_dir(place), b"", LIMIT)
    };
    for words in [&["http://box/much"][..], &["--data-binary", "@files/much", "http://box/"]] {
        assert_eq!(curl(words).expect(0).out(), "2", "{words:?}");
        assert!(fs::read(place.join("got")).unwrap() == pattern(), "{words:?}: other bytes");
        fs::remove_file(place.join("got")).unwrap();
    }
    let mut load = Command::new("h2load");
    load.args(["-n", "12", "-c", "2", "-m", "6", "-B", &format!("unix:{enters}"), "http://box/much"]);
    let said = run(&mut load, b"", LIMIT).expect(0).out();
    assert!(said.contains("12 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert!(said.contains(&format!("({}) data", 12 * MUCH)), "{said}");
}

/// Debian's, which has its packages.
const PYTHON: &str = "/usr/bin/python3";

/// A server of gRPC at 127.0.0.1 and port $2, and a client of the socket $2: a stream of each
/// kind, 4 MiB in messages of 64 KiB, while another one stays open, has hundreds of turns, and is
/// heard to its end after all others.
const GRPC: &str = r#"
import grpc, hashlib, queue, sys
from concurrent.futures import ThreadPoolExecutor
def parts(name): return (bytes([number]) + hashlib.sha256(name + bytes([number])).digest() * 2047 for number in range(64))
def whole(messages): return hashlib.sha256(b"".join(messages)).digest()
def back(requests, context):
    for request in requests: yield request
def down(request, context): return parts(request)
def up(requests, context): return whole(requests)
if sys.argv[1] == "serve":
    server = grpc.server(ThreadPoolExecutor(8))
    methods = {"Back": grpc.stream_stream_rpc_method_handler(back), "Down": grpc.unary_stream_rpc_method_handler(down),
               "Up": grpc.stream_unary_rpc_method_handler(up)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Streams", methods),))
    assert server.add_insecure_port("127.0.0.1:" + sys.argv[2])
    server.start()
    server.wait_for_termination()
with grpc.insecure_channel("unix:" + sys.argv[2]) as channel:
    asked = queue.SimpleQueue()
    turns = channel.stream_stream("/test.Streams/Back")(iter(asked.get, None))
    def turn(text):
        asked.put(text)
        assert next(turns) == text
    for number in range(200): turn(b"turn %d" % number)
    assert whole(channel.unary_stream("/test.Streams/Down")(b"down")) == whole(parts(b"down"))
    turn(b"between")
    assert channel.stream_unary("/test.Streams/Up")(parts(b"up")) == whole(parts(b"up"))
    assert whole(channel.stream_stream("/test.Streams/Back")(parts(b"both"))) == whole(parts(b"both"))
    for number in range(200): turn(b"turn %d" % number)
    asked.put(None)
    assert list(turns) == [] and turns.code() == grpc.StatusCode.OK
    try: channel.unary_unary("/test.Streams/Nothing")(b"")
    except grpc.RpcError as error: print(error.code().name)
"#;

pub(super) fn grpc_server() -> Server {
    serve(|port| {
        let mut command = Command::new(PYTHON);
        command.args(["-c", GRPC, "serve", &port.to_string()]);
        command
    })
}

/// Has streams with that server through the socket `enters`. A method that is not there is told so
/// in trailers.
pub(super) fn grpc(enters: &str) {
    let done = run(Command::new(PYTHON).args(["-c", GRPC, "ask", enters]), b"", LIMIT);
    assert_eq!(done.out(), "UNIMPLEMENTED\n", "{}", done.err());
    done.expect(0);
}

/// A server of SSH that lets in whoever has the key `user`.
pub(super) fn ssh_server(place: &Path) -> Server {
    for key in ["host", "user", "other"] {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f", key]).current_dir(place);
        run(&mut command, b"", LIMIT).expect(0);
    }
    // Where it gives up its rights.
    fs::create_dir_all("/run/sshd").unwrap();
    let said = |name: &str| place.join(name).display().to_string();
    serve(|port| {
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nUsePAM no\nStrictModes no\n\
             PidFile none\n",
            said("host"),
            said("user.pub")
        );
        fs::write(place.join("sshd_config"), config).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-E"]).arg(place.join("sshd.log")).arg("-f").arg(place.join("sshd_config"));
        command
    })
}

/// Logs in to that server, which `port` of sandbox `box` leads to, by `nelly proxy` alone.
pub(super) fn ssh(place: &Path, home: &Path, port: u16) {
    let ssh = |known: &str, words: &[&str], input: &[u8]| -> Done {
        let key = fs::read_to_string(place.join(known).with_extension("pub")).unwrap();
        fs::write(place.join("known"), format!("box {key}")).unwrap();
        let file = |name: &str| -> PathBuf { place.join(name) };
        let mut command = Command::new("ssh");
        command.args(["-F", "/dev/null"]).env("NELLY_HOME", home);
        for option in [
            "StrictHostKeyChecking=yes".to_owned(),
            format!("UserKnownHostsFile={}", file("known").display()),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("IdentityFile={}", file("user").display()),
            "IdentitiesOnly=yes".to_owned(),
            "BatchMode=yes".to_owned(),
            format!("ProxyCommand={} proxy %h {port}", program("nelly").display()),
        ] {
            command.args(["-o", &option]);
        }
        run(command.arg("root@box").args(words), input, LIMIT)
    };
    let log = || fs::read_to_string(place.join("sshd.log")).unwrap_or_default();
    let back = ssh("host", &["cat; exit 7"], &pattern());
    assert_eq!(back.code, 7, "{}\n{}", back.err(), log());
    assert!(back.stdout == pattern(), "{} bytes came back, or others", back.stdout.len());
    // Another's key is not the one that is known.
    let refused = ssh("other", &["true"], b"");
    assert!(refused.expect(255).err().contains("Host key verification failed"), "{}", refused.err());
}
