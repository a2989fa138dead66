//! Answers of a registry, of its token server and of where it leads to, to the client that pulls:
//! headers, challenges, redirections, bodies that end too early.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nelly_image::Digest;
use nelly_registry::{Cancel, Client, Environment, HostOptions, Patience, Place, RegistryOptions};

use super::place::Place as Directory;
use super::{spelt, text};

/// What the blob holds that is asked for; as a manifest, too.
const BLOB: &str = "{\"a\":\"what it holds!\"}";
/// Name and password for the registry, as a header has them.
const SECRET: &str = "dXNlcjpzZWNyZXQ=";
/// Stand for this server, for another one, for the blob's digest, and for the blob.
const SELF: &str = "{S}";
const OTHER: &str = "{O}";
const DIGEST: &str = "{D}";
const CONTENTS: &str = "{B}";

const WORDS: &[&str] = &[
    "{S}",
    "{O}",
    "{D}",
    "{B}",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 401 Unauthorized\r\n",
    "HTTP/1.1 307 Temporary Redirect\r\n",
    "HTTP/1.1 206 Partial Content\r\n",
    "HTTP/1.1 404 Not Found\r\n",
    "HTTP/1.1 429 Too Many Requests\r\n",
    "HTTP/1.1 503 Service Unavailable\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 ",
    "Content-Length: ",
    "Content-Type: ",
    "Content-Range: bytes ",
    "Content-Encoding: gzip\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Docker-Content-Digest: ",
    "Docker-Distribution-Api-Version: registry/2.0\r\n",
    "WWW-Authenticate: ",
    "Bearer realm=\"",
    "\",service=\"",
    "\",scope=\"",
    "Basic realm=\"x\"",
    "Location: ",
    "Retry-After: ",
    "Connection: close\r\n",
    "Set-Cookie: a=b\r\n",
    "Fri, 31 Dec 2100 23:59:59 GMT",
    "\r\n",
    "\r\n\r\n",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "{\"token\":\"",
    "{\"access_token\":\"",
    "\"}",
    "{\"errors\":[{\"code\":\"",
    "\",\"message\":\"",
    "\"}]}",
    "DENIED",
    "/v2/",
    "/token",
    "blobs/",
    "manifests/",
    "http://",
    "https://",
    "repository:a/b:pull",
    "18446744073709551615",
    "-1",
    "0-21/22",
    "0\r\n\r\n",
    "16\r\n",
    "ffffffffffffffff\r\n",
    "22",
    "{}",
    "sha256:",
    "{\"schemaVersion\":2,\"config\":{},\"layers\":[]}",
    "%2f..%2f",
    "//",
    "@",
    "\u{1b}[2J",
    "\0",
    "\u{e9}",
];

/// The first byte chooses what is asked for; behind it come the answers in their order, with the
/// byte 255 between them.
///
/// # Panics
/// When what came is not what was promised, or the password reaches a server that nobody named for
/// tokens.
pub fn run(data: &[u8]) {
    let _ = pulls(data);
}

/// As [`run`]; whether it got what it asked for.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn pulls(data: &[u8]) -> bool {
    let Some((choice, rest)) = data.split_first() else { return false };
    let (own, other) = (Server::new(), Server::new());
    let digest = Digest::sha256(BLOB.as_bytes());
    let named = |bytes: &[u8]| {
        text(bytes, WORDS)
            .replace(SELF, &own.authority)
            .replace(OTHER, &other.authority)
            .replace(DIGEST, &digest.to_string())
            .replace(CONTENTS, BLOB)
    };
    let answers: Vec<String> =
        rest[..rest.len().min(8192)].split(|byte| *byte == 255).map(named).take(12).collect();
    let asks_for_tokens = answers.iter().any(|answer| answer.to_ascii_lowercase().contains("realm"));
    let home = Directory::new("registry");
    std::fs::write(
        home.tree().join("config.json"),
        format!(r#"{{"auths":{{"{}":{{"auth":"{SECRET}"}}}}}}"#, own.authority),
    )
    .expect("there is room");
    let answers = Mutex::new(answers.into_iter());
    let ended = AtomicBool::new(false);
    let got = std::thread::scope(|scope| {
        scope.spawn(|| own.serve(&answers, &ended));
        scope.spawn(|| other.serve(&answers, &ended));
        let got = ask(*choice, &own.authority, &home, &digest);
        ended.store(true, Ordering::SeqCst);
        // Both wait for a connection.
        for server in [&own, &other] {
            let _ = TcpStream::connect(&server.authority);
        }
        got
    });
    let heard = other.heard.lock().expect("nobody panics with it");
    assert!(asks_for_tokens || !heard.contains(SECRET), "the password went elsewhere: {heard}");
    got.is_some()
}

fn ask(choice: u8, authority: &str, home: &Directory, digest: &Digest) -> Option<()> {
    let directory = home.tree().to_string_lossy().into_owned();
    let mut options = RegistryOptions::default();
    options.hosts.insert(authority.to_owned(), HostOptions { plain_http: true, ..HostOptions::default() });
    options.environment = Environment::new(|name| (name == "DOCKER_CONFIG").then(|| directory.clone()));
    options.patience = Patience {
        attempts: 2,
        first_delay: Duration::ZERO,
        most_delay: Duration::ZERO,
        most_retry_after: Duration::ZERO,
        connect: Duration::from_secs(5),
        stall: Duration::from_secs(5),
    };
    let client = Client::new(options, Cancel::new());
    let place = Place::new(authority, "a/b").expect("a place");
    let clean = |text: &str| assert!(!text.chars().any(|c| c.is_control()), "for a terminal: {text:?}");
    let got = match choice % 3 {
        0 => client.manifest(&place, "latest").map(|manifest| {
            assert!(manifest.digest.matches(&manifest.bytes), "its digest is its own");
        }),
        1 => client
            .manifest(&place, &digest.to_string())
            .map(|manifest| assert_eq!(manifest.bytes, BLOB.as_bytes())),
        _ => {
            let mut bytes = Vec::new();
            let size = BLOB.len() as u64;
            let got = client.blob(&place, digest, size, 0, &mut |piece| {
                bytes.extend_from_slice(piece);
                true
            });
            assert!(bytes.len() <= BLOB.len(), "no more than was asked for");
            got.map(|()| assert_eq!(bytes.len(), BLOB.len(), "all that was asked for"))
        }
    };
    client.take_warnings().iter().for_each(|warning| clean(warning));
    got.inspect_err(|error| clean(&error.to_string())).ok()
}

struct Server {
    listener: TcpListener,
    authority: String,
    heard: Mutex<String>,
}

impl Server {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let authority = listener.local_addr().expect("an address").to_string();
        Self { listener, authority, heard: Mutex::default() }
    }

    /// Gives each connection the next answer, and ends it.
    fn serve(&self, answers: &Mutex<std::vec::IntoIter<String>>, ended: &AtomicBool) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            if ended.load(Ordering::SeqCst) {
                return;
            }
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(some) if some > 0 && request.len() < 1 << 20 => {
                        request.extend_from_slice(&buffer[..some])
                    }
                    _ => break,
                }
            }
            self.heard.lock().expect("nobody panics with it").push_str(&String::from_utf8_lossy(&request));
            let answer = answers.lock().expect("nobody panics with it").next().unwrap_or_default();
            // A client that has gone is no matter.
            let _ = stream.write_all(answer.as_bytes());
        }
    }
}

/// A manifest; one behind a token and a redirection; a blob that comes in two parts; refusals.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let manifest = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: 43\r\n\r\n{\"schemaVersion\":2,\"config\":{},\"layers\":[]}";
    let blob = "HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{B}";
    let token = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{O}/token\",service=\"x\",scope=\"repository:a/b:pull\"\r\nContent-Length: 0\r\n\r\n";
    let given = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"token\":\"a\"}";
    let basic =
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
    let moved =
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{O}/v2/a/b/blobs/x\r\nContent-Length: 0\r\n\r\n";
    let typed = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json\r\nContent-Length: 22\r\n\r\n{B}";
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"a\":\"w";
    let rest = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 7-21/22\r\nContent-Length: 15\r\n\r\nhat it holds!\"}";
    let denied = "HTTP/1.1 404 Not Found\r\nContent-Length: 54\r\n\r\n{\"errors\":[{\"code\":\"DENIED\",\"message\":\"\u{1}no such thing\"}]}";
    let all = |choice: u8, answers: &[&str]| {
        let answers: Vec<_> = answers.iter().map(|answer| spelt(answer, WORDS)).collect();
        [&[choice][..], &answers.join(&255)].concat()
    };
    vec![
        all(0, &[manifest]),
        all(1, &[token, given, typed]),
        all(2, &[basic, moved, blob]),
        all(2, &[cut, rest]),
        all(0, &[denied]),
    ]
}
