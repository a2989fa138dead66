//! What a first look at a network does, as an ordinary user without capability: by the programs of
//! the built-in image, and by those of a Debian. The Internet is the namespace of [`World`].

use std::process::Command;

use nelly_tests::{Done, run, top};

use super::network::{Helper, World, sh};
use super::user::{as_nobody, home, nelly_as_nobody};
use super::{Home, LIMIT};

/// More servers of the Internet: TLS at 443, bytes that are no two blocks the same at 9003, and the
/// files of a directory at 9004; with `host`, two of the host at all of its addresses.
const SERVERS: &str = r#"
import functools, hashlib, http.server, socket, socketserver, ssl, sys, threading
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    def server_bind(self): socketserver.TCPServer.server_bind(self)
def start(family, address, handler, tls=None):
    class Its(Server):
        address_family = family
    server = Its(address, handler)
    if tls: server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass
class Hello(Quiet):
    body = b"over TLS\n"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)
if sys.argv[1] == "host":
    class Host(Hello):
        body = b"the host\n"
    class Both(Server):
        address_family = socket.AF_INET6
        def server_bind(self):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()
    for port in (8003, 8004):
        threading.Thread(target=Both(("::", port), Host).serve_forever, daemon=True).start()
else:
    mib, directory = int(sys.argv[2]), sys.argv[3]
    rest = bytes(i * 7 & 255 for i in range(65528))
    def blocks():
        for number in range(16 * mib): yield number.to_bytes(8, "big") + rest
    class Bulk(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(mib << 20))
            self.end_headers()
            for block in blocks(): self.wfile.write(block)
        def do_PUT(self):
            sum, left = hashlib.md5(), int(self.headers["Content-Length"])
            while left:
                part = self.rfile.read(min(left, 1 << 16))
                sum.update(part)
                left -= len(part)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(sum.hexdigest().encode() + b"\n")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(f"{directory}/server.pem", f"{directory}/server.key")
    for family, address in [(socket.AF_INET, "203.0.113.10"), (socket.AF_INET6, "2001:db8::10")]:
        start(family, (address, 443), Hello, tls)
        start(family, (address, 9003), Bulk)
        start(family, (address, 9004), functools.partial(Quiet, directory=f"{directory}/files"))
print("ready", flush=True)
if sys.argv[1] != "host":
    sum = hashlib.md5()
    for block in blocks(): sum.update(block)
    print(sum.hexdigest(), flush=True)
threading.Event().wait()
"#;

/// An authority, and what it says of `www.example`; a directory that is served.
const PREPARE: &str = "
mkdir files
key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
openssl req -x509 $key -keyout ca.key -out ca.pem -subj '/CN=a test' -days 3650
openssl req $key -keyout server.key -out server.csr -subj /CN=www.example
echo subjectAltName=DNS:www.example >names
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 3650 -extfile names
";

/// MiB that are sent each way, of which each connection holds one at most; `tests/setup/soak` has
/// more.
fn mib() -> u32 {
    std::env::var("NELLY_NETWORK_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// The Internet with all its servers, and a sandbox of an ordinary user in front of it.
struct Scene {
    home: Home,
    directory: tempfile::TempDir,
    world: World,
    _host: Helper,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        sh(&format!("cd {}; {PREPARE}", directory.path().display()));
        let world = World::new();
        let host = Helper::new(Command::new("python3").args(["-c", SERVERS, "host"]));
        Self { home: home(), directory, world, _host: host }
    }

    /// Starts the servers, and tells the sum of the bytes at port 9003.
    fn serve(&self) -> (Helper, String) {
        let mut command = self.world.inside("python3");
        command.args(["-c", SERVERS, "world", &mib().to_string()]).arg(self.directory.path());
        let mut servers = Helper::new(&mut command);
        let sum = servers.line().trim().to_owned();
        (servers, sum)
    }

    #[track_caller]
    fn nelly(&self, words: &[&str]) -> Done {
        nelly_as_nobody(self.home.path(), true, words)
    }

    /// `nelly exec box sh -c SCRIPT`, which must end well and have printed each of these.
    #[track_caller]
    fn says(&self, script: &str, lines: &[&str]) {
        let done = self.nelly(&["exec", "box", "sh", "-c", script]);
        for line in lines {
            assert!(done.out().contains(line), "{line:?} is not in\n{}\n{}", done.out(), done.err());
        }
        done.expect(0);
    }

    /// The free port that the sandbox got for its server.
    #[track_caller]
    fn port(&self) -> u16 {
        let listed = self.nelly(&["port", "ls", "--json", "box"]).expect(0).out();
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        number(listed[0]["published"].as_str().unwrap_or_default())
    }

    /// Who listens at a port of this host, as ss tells it.
    fn listens(port: u16) -> String {
        let ss =
            run(Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]), b"", LIMIT).expect(0).out();
        ss.lines().filter_map(|line| line.split_whitespace().nth(3)).collect::<Vec<_>>().join(" ")
    }

    /// What this host hears at a port of its own, and who listens there, as ss tells it.
    fn published(port: u16, path: &str) -> (String, String) {
        let url = format!("http://127.0.0.1:{port}/{path}");
        // The guest's server may have to begin.
        let words = ["-sS", "--retry", "60", "--retry-all-errors", "--retry-delay", "1", "-m", "100", &url];
        let page = run(Command::new("curl").args(words), b"", LIMIT).expect(0).out();
        (page, Self::listens(port))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _removed = self.nelly(&["rm", "-f", "box"]);
    }
}

/// The port of the host in `ADDRESS:PORT:GUEST/tcp`.
#[track_caller]
fn number(published: &str) -> u16 {
    published.split(':').nth(1).and_then(|port| port.parse().ok()).expect(published)
}

/// Each address that this host has, but for those of loopback and those that need a zone.
fn addresses() -> Vec<String> {
    let said = run(Command::new("ip").args(["-o", "addr", "show"]), b"", LIMIT).expect(0).out();
    let all = said.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    all.filter(|it| !it.starts_with("127.") && *it != "::1" && !it.starts_with("fe80:"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_built_in_image_finds_its_way_by_name() {
    let scene = Scene::new();
    let (_servers, sum) = scene.serve();
    let authority = std::fs::read_to_string(scene.directory.path().join("ca.pem")).expect("an authority");
    let authority = format!("CA={authority}");
    // README's, with a free port, and the name of this file.
    let words = ["run", "-d", "--name", "box", "-p", "0:80", "--dns", "203.0.113.53", "-e", &authority];
    let words = [&words[..], &["--allow", "host:8004", "--", "httpd", "-f"]].concat();
    scene.nelly(&words).expect(0);
    let port = scene.port();
    let (page, listens) = Scene::published(port, "etc/os-release");
    assert!(page.contains("ID=nelly"), "{page}");
    assert_eq!(listens, format!("127.0.0.1:{port}"));
    // Another one, which comes and goes while it runs.
    let added = scene.nelly(&["port", "add", "box", "0:80"]).expect(0).out().trim().to_owned();
    let second = number(&added);
    let (page, listens) = Scene::published(second, "etc/os-release");
    assert!(page.contains("ID=nelly") && second != port, "{page}");
    assert_eq!(listens, format!("127.0.0.1:{second}"));
    scene.nelly(&["port", "rm", "box", &added]).expect(0);
    assert_eq!(Scene::listens(second), "");
    let refused = run(Command::new("curl").args(["-sS", &format!("http://127.0.0.1:{second}/")]), b"", LIMIT);
    assert!(refused.expect(7).out().is_empty(), "{}", refused.err());
    assert_eq!(Scene::listens(port), format!("127.0.0.1:{port}"));

    scene.says(
        r#"echo "$CA" >/tmp/ca.pem
        echo 'options timeout:60' >>/etc/resolv.conf
        echo name $(wget -qO- http://www.example/)
        echo port $(printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 60 www.example http | tail -n 1)
        echo unknown $(wget -qO- https://www.example/ 2>/dev/null || echo refused)
        export SSL_CERT_FILE=/tmp/ca.pem
        echo known $(wget -qO- https://www.example/)
        echo another $(wget -qO- https://203.0.113.10/ 2>/dev/null || echo refused)
        ping -4 -c 1 -W 60 www.example >/dev/null && echo ping four
        ping -6 -c 1 -W 60 www.example >/dev/null && echo ping six
        ping -c 1 -W 60 host.internal >/dev/null && echo ping host
        nslookup www.example
        nslookup nosuch.example >/dev/null 2>&1 || echo no such name"#,
        &[
            "name hello from ",
            "port hello from ",
            "unknown refused\n",
            "known over TLS\n",
            "another refused\n",
            "ping four\n",
            "ping six\n",
            "ping host\n",
            "Address: 203.0.113.10\n",
            "Address: 2001:db8::10\n",
            "no such name\n",
        ],
    );

    // Both families lead out by their addresses, and the host's server is there for the guest where
    // a rule allows its port.
    let mut script =
        "for url in http://203.0.113.10/ http://[2001:db8::10]/; do echo $url $(wget -qO- $url); done; "
            .to_owned();
    script += "for at in 10.0.2.2 [fd4e:656c:6c79::2] host.internal; do echo $at $(wget -qO- http://$at:8004/); done";
    let lines = [
        "http://203.0.113.10/ hello from 203.0.113.10\n",
        "http://[2001:db8::10]/ hello from 2001:db8::10\n",
        "10.0.2.2 the host\n",
        "[fd4e:656c:6c79::2] the host\n",
        "host.internal the host\n",
    ];
    scene.says(&script, &lines);

    // A server at every address of this host is reached by none.
    let mine = addresses();
    assert!(
        mine.iter().any(|it| it == "198.51.100.2") && mine.iter().any(|it| it == "2001:db8:1::2"),
        "{mine:?}"
    );
    let mut script = String::new();
    let mut lines = Vec::new();
    for address in mine.iter().map(String::as_str).chain(["10.0.2.2", "fd4e:656c:6c79::2", "host.internal"]) {
        let url = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        script +=
            &format!("echo {address} $(wget -qO- http://{url}:8003/ 2>/dev/null || echo unreachable); ");
        lines.push(format!("{address} unreachable\n"));
    }
    scene.says(&script, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    for address in &mine {
        let url = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        let done = run(Command::new("curl").args(["-sS", &format!("http://{url}:8003/")]), b"", LIMIT);
        assert_eq!(done.out(), "the host\n", "{address}: {}", done.err());
    }

    // What comes goes back at the same time.
    let script = "mkfifo /tmp/up; nc 203.0.113.10 9000 </tmp/up >/tmp/sum & \
                  echo down $(wget -qO- http://203.0.113.10:9003/ | tee /tmp/up | md5sum); wait; echo up $(cat /tmp/sum)";
    let limit = LIMIT + LIMIT * mib() / 256;
    let done = as_nobody(scene.home.path(), true, &["exec", "box", "sh", "-c", script], limit);
    assert_eq!(done.out(), format!("down {sum} -\nup {sum}\n"), "{}", done.err());
    done.expect(0);
}

/// A package, and an archive that has it, in the directory that is served.
const ARCHIVE: &str = "
mkdir -p little/DEBIAN little/usr/bin
printf 'Package: little\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@www.example>\nDescription: a test\n' >little/DEBIAN/control
printf '#!/bin/sh\necho installed\n' >little/usr/bin/little
chmod 755 little/usr/bin/little
dpkg-deb --root-owner-group -Zgzip --build little files/little.deb
{ cat little/DEBIAN/control; echo Filename: ./little.deb; echo Size: $(stat -c %s files/little.deb); \
  echo SHA256: $(sha256sum <files/little.deb | cut -d ' ' -f 1); echo; } >files/Packages
";

#[test]
fn a_debian_finds_its_way_by_its_own_programs() {
    let scene = Scene::new();
    sh(&format!("cd {}; {ARCHIVE}", scene.directory.path().display()));
    let (_servers, _) = scene.serve();
    // Where it was made, others may not read it.
    let made = run(&mut Command::new(top().join("tests/images/world")), b"", LIMIT).expect(0).out();
    let image = scene.home.path().join("image");
    sh(&format!("cp -R {} {image}; chmod -R a+rX {image}", made.trim(), image = image.display()));
    let image = format!("oci:{}:v1", image.display());
    let authority = std::fs::read_to_string(scene.directory.path().join("ca.pem")).expect("an authority");
    let authority = format!("CA={authority}");
    let words =
        ["run", "-d", "--name", "box", "-p", "0:80", "--dns", "203.0.113.53", "-e", &authority, &image];
    scene.nelly(&words).expect(0);
    let port = scene.port();
    let (page, listens) = Scene::published(port, "");
    assert!(page.contains("nginx"), "{page}");
    assert_eq!(listens, format!("127.0.0.1:{port}"));
    scene.says(
        r#"echo "$CA" >/tmp/ca.pem
        echo 'options timeout:60' >>/etc/resolv.conf
        get() { curl -sS --max-time 100 "$@" 2>/dev/null || echo refused; }
        echo four $(get -4 http://www.example/)
        echo six $(get -6 http://www.example/)
        echo unknown $(get https://www.example/)
        echo known $(get --cacert /tmp/ca.pem https://www.example/)
        file=$(ls /usr/lib/*/libcrypto.so.3)
        [ "$(get -T $file http://www.example:9003/) -" = "$(md5sum <$file | tr -s ' ')" ] && echo up
        echo answer $(dig +time=60 +short www.example A) $(dig +time=60 +short www.example AAAA)
        echo stream $(dig +time=60 +tcp +short host.internal)
        dig +time=60 nosuch.example | grep -o NXDOMAIN
        ping -4 -c 1 -W 60 www.example >/dev/null && echo ping four
        ping -6 -c 1 -W 60 www.example >/dev/null && echo ping six"#,
        &[
            "four hello from 203.0.113.10\n",
            "six hello from 2001:db8::10\n",
            "unknown refused\n",
            "known over TLS\n",
            "up\n",
            "answer 203.0.113.10 2001:db8::10\n",
            "stream 10.0.2.2\n",
            "NXDOMAIN\n",
            "ping four\n",
            "ping six\n",
        ],
    );
    scene.says(
        "echo 'deb [trusted=yes] http://www.example:9004/ ./' >/etc/apt/sources.list
        rm -rf /etc/apt/sources.list.d/*
        apt-get -q update && apt-get -q install -y little && little",
        &["Setting up little (1.0)", "\ninstalled\n"],
    );
}
