//! Registries for tests: Debian's docker-registry, and a server that does what a test says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nelly_registry::{Cancel, Client, Environment, Patience, Place, RegistryOptions};

/// `user` with the password `secret`, as htpasswd's bcrypt.
const HTPASSWD: &str = "user:$2y$05$wIglIHy0e/1k9y7aft0O8eIQMUjum96lYhom7wNuNCfrBvccHVlNu\n";

/// Debian's registry on a port of its own, which ends with this.
pub(crate) struct RealRegistry {
    child: Child,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) host: String,
}

#[derive(Default)]
pub(crate) struct RealOptions {
    pub(crate) auth: bool,
    pub(crate) tls: bool,
}

impl RealRegistry {
    pub(crate) fn start(options: &RealOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, formatter: text}}\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\n",
            path.display()
        );
        if options.auth {
            std::fs::write(path.join("htpasswd"), HTPASSWD).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n", path.display());
        }
        let tls = if options.tls {
            make_certificates(path);
            format!(", tls: {{certificate: {0}/server.crt, key: {0}/server.key}}", path.display())
        } else {
            String::new()
        };
        config += &format!("http: {{addr: 'localhost:0', secret: x{tls}}}\n");
        std::fs::write(path.join("config.yml"), config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(path.join("config.yml"))
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (tests/setup/packages.txt)");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let port = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "docker-registry ended: {seen}");
            if let Some(at) = line.find("listening on ") {
                let rest = &line[at + 13..];
                let port: String =
                    rest[rest.find(':').unwrap() + 1..].chars().take_while(char::is_ascii_digit).collect();
                break port;
            }
            seen += &line;
        };
        // Its log is read to its end, so that it never waits for a reader.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, directory, host: format!("localhost:{port}") }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

fn make_certificates(directory: &Path) {
    std::fs::write(directory.join("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    for line in [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt",
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
    ] {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A request that a test's server got.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A server that answers each request as a function says, one a connection.
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) got: Arc<Mutex<Vec<Got>>>,
    ends: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Got, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let (got, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (answer, list, over) = (Arc::new(answer), Arc::clone(&got), Arc::clone(&ends));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(mut stream), answer, list) = (stream, Arc::clone(&answer), Arc::clone(&list)) else {
                    continue;
                };
                thread::spawn(move || {
                    if let Some(got) = read_request(&mut stream) {
                        list.lock().unwrap().push(got.clone());
                        answer(&got, &mut stream);
                    }
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { host, got, ends }
    }

    /// How many requests for something came.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.got.lock().unwrap().iter().filter(|got| got.path.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        let _ = TcpStream::connect(&self.host);
    }
}

/// `None` for what is no HTTP, such as the first bytes of TLS.
fn read_request(stream: &mut TcpStream) -> Option<Got> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    if !reader.fill_buf().ok()?.first()?.is_ascii_alphabetic() {
        return None;
    }
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Got { method, path, headers, body })
}

/// Writes an answer with its length. A client that has gone is no error.
pub(crate) fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    let _ = stream.write_all(body);
}

/// Options with the patience of a test.
pub(crate) fn options() -> RegistryOptions {
    let mut options = RegistryOptions::default();
    options.patience = Patience {
        attempts: 4,
        first_delay: Duration::from_millis(1),
        most_delay: Duration::from_millis(10),
        most_retry_after: Duration::from_secs(2),
        ..Patience::default()
    };
    options
}

/// Options that find credentials in a file alone, and helper programs beside it.
pub(crate) fn options_with(auth: &Path) -> RegistryOptions {
    let mut options = options();
    let helpers = auth.parent().unwrap().to_str().unwrap().to_owned();
    let auth = auth.to_str().unwrap().to_owned();
    options.environment = Environment::new(move |name| match name {
        "REGISTRY_AUTH_FILE" => Some(auth.clone()),
        "PATH" => Some(helpers.clone()),
        _ => None,
    });
    options
}

pub(crate) fn client(options: RegistryOptions) -> Client {
    Client::new(options, Cancel::new())
}

pub(crate) fn place(host: &str) -> Place {
    Place::new(host, "test/app").unwrap()
}

/// Bytes that do not repeat soon.
pub(crate) fn bytes(size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}
