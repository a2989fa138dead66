//! Secrets that the guest never has: a host of the Internet gets the value, and everybody else the
//! placeholder.

use std::path::Path;
use std::process::Command;

use nelly_tests::{Done, nelly, run};
use serde_json::Value;

use super::LIMIT;
use super::keeper::Kept;
use super::network::{Helper, World, sh};

/// What only the host may see.
const VALUE: &str = "the-value-of-the-secret/+";

/// Names, `api.example` and `other.example` at one address, and a TLS server for both, which writes
/// down the path and the key of each request.
const SERVERS: &str = r#"
import http.server, socket, ssl, sys, threading
directory = sys.argv[1]
def names():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("203.0.113.10", 53))
    while True:
        q, peer = s.recvfrom(512)
        end = q.index(b"\0", 12)
        known = q[12:end] in (b"\x03api\x07example", b"\x05other\x07example") and q[end + 2] == 1
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([203, 0, 113, 10]) if known else b""
        s.sendto(q[:2] + b"\x81\x80\0\1\0" + bytes([known]) + b"\0\0\0\0" + q[12:end + 5] + answer, peer)
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        with open(f"{directory}/seen", "a") as seen:
            seen.write(f"{self.path} {self.headers['X-Key']}\n")
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"seen\n")
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *_): pass
    def server_bind(self): http.server.socketserver.TCPServer.server_bind(self)
server = Server(("203.0.113.10", 443), Handler)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(f"{directory}/server.pem", f"{directory}/server.key")
server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=names, daemon=True).start()
print("ready", flush=True)
server.serve_forever()
"#;

/// An authority that nobody knows, and what it says of both names.
const PREPARE: &str = "
key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
openssl req -x509 $key -keyout ca.key -out ca.pem -subj '/CN=a test' -days 3650
openssl req $key -keyout server.key -out server.csr -subj /CN=api.example
mkfifo pipe
echo subjectAltName=DNS:api.example,DNS:other.example >names
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 3650 -extfile names
";

/// A sandbox in front of the Internet.
struct Scene {
    kept: Kept,
    directory: tempfile::TempDir,
    _world: World,
    _servers: Helper,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        sh(&format!("cd {}; {PREPARE}", directory.path().display()));
        let world = World::new();
        let mut servers = world.inside("python3");
        servers.args(["-c", SERVERS]).arg(directory.path());
        let servers = Helper::new(&mut servers);
        Self { kept: Kept::new(), directory, _world: world, _servers: servers }
    }

    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("text").to_owned()
    }

    /// `nelly WORDS`, with the value in the environment or without it.
    fn nelly(&self, words: &[&str], value: Option<&str>) -> Done {
        let mut command: Command = nelly(self.kept.0.path(), words);
        command.env_remove("API_KEY").envs(value.map(|value| ("API_KEY", value)));
        run(&mut command, b"", LIMIT)
    }

    /// What the server saw of requests to this path.
    fn seen(&self, path: &str) -> Vec<String> {
        let all = std::fs::read_to_string(self.at("seen")).unwrap_or_default();
        all.lines().filter(|line| line.starts_with(path)).map(str::to_owned).collect()
    }

    /// Writes this for the next who reads a pipe, who is the only one.
    fn pipe(&self, text: &'static str) -> std::thread::JoinHandle<()> {
        let pipe = self.at("pipe");
        std::thread::spawn(move || std::fs::write(pipe, text).unwrap())
    }

    fn inspect(&self) -> Value {
        let shown = self.nelly(&["inspect", "box"], None).expect(0).out();
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        if shown.is_array() { shown[0].clone() } else { shown }
    }

    fn process(&self) -> u64 {
        let shown = self.inspect();
        let secrets = &shown["network"]["secrets"];
        assert_eq!(secrets["confinement"][4], "seccomp", "{shown:#}");
        assert!(!shown.to_string().contains(VALUE));
        secrets["process"].as_u64().expect("a process")
    }
}

/// Files below a directory in which a text stands.
fn with(directory: &Path, text: &str) -> String {
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", text]).arg(directory);
    run(&mut grep, b"", LIMIT).out()
}

fn get(what: &str, words: &str, url: &str) -> String {
    format!(
        "echo {what} $(wget -qO- {words} --header \"X-Key: $API_KEY\" \"{url}\" 2>/dev/null || echo failed)\n"
    )
}

#[test]
fn the_host_gets_the_value_and_the_guest_has_a_placeholder() {
    let scene = Scene::new();
    let (ca, log) = (scene.at("ca.pem"), scene.at("log"));
    let words = ["run", "-d", "--name", "box", "--dns", "203.0.113.10", "--net-log", &log];
    // A pipe has its value once a start.
    let pipe = format!("PIPED=file:{}@api.example", scene.at("pipe"));
    let secrets = ["--secret", "API_KEY@api.example", "--secret", &pipe, "--secret-ca", &ca];
    let words = [&words[..], &secrets, &["--", "sleep", "100000"]].concat();
    let refused = scene.nelly(&words, None);
    assert!(refused.err().contains("API_KEY is not set"), "{}", refused.err());
    refused.expect(125);
    let writer = scene.pipe("of a pipe\n");
    scene.nelly(&words, Some(VALUE)).expect(0);
    writer.join().unwrap();
    let process = scene.process();

    // By its address alone, before anybody was asked for the name: by a name in the hello that
    // nobody has vouched for.
    let direct = "printf 'GET /direct HTTP/1.1\\r\\nHost: api.example\\r\\nX-Key: %s\\r\\nConnection: close\\r\\n\\r\\n' \
                  \"$API_KEY\" | openssl s_client -quiet -connect 203.0.113.10:443 -servername api.example 2>/dev/null \
                  | tail -n 1\n";
    let script = [
        "echo 'options timeout:60' >>/etc/resolv.conf\necho key $API_KEY\n".to_owned(),
        format!("echo direct $({direct})\n"),
        get("named", "", "https://api.example/named?k=$API_KEY"),
        get("other", "--no-check-certificate", "https://other.example/other"),
        get("unknown", "", "https://other.example/unknown"),
        "cat /proc/1/environ /proc/*/cmdline /etc/hosts | tr '\\0' '\\n'\n".to_owned(),
        "grep -c 'Added by nelly' $SSL_CERT_FILE; grep -c BEGIN $SSL_CERT_FILE\n".to_owned(),
    ]
    .concat();
    let done = scene.nelly(&["exec", "box", "sh", "-c", &script], None);
    let out = done.expect(0).out();
    let placeholder = out.lines().find_map(|line| line.strip_prefix("key ")).expect("a key").to_owned();
    assert!(
        placeholder.starts_with("nelly-secret-API_KEY-") && placeholder.len() == 21 + 32,
        "{placeholder}"
    );
    let lines = std::fs::read_to_string(&log).unwrap_or_default();
    for line in
        ["direct seen\n", "named seen\n", "other seen\n", "unknown failed\n", "REQUESTS_CA_BUNDLE=/etc/"]
    {
        assert!(out.contains(line), "{line:?} is not in\n{out}\n{lines}");
    }
    assert!(!out.contains(VALUE), "{out}");
    assert_eq!(scene.seen("/direct"), [format!("/direct {placeholder}")]);
    assert_eq!(scene.seen("/named"), [format!("/named?k=the-value-of-the-secret%2F%2B {VALUE}")]);
    assert_eq!(scene.seen("/other"), [format!("/other {placeholder}")]);
    assert!(scene.seen("/unknown").is_empty());
    assert!(lines.contains("\"verdict\":\"swapped\"") && !lines.contains(VALUE), "{lines}");

    // No file of Nelly's has it, and no process shows it.
    assert_eq!(with(scene.kept.0.path(), VALUE), "");
    let keeper = scene.kept.state()["holder"]["pid"].as_u64().expect("a keeper");
    for (process, program) in [(process, "nelly-secrets"), (keeper, "nelly-keeper")] {
        let shown = format!("cat /proc/{process}/cmdline /proc/{process}/environ | tr '\\0' '\\n'");
        let shown = run(Command::new("sh").args(["-c", &shown]), b"", LIMIT).out();
        assert!(shown.contains(program) && !shown.contains(VALUE), "{shown}");
        // What nobody may look into is root's, and has no core file.
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{program}: {limits}");
    }

    // Its death breaks connections to its hosts, and nothing else.
    sh(&format!("kill -9 {process}"));
    let script = get("named", "", "https://api.example/dead")
        + &get("other", "--no-check-certificate", "https://other.example/dead");
    let out = scene.nelly(&["exec", "box", "sh", "-c", &script], None).expect(0).out();
    assert_eq!(out, "named failed\nother seen\n");
    assert_eq!(scene.seen("/dead"), [format!("/dead {placeholder}")]);
    let shown = scene.inspect()["network"]["secrets"].clone();
    assert!(shown["process"].is_null() && shown["confinement"].is_array(), "{shown}");
    assert_eq!(shown["reason"], "signal: 9 (SIGKILL)", "{shown}");

    // What could not be started again goes on.
    let refused = scene.nelly(&["restart", "-t", "0", "box"], None);
    assert!(refused.err().contains("API_KEY is not set here"), "{}", refused.err());
    scene.nelly(&["exec", "box", "true"], None).expect(0);

    // The next start reads the value again, and has another authority.
    scene.nelly(&["stop", "-t", "0", "box"], None).expect(0);
    let refused = scene.nelly(&["start", "box"], None);
    assert!(
        refused.err().contains("API_KEY is not set here, and each start needs the value"),
        "{}",
        refused.err()
    );
    let writer = scene.pipe("of a pipe again\n");
    scene.nelly(&["start", "box"], Some("another")).expect(0);
    writer.join().unwrap();
    let script = [
        "echo 'options timeout:60' >>/etc/resolv.conf\n",
        &get("again", "", "https://api.example/again"),
        "grep -c 'Added by nelly' $SSL_CERT_FILE\n",
    ];
    let out = scene.nelly(&["exec", "box", "sh", "-c", &script.concat()], None).expect(0).out();
    assert_eq!(out, "again seen\n1\n");
    assert_eq!(scene.seen("/again"), ["/again another"]);
    scene.nelly(&["rm", "-f", "box"], None).expect(0);
}
