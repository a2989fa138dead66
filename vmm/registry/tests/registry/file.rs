//! Files of servers that cut, lie, redirect, or want credentials.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Got, Server, bytes, client, options, reply};
use nelly_registry::{
    FileCredentials, FileRequest, FileSink, FileUrl, FileVersion, Had, HostOptions, RegistryError,
    RegistryOptions,
};

const MOST: u64 = 1 << 30;

/// Keeps what comes in memory.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    version: FileVersion,
}

impl FileSink for Kept {
    fn there(&self) -> (u64, FileVersion) {
        (self.bytes.len() as u64, self.version.clone())
    }

    fn begins(&mut self, from: u64, version: &FileVersion) -> io::Result<()> {
        self.bytes.truncate(usize::try_from(from).unwrap());
        self.version = version.clone();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.bytes.extend(bytes);
        Ok(true)
    }
}

fn url(server: &Server, path: &str) -> FileUrl {
    FileUrl::parse(&format!("http://{}{path}", server.host), &RegistryOptions::default()).unwrap()
}

/// A request for a file that nothing is known of.
fn plain(url: &FileUrl) -> FileRequest<'_> {
    FileRequest { url, credentials: None, known: None, verified: false, most: MOST }
}

/// A server whose answers the test gives by the number of the request, from 0 on.
fn numbered(answer: impl Fn(usize, &Got, &mut TcpStream) + Send + Sync + 'static) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |got, stream| answer(count.fetch_add(1, Ordering::SeqCst), got, stream))
}

fn range(got: &Got) -> Option<usize> {
    got.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// Serves `file` as most servers do, up to byte `end` of it.
fn serve(file: &[u8], tag: &str, end: usize, got: &Got, stream: &mut TcpStream) {
    let size = file.len();
    let same = got.header("if-range").is_none_or(|wanted| wanted == tag);
    let (status, from) = match range(got).filter(|_| same) {
        Some(from) if from >= size => {
            let range = format!("Content-Range: bytes */{size}\r\nETag: {tag}\r\n");
            return reply(stream, "416 Range Not Satisfiable", &range, b"");
        }
        Some(from) => {
            (format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}", size - 1), from)
        }
        None => ("200 OK".to_owned(), 0),
    };
    let length = size - from;
    let _ = write!(stream, "HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {length}\r\n\r\n");
    let _ = stream.write_all(&file[from.min(end)..end]);
}

#[test]
fn a_file_that_is_cut_is_gone_on_with_in_this_call_and_in_the_next() {
    let file = Arc::new(bytes(3_000_000));
    let served = Arc::clone(&file);
    // Each answer ends a bit later; the fourth of the first call fails it.
    let server = numbered(move |number, got, stream| {
        let end = if number < 4 { 100_000 * (number + 1) } else { served.len() };
        serve(&served, "\"one\"", end, got, stream);
    });
    let (url, mut kept) = (url(&server, "/disk.raw"), Kept::default());
    let cut = client(options()).file(&plain(&url), &mut kept).unwrap_err();
    assert!(matches!(cut, RegistryError::Cut { .. }), "{cut}");
    assert_eq!(kept.bytes.len(), 400_000);
    let had = client(options()).file(&plain(&url), &mut kept).unwrap();
    assert!(kept.bytes == *file);
    let version = FileVersion { etag: Some("\"one\"".into()), last_modified: None, size: Some(3_000_000) };
    assert_eq!(had, Had::All(version.clone()));
    let asked: Vec<_> = server.got.lock().unwrap().iter().map(range).collect();
    assert_eq!(asked, [None, Some(100_000), Some(200_000), Some(300_000), Some(400_000)]);
    // All is there, and the server says so.
    assert_eq!(client(options()).file(&plain(&url), &mut kept).unwrap(), Had::All(version));
    assert!(kept.bytes == *file);
}

#[test]
fn what_changed_meanwhile_begins_anew() {
    let (old, new) = (Arc::new(bytes(200_000)), Arc::new(vec![7; 150_000]));
    let (one, two) = (Arc::clone(&old), Arc::clone(&new));
    let server = numbered(move |number, got, stream| match number {
        0 => serve(&one, "\"one\"", 100_000, got, stream),
        _ => serve(&two, "\"two\"", two.len(), got, stream),
    });
    let (url, mut kept) = (url(&server, "/x"), Kept::default());
    client(options()).file(&plain(&url), &mut kept).unwrap();
    assert!(kept.bytes == *new);

    // Without a word for its version, what came before is only believed where there is a checksum.
    for (verified, asked) in [(false, None), (true, Some(3))] {
        let server = Server::start(|got, stream| {
            assert_eq!(got.header("if-range"), None);
            match range(got) {
                Some(3) => reply(stream, "206 Partial Content", "Content-Range: bytes 3-5/6\r\n", b"def"),
                _ => reply(stream, "200 OK", "", b"abcdef"),
            }
        });
        let mut kept = Kept { bytes: b"abc".to_vec(), version: FileVersion::default() };
        let url = self::url(&server, "/x");
        let request = FileRequest { verified, ..plain(&url) };
        client(options()).file(&request, &mut kept).unwrap();
        assert_eq!(kept.bytes, b"abcdef");
        assert_eq!(range(&server.got.lock().unwrap()[0]), asked);
    }
}

#[test]
fn a_version_that_is_known_does_not_come_again() {
    let server = Server::start(|got, stream| match got.header("if-none-match") {
        Some("\"one\"") => reply(stream, "304 Not Modified", "", b""),
        _ => reply(stream, "200 OK", "ETag: \"one\"\r\n", b"abc"),
    });
    let url = url(&server, "/x");
    let mut kept = Kept::default();
    let Had::All(version) = client(options()).file(&plain(&url), &mut kept).unwrap() else { panic!("all") };
    let again = FileRequest { known: Some(&version), ..plain(&url) };
    assert_eq!(client(options()).file(&again, &mut Kept::default()).unwrap(), Had::Known);
    let other = FileVersion { etag: Some("\"two\"".into()), ..version };
    let again = FileRequest { known: Some(&other), ..plain(&url) };
    assert!(matches!(client(options()).file(&again, &mut Kept::default()).unwrap(), Had::All(_)));
}

#[test]
fn lies_about_lengths_and_ranges_are_refused() {
    type Answer = fn(usize, &Got, &mut TcpStream);
    let cases: [(&str, Answer); 8] = [
        ("was cut", |_, _, stream| {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"))
        }),
        ("more than the 1000 that are allowed", |_, _, stream| reply(stream, "200 OK", "", &[1; 1001])),
        ("more than the 1000 that are allowed", |_, _, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            // Without an end, until the client hangs up.
            while stream.write_all(b"80\r\n").is_ok()
                && stream.write_all(&[1; 128]).is_ok()
                && stream.write_all(b"\r\n").is_ok()
            {}
        }),
        ("was cut", |_, _, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        }),
        ("does not say how many bytes", |_, _, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nabc");
        }),
        ("of another file", |number, _, stream| match number {
            0 => drop(stream.write_all(b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 100\r\n\r\nabc")),
            _ => reply(stream, "206 Partial Content", "Content-Range: bytes 0-99/100\r\n", &[1; 100]),
        }),
        ("of another file", |number, _, stream| match number {
            0 => drop(stream.write_all(b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 100\r\n\r\nabc")),
            _ => reply(stream, "206 Partial Content", "Content-Range: bytes 3-99/100\r\n", &[1; 97]),
        }),
        ("of another file", |number, _, stream| match number {
            0 => drop(stream.write_all(b"HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 100\r\n\r\nabc")),
            _ => reply(
                stream,
                "206 Partial Content",
                "ETag: \"b\"\r\nContent-Range: bytes 3-99/100\r\n",
                &[1; 97],
            ),
        }),
    ];
    for (needle, answer) in cases {
        let server = numbered(answer);
        let (url, mut kept) = (url(&server, "/x"), Kept::default());
        let refused = client(options()).file(&FileRequest { most: 1000, ..plain(&url) }, &mut kept);
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(needle), "{needle}: {message}");
        assert!(kept.bytes.len() <= 1000);
    }
}

#[test]
fn credentials_go_to_their_host_alone() {
    for (words, name) in
        [("bearer sesame", "authorization"), ("header PRIVATE-TOKEN: sesame", "private-token")]
    {
        let other = Server::start(|_, stream| reply(stream, "200 OK", "", b"abc"));
        let target = format!("http://{}/there?signature=1", other.host);
        let server = Server::start(move |got, stream| match &got.path[..] {
            "/a" => reply(stream, "302 Found", "Location: b\r\n", b""),
            _ => reply(stream, "302 Found", &format!("Location: {target}\r\n"), b""),
        });
        let credentials = FileCredentials::parse(words).unwrap();
        let url = url(&server, "/a");
        let request = FileRequest { credentials: Some(&credentials), ..plain(&url) };
        let mut kept = Kept::default();
        client(options()).file(&request, &mut kept).unwrap();
        assert_eq!(kept.bytes, b"abc");
        let shown = |server: &Server| -> Vec<bool> {
            let got = server.got.lock().unwrap();
            got.iter().map(|got| got.header(name).is_some_and(|value| value.contains("sesame"))).collect()
        };
        assert_eq!((shown(&server), shown(&other)), (vec![true, true], vec![false]), "{words}");
        assert_eq!(other.got.lock().unwrap()[0].header("authorization"), None);
    }
}

#[test]
fn what_is_not_private_is_not_followed_and_gets_no_credentials() {
    let server = Server::start(|_, stream| {
        reply(stream, "302 Found", "Location: http://files.example/x\r\n", b"");
    });
    let url = url(&server, "/x");
    let error = client(options()).file(&plain(&url), &mut Kept::default()).unwrap_err().to_string();
    assert!(error.contains("files.example") && error.contains("neither encrypted"), "{error}");
    // The settings of a host allow to read from it without TLS, and no more.
    let mut options = options();
    let host = HostOptions { plain_http: true, ..HostOptions::default() };
    options.hosts.insert("files.example".to_owned(), host);
    let url = FileUrl::parse("http://files.example/x", &options).unwrap();
    let credentials = FileCredentials::Bearer("sesame".into());
    let request = FileRequest { credentials: Some(&credentials), ..plain(&url) };
    let error = client(options).file(&request, &mut Kept::default()).unwrap_err().to_string();
    assert!(error.contains("not encrypted") && !error.contains("sesame"), "{error}");
}

#[test]
fn statuses_of_files_are_told_apart() {
    for (status, requests, needle) in [
        ("401 Unauthorized", 1, "it needs credentials"),
        ("403 Forbidden", 1, "it needs credentials"),
        ("404 Not Found", 1, "does not have http://"),
        ("204 No Content", 1, "status 204"),
        ("304 Not Modified", 1, "status 304"),
        ("416 Range Not Satisfiable", 1, "status 416"),
        ("503 Service Unavailable", 4, "status 503"),
    ] {
        let server = Server::start(move |_, stream| reply(stream, status, "", b""));
        let url = url(&server, "/x?token=sesame");
        let error = client(options()).file(&plain(&url), &mut Kept::default()).unwrap_err().to_string();
        assert!(error.contains(needle) && !error.contains("sesame"), "{status}: {error}");
        assert_eq!(server.count("/x"), requests, "{status}");
    }
}
