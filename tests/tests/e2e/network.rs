//! Networks of a machine. A network namespace that the test makes, at the other end of a pair of
//! interfaces, is the Internet: nothing leaves the machine.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::keeper::{Kept, kill};
use super::{Home, LIMIT};

/// Servers of the Internet: `world`, and of the host itself: `host`. Prints a line when they
/// listen.
const SERVERS: &str = r#"
import hashlib, socket, socketserver, sys, threading
BIG = bytes(range(256)) * (32 * 4096)
def start(family, address, port, handle):
    class Handler(socketserver.StreamRequestHandler):
        def handle(self): handle(self)
    class Server(socketserver.ThreadingTCPServer):
        address_family = family
        allow_reuse_address = daemon_threads = True
    threading.Thread(target=Server((address, port), Handler).serve_forever).start()
def http(h):
    while h.rfile.readline().strip(): pass
    body = b"hello from " + h.server.server_address[0].encode() + b"\n"
    h.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
def digest(h):
    # The guest closes first, and hears the answer.
    sum = hashlib.md5()
    while part := h.rfile.read(1 << 16): sum.update(part)
    h.wfile.write(sum.hexdigest().encode() + b"\n")
def first(h):
    # The server closes first. (That it hears what comes then, the tests of nelly-net see: nc ends.)
    h.wfile.write(b"bye\n")
    h.request.shutdown(socket.SHUT_WR)
    h.rfile.read()
def names():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("203.0.113.53", 53))
    while True:
        q, peer = s.recvfrom(512)
        end = q.index(b"\0", 12)
        four, six = bytes([203, 0, 113, 10]), socket.inet_pton(socket.AF_INET6, "2001:db8::10")
        known = q[12:end] == b"\x03www\x07example" and q[end + 2] in (1, 28)
        data = four if q[end + 2] == 1 else six
        answer = b"\xc0\x0c\0" + q[end + 2:end + 3] + b"\0\x01\0\0\0\x3c\0" + bytes([len(data)]) + data if known else b""
        flags = b"\x81\x80" if known or q[12:end] == b"\x03www\x07example" else b"\x81\x83"
        s.sendto(q[:2] + flags + b"\0\x01\0" + bytes([known]) + b"\0\0\0\0" + q[12:end + 5] + answer, peer)
def raw(h): h.wfile.write(BIG)
if sys.argv[1] == "host":
    start(socket.AF_INET, "0.0.0.0", 8000, http)
    start(socket.AF_INET, "0.0.0.0", 8002, raw)
else:
    start(socket.AF_INET, "203.0.113.10", 80, http)
    start(socket.AF_INET6, "2001:db8::10", 80, http)
    start(socket.AF_INET, "203.0.113.10", 9000, digest)
    start(socket.AF_INET, "203.0.113.10", 9002, raw)
    start(socket.AF_INET, "203.0.113.10", 9001, first)
    threading.Thread(target=names).start()
print("ready", flush=True)
threading.Event().wait()
"#;

pub(crate) fn sh(script: &str) {
    let done = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A process that ends with the test.
pub(crate) struct Helper(Child, BufReader<std::process::ChildStdout>);

impl Helper {
    /// Runs until it has said a word.
    pub(crate) fn new(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a helper");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut helper = Self(child, said);
        helper.line();
        helper
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "the helper has ended");
        line
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _collected = self.0.wait();
    }
}

/// The host with its interface, and what is behind it.
pub(crate) struct World {
    _servers: Helper,
    _host: Helper,
    namespace: Helper,
}

impl World {
    pub(crate) fn new() -> Self {
        let namespace =
            Helper::new(Command::new("unshare").args(["--net", "sh", "-c", "echo; exec sleep 1000"]));
        let pid = namespace.0.id().to_string();
        sh("modprobe veth; ip link del wan0 2>/dev/null || :; ip link add wan0 type veth peer name wan1");
        sh(&format!(
            "ip link set wan1 netns {pid}; ip addr add 198.51.100.2/24 dev wan0; \
             ip addr add 2001:db8:1::2/64 dev wan0 nodad; ip link set wan0 up; ip route add default via 198.51.100.1; \
             ip -6 route add default via 2001:db8:1::1; echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range"
        ));
        let inside = "ip link set lo up; ip addr add 203.0.113.10/32 dev lo; ip addr add 203.0.113.53/32 dev lo; \
                      ip addr add 2001:db8::10/128 dev lo nodad; ip addr add 198.51.100.1/24 dev wan1; \
                      ip addr add 2001:db8:1::1/64 dev wan1 nodad; ip link set wan1 up";
        sh(&format!("nsenter --net --target {pid} sh -ec '{inside}'"));
        let mut servers = Command::new("nsenter");
        servers.args(["--net", "--target", &pid, "python3", "-c", SERVERS, "world"]);
        let mut host = Command::new("python3");
        host.args(["-c", SERVERS, "host"]);
        Self { _servers: Helper::new(&mut servers), _host: Helper::new(&mut host), namespace }
    }

    /// A program in the namespace that is the Internet.
    pub(crate) fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.namespace.0.id().to_string(), program]);
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", "wan0"]).status();
    }
}

/// What the servers' BIG is, by md5sum.
fn big() -> String {
    let script = "import hashlib; print(hashlib.md5(bytes(range(256)) * (32 * 4096)).hexdigest())";
    let done = Command::new("python3").args(["-c", script]).output().expect("python3");
    String::from_utf8(done.stdout).expect("text").trim().to_owned()
}

#[test]
fn a_user_network_leads_out_and_not_to_the_host() {
    let home = Home::new();
    let _world = World::new();
    let get = |name: &str, address: &str| {
        let said = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 2>/dev/null | tail -n 1");
        format!("x=$({said}); echo {name} ${{x:-refused}}; ")
    };
    let script = [
        "ip -o addr show dev eth0; ip route; cat /etc/resolv.conf /etc/hosts; ".to_owned(),
        get("four", "203.0.113.10 80"),
        get("six", "2001:db8::10 80"),
        "ping -c 1 -W 5 203.0.113.10 >/dev/null && echo ping four; ".to_owned(),
        "ping -c 1 -W 5 10.0.2.2 >/dev/null && echo ping gateway; ".to_owned(),
        "nc 203.0.113.10 9002 >/tmp/big </dev/null; echo down $(md5sum </tmp/big); ".to_owned(),
        "echo up $(nc 203.0.113.10 9000 </tmp/big); ".to_owned(),
        "echo first $(nc 203.0.113.10 9001 </dev/null); ".to_owned(),
        get("allowed", "10.0.2.2 8000"),
        get("other", "10.0.2.2 8002"),
        get("host", "198.51.100.2 8000"),
        get("host6", "2001:db8:1::2 8000"),
        get("metadata", "169.254.169.254 80"),
        get("denied", "203.0.113.53 80"),
    ]
    .concat();
    let words = [
        "run",
        "--rm",
        "--net",
        "user",
        "--allow",
        "host:8000",
        "--deny",
        "203.0.113.53",
        "--dns",
        "203.0.113.53",
        "--dns-search",
        "example",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let done = home.nelly(&words);
    done.expect(0);
    let (out, sum) = (done.out(), big());
    for line in [
        "inet 10.0.2.15/24",
        "inet6 fd4e:656c:6c79::15/64",
        "default via 10.0.2.2 dev eth0",
        "nameserver 10.0.2.3\nsearch example\n",
        "10.0.2.2\thost.internal\n",
        "four hello from 203.0.113.10\n",
        "six hello from 2001:db8::10\n",
        "ping four\n",
        "ping gateway\n",
        &format!("down {sum} -\n"),
        &format!("up {sum}\n"),
        "first bye\n",
        "allowed hello from 0.0.0.0\n",
        "other refused\n",
        "host refused\n",
        "host6 refused\n",
        "metadata refused\n",
        "denied refused\n",
    ] {
        assert!(out.contains(line), "{line:?} is not in\n{out}\n{}", done.err());
    }
}

#[test]
fn a_kept_sandbox_has_its_network_again_after_a_restart() {
    let kept = Kept::new();
    let serve = "while :; do echo from the guest | nc -l -p 8080 >>/tmp/heard; done";
    kept.keep(&["-p", "0:8080"], serve);
    let network = || {
        let mut shown = Value::Null;
        // A network that does not answer within a second is shown without its ports.
        kept.until("its network answers, or is down", || {
            shown = serde_json::from_str::<Value>(&kept.out(&["inspect", "box"])).expect("JSON")[0].clone();
            !shown["network"]["ports"].is_null() || shown["network"]["link"] == "down"
        });
        shown
    };
    let ask = |network: &Value| {
        let port = network["published"][0]
            .as_str()
            .expect("a port")
            .split(':')
            .nth(1)
            .expect("ADDRESS:PORT:GUEST/tcp");
        let port: u16 = port.parse().expect("a number");
        let mut stream =
            TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        // The guest's server refuses callers, by a reset, until it listens, and between two.
        let mut said = String::new();
        let heard = stream.shutdown(Shutdown::Write).and_then(|()| stream.read_to_string(&mut said));
        heard.is_ok() && said == "from the guest\n"
    };
    let shown = network();
    assert_eq!(
        (&shown["machine"]["network"]["mode"], &shown["network"]["link"]),
        (&"user".into(), &"up".into())
    );
    kept.until("its server answers", || ask(&shown["network"]));

    // A port that comes while it runs is on loopback alone, and leads to the guest.
    let added = kept.out(&["port", "add", "box", "0:8080"]).trim().to_owned();
    let number: u16 = added.split(':').nth(1).and_then(|port| port.parse().ok()).expect("a port");
    assert_eq!(added, format!("127.0.0.1:{number}:8080/tcp"));
    assert_eq!(listening(number), [format!("0100007F:{number:04X}")]);
    kept.until("its server answers at it", || {
        let curl = ["--silent", "--max-time", "10", "--http0.9", &format!("http://127.0.0.1:{number}/")];
        let done = Command::new("curl").args(curl).output().expect("curl");
        String::from_utf8_lossy(&done.stdout) == "from the guest\n"
    });
    let taken = kept.0.nelly(&["port", "add", "box", &format!("{number}:80")]);
    assert!(taken.expect(1).err().contains(&format!("{added} is published already")), "{}", taken.err());
    let listed: Value = serde_json::from_str(&kept.out(&["port", "ls", "--json", "box"])).expect("JSON");
    assert_eq!((listed.as_array().map(Vec::len), &listed[1]["published"]), (Some(2), &added.as_str().into()));
    assert!(listed[1]["connections"].as_u64().is_some_and(|count| count > 0), "{listed}");
    assert!(kept.out(&["ps"]).contains(&format!("127.0.0.1:{number}->8080/tcp")));
    let denied = || network()["network"]["traffic"]["denied"].as_u64();
    let before = denied().expect("it is counted");
    kept.exec("nc -w 5 169.254.169.254 80 </dev/null || :");
    assert!(denied() > Some(before), "what is denied is not counted");
    // Who is connected stays so when it is removed; nobody else gets in. The guest's server may be
    // between two callers, who are refused then.
    let mut connected = None;
    kept.until("its server talks to a caller", || {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, number));
        let mut stream = TcpStream::connect(at).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        let mut said = [0; 15];
        let heard = stream.read_exact(&mut said).is_ok() && said == *b"from the guest\n";
        connected = heard.then_some(stream);
        heard
    });
    let mut stream = connected.expect("a stream");
    assert_eq!(kept.out(&["port", "rm", "box", &added]).trim(), added);
    assert!(listening(number).is_empty());
    let refused = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, number))).map(drop);
    assert_eq!(refused.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));
    stream.write_all(b"still here\n").expect("it is connected");
    stream.shutdown(Shutdown::Write).expect("it is connected");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("an end in order");
    assert_eq!(said, "");
    kept.until("what was said later is heard", || kept.exec("cat /tmp/heard").contains("still here"));
    let gone = kept.0.nelly(&["port", "rm", "box", &added]);
    assert!(gone.expect(1).err().contains("is not published"), "{}", gone.err());
    // It is another's from now on.
    let _other = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, number)).expect("it is free");
    let taken = kept.0.nelly(&["port", "add", "box", &format!("{number}:80")]);
    let by = format!("taken by process {}", std::process::id());
    assert!(taken.expect(1).err().contains(&by), "{}", taken.err());

    // Its end breaks the link, and nothing else.
    let holder = kept.pid("holder");
    let found =
        Command::new("pgrep").args(["-P", &holder.to_string(), "nelly-usernet"]).output().expect("pgrep");
    let pid: u64 = String::from_utf8_lossy(&found.stdout).trim().parse().expect("one process of the network");
    kill("KILL", pid);
    kept.until("the network is down", || kept.out(&["ps"]).contains("network down"));
    let listed: Value = serde_json::from_str(&kept.out(&["ps", "--json"])).expect("JSON");
    assert_eq!(listed[0]["ports"], Value::Array(Vec::new()), "{listed}");
    assert!(
        listed[0]["network_down"]["reason"].as_str().is_some_and(|why| why.contains("SIGKILL")),
        "{listed}"
    );
    let past = kept.out(&["events", "--since", "1h", "--until", "0s", "--filter", "event=network"]);
    assert!(past.contains("change=down reason=signal: 9 (SIGKILL)"), "{past}");
    assert_eq!(network()["network"]["link"], "down");
    // Nobody waits for it any more.
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let down = kept.0.nelly(&["port", "add", "box", "0:80"]);
    assert!(down.expect(1).err().contains("SIGKILL"), "{}", down.err());
    assert_eq!(kept.exec("sleep 1; cat /sys/class/net/eth0/carrier"), "0");
    kept.out(&["restart", "-t", "0", "box"]);
    let again = network();
    assert_eq!(again["network"]["link"], "up");
    kept.until("its server answers again", || ask(&again["network"]));
    // What was added is not there again.
    let ports = again["network"]["ports"].as_array().expect("ports");
    assert_eq!((ports.len(), &ports[0]["guest_port"]), (1, &8080.into()));
    kept.out(&["rm", "-f", "box"]);
}

/// The addresses at which somebody listens at a TCP port, as the kernel has them.
fn listening(port: u16) -> Vec<String> {
    let of = |table: &str| std::fs::read_to_string(format!("/proc/net/{table}")).expect("a table");
    let text = of("tcp") + &of("tcp6");
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listens = lines.filter(|words| words.get(3) == Some(&"0A"));
    let local = listens.map(|words| words[1].to_owned());
    local.filter(|local| local.ends_with(&format!(":{port:04X}"))).collect()
}

/// Whether vhost-net serves somebody: its thread is one of a process.
fn has_kernel_worker() -> bool {
    let threads = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .flat_map(|process| std::fs::read_dir(process.path().join("task")).into_iter().flatten().flatten());
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm"));
    threads.flat_map(name).any(|name| name.starts_with("vhost-"))
}

#[test]
fn a_tap_and_no_network_are_what_they_are_called() {
    let home = Home::new();
    sh(
        "ip link del tap7 2>/dev/null || :; ip tuntap add tap7 mode tap; ip addr add 10.9.0.1/24 dev tap7; ip link set tap7 up",
    );
    let mut host = Command::new("python3");
    host.args(["-c", SERVERS, "host"]);
    let _host = Helper::new(&mut host);
    let script = "ping -c 1 -W 5 10.9.0.1 >/dev/null && echo ping; nc 10.9.0.1 8002 >/tmp/big </dev/null; \
                  echo down $(md5sum </tmp/big); cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu";
    let tap = "tap=tap7,ip=10.9.0.2/24,gw=10.9.0.1,mtu=1400,mac=52:54:00:00:00:07";
    // By the host's kernel, and by the monitor.
    for (more, kernel) in [("", true), (",vhost=off", false)] {
        let (done, seen) = std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                home.nelly(&["run", "--rm", "--net", &format!("{tap}{more}"), "--", "sh", "-c", script])
            });
            let mut seen = false;
            while !run.is_finished() {
                seen |= has_kernel_worker();
                std::thread::sleep(Duration::from_millis(20));
            }
            (run.join().unwrap(), seen)
        });
        done.expect(0);
        let expected = format!("ping\ndown {} -\n52:54:00:00:00:07\n1400\n", big());
        assert_eq!((done.out(), seen), (expected, kernel), "{}", done.err());
    }
    sh("ip link del tap7");

    // A guest without our agent.
    let script =
        "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ping -c 1 -W 5 10.0.2.2 && echo reached";
    let boot = super::boot::ours(&home, script, &["--net", "user", "-p", "0:80"], LIMIT);
    boot.expect(0);
    assert!(boot.out().contains("reached"), "{}", boot.out());
    assert!(boot.err().contains("published 127.0.0.1:"), "{}", boot.err());

    let refused = home.nelly(&["run", "--rm", "--net", "tap=nosuch7", "--", "true"]);
    assert!(refused.expect(125).err().contains("ip tuntap add nosuch7"), "{}", refused.err());
    assert!(!std::path::Path::new("/sys/class/net/nosuch7").exists());

    let refused = home.nelly(&["run", "--rm", "--net", "unix=/nonexistent/passt", "--", "true"]);
    refused.expect(125);
    assert!(refused.err().contains("/nonexistent/passt"), "{}", refused.err());

    // The same of an ordinary user, whose default is a network.
    let home = super::user::home();
    assert_eq!(home.sh("ls /sys/class/net").expect(0).out(), "eth0\nlo\n");
    let script = "ls /sys/class/net; cat /proc/net/route | wc -l; nc -w 2 10.0.2.2 8000 </dev/null || echo unreachable; \
                  nc -w 2 fd4e:656c:6c79::2 8000 </dev/null || echo unreachable; \
                  ping -c 1 -W 2 10.0.2.2 >/dev/null || echo silent; nslookup host.internal 10.0.2.3 >/dev/null || echo nameless";
    let none = home.nelly(&["run", "--rm", "--net", "none", "--", "sh", "-c", script]);
    assert_eq!(none.expect(0).out(), "lo\n1\nunreachable\nunreachable\nsilent\nnameless\n", "{}", none.err());
    std::io::stdout().flush().expect("flushed");
}
