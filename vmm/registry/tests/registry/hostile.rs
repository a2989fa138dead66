//! The client with servers that fail, lie, stall, or want tokens.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Got, Server, bytes, client, options, options_with, place, reply};
use nelly_image::{Digest, ImageName, LocalStore};
use nelly_registry::{Cancel, Client, HostOptions, Place, RegistryError, Unwatched, pull as pull_image};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const HTML: &str = "Content-Type: text/html\r\n";

fn manifest_type() -> String {
    format!("Content-Type: {MANIFEST}\r\n")
}

/// A server whose answers the test gives by the number of the request, from 0 on.
fn numbered(answer: impl Fn(usize, &Got, &mut TcpStream) + Send + Sync + 'static) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |got, stream| answer(count.fetch_add(1, Ordering::SeqCst), got, stream))
}

/// Pulls a blob; what came, and the result.
fn pull(client: &Client, place: &Place, blob: &[u8]) -> (Vec<u8>, Result<(), RegistryError>) {
    let mut came: Vec<u8> = Vec::new();
    let mut sink = |bytes: &[u8]| {
        came.extend(bytes);
        true
    };
    let done = client.blob(place, &Digest::sha256(blob), blob.len() as u64, 0, &mut sink);
    (came, done)
}

/// The first byte that a request wants.
fn wanted(got: &Got) -> usize {
    let range = got.header("range").map_or("0-", |range| range.strip_prefix("bytes=").unwrap());
    range.strip_suffix('-').unwrap().parse().unwrap()
}

#[test]
fn a_blob_that_is_cut_is_resumed_with_and_without_ranges() {
    for ranges in [true, false] {
        let blob = Arc::new(bytes(3_000_000));
        let served = Arc::clone(&blob);
        let server = numbered(move |number, got, stream| {
            let from = if ranges { wanted(got) } else { 0 };
            let status = if from > 0 {
                let last = served.len() - 1;
                format!("206 Partial Content\r\nContent-Range: bytes {from}-{last}/{}", served.len())
            } else {
                "200 OK".to_owned()
            };
            // The first answers end early, after more bytes each time.
            let end = served.len().min((number + 1) * 800_000);
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", served.len() - from);
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&served[from.min(end)..end]);
        });
        let (came, done) = pull(&client(options()), &place(&server.host), &blob);
        done.unwrap();
        assert!(came == **blob, "ranges: {ranges}");
        assert_eq!(server.count("/blobs/"), 4, "ranges: {ranges}");
    }
}

#[test]
fn cuts_without_progress_come_to_an_end() {
    let server = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
    });
    let (came, done) = pull(&client(options()), &place(&server.host), &bytes(100));
    assert!(matches!(done, Err(RegistryError::Cut { .. })), "{done:?}");
    assert_eq!((came.len(), server.count("/blobs/")), (3, 4));
}

#[test]
fn bytes_beyond_the_size_and_other_ranges_are_refused() {
    type Answer = fn(usize, &Got, &mut TcpStream);
    let cases: [(&str, Answer); 5] = [
        ("the size is 100 bytes, but 99 come", |_, _, stream| reply(stream, "200 OK", "", &[1; 99])),
        ("the size is 100 bytes, but 101 come", |_, _, stream| reply(stream, "200 OK", "", &[1; 101])),
        ("more than 100 bytes", |_, _, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            // Without an end, until the client hangs up.
            while stream.write_all(b"80\r\n").is_ok()
                && stream.write_all(&[1; 128]).is_ok()
                && stream.write_all(b"\r\n").is_ok()
            {}
        }),
        ("it sends the range `bytes 0-99/100`", |number, _, stream| match number {
            0 => drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")),
            _ => reply(stream, "206 Partial Content", "Content-Range: bytes 0-99/100\r\n", &[1; 100]),
        }),
        ("status 204", |_, _, stream| reply(stream, "204 No Content", "", b"")),
    ];
    for (needle, answer) in cases {
        let server = numbered(answer);
        let (came, done) = pull(&client(options()), &place(&server.host), &bytes(100));
        let message = done.unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
        assert!(came.len() <= 100);
    }
}

#[test]
fn statuses_are_told_apart_and_tried_again_where_that_helps() {
    for (status, headers, requests, needle) in [
        ("401 Unauthorized", "", 1, "nelly login"),
        ("403 Forbidden", "", 1, "nelly login"),
        ("404 Not Found", "", 1, "does not have the manifest"),
        ("400 Bad Request", "", 1, "status 400"),
        ("418 Teapot", "", 1, "status 418"),
        ("500 Internal Server Error", "", 4, "status 500"),
        ("503 Service Unavailable", "Retry-After: 0\r\n", 4, "status 503"),
        ("429 Too Many Requests", "Retry-After: 0\r\n", 4, "for now"),
        ("429 Too Many Requests", "Retry-After: 3600\r\n", 1, "3600 seconds"),
        ("429 Too Many Requests", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT\r\n", 1, "seconds"),
    ] {
        let body = br#"{"errors":[{"code":"X","message":"the reg\u001bistry's words"}]}"#;
        let server = Server::start(move |_, stream| reply(stream, status, headers, body));
        let error = client(options()).manifest(&place(&server.host), "1").unwrap_err();
        let message = error.to_string();
        assert!(message.contains(needle) && message.contains("reg istry's words"), "{status}: {message}");
        assert_eq!(server.count("/manifests/"), requests, "{status} {headers}");
    }
}

#[test]
fn a_registry_that_recovers_is_waited_for() {
    let server = numbered(|number, _, stream| match number {
        0 => reply(stream, "429 Too Many Requests", "Retry-After: 1\r\n", b""),
        1 => reply(stream, "502 Bad Gateway", HTML, b"<html>"),
        2 => {} // hangs up
        _ => reply(stream, "200 OK", &manifest_type(), b"{}"),
    });
    let found = client(options()).manifest(&place(&server.host), "1").unwrap();
    assert_eq!((found.bytes, server.count("/manifests/")), (b"{}".to_vec(), 4));
}

#[test]
fn manifests_that_are_not_what_they_should_be_are_refused() {
    let digest = Digest::sha256(b"{}");
    let other = Digest::sha256(b"other");
    let announced = format!("{}Docker-Content-Digest: {other}\r\n", manifest_type());
    let conflict = r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#;
    let table: Vec<(String, String, Vec<u8>, &str)> = vec![
        (digest.to_string(), manifest_type(), b"{ }".to_vec(), "do not have the digest"),
        ("1".into(), announced, b"{}".to_vec(), "do not have the digest"),
        ("1".into(), manifest_type(), b"junk".to_vec(), "no JSON"),
        ("1".into(), manifest_type(), conflict.into(), "by its contents"),
        ("1".into(), String::new(), b"{}".to_vec(), "`none`"),
        ("1".into(), manifest_type(), vec![b' '; (4 << 20) + 1], "more than 4194304 bytes"),
        ("1".into(), format!("X: {}\r\n", "x".repeat(64 << 10)), b"{}".to_vec(), "header"),
    ];
    for (reference, headers, body, needle) in table {
        let server = Server::start(move |_, stream| reply(stream, "200 OK", &headers, &body));
        let message = client(options()).manifest(&place(&server.host), &reference).unwrap_err().to_string();
        assert!(message.contains(needle), "{needle}: {message}");
    }
    // A body without an end is not read to its end either.
    let server = Server::start(|_, stream| {
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{}\r\n", manifest_type()).as_bytes());
        while stream.write_all(&[b' '; 4096]).is_ok() {}
    });
    let message = client(options()).manifest(&place(&server.host), "1").unwrap_err().to_string();
    assert!(message.contains("more than 4194304 bytes"), "{message}");
    for word in ["../x", "a/b", "sha256:12", ""] {
        let error = client(options()).manifest(&place(&server.host), word).unwrap_err();
        assert!(matches!(error, RegistryError::Name { .. }), "{error:?}");
    }
}

#[test]
fn redirects_carry_no_credentials_to_other_hosts_and_have_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let auth = directory.path().join("auth.json");
    let blob = Arc::new(bytes(1000));
    let served = Arc::clone(&blob);
    let other = Server::start(move |_, stream| reply(stream, "200 OK", "", &served));
    let target = other.host.clone();
    let server = Server::start(move |got, stream| match got.header("authorization") {
        None => reply(stream, "401 Unauthorized", "WWW-Authenticate: Basic realm=x\r\n", b""),
        Some(_) => reply(stream, "307 Temporary Redirect", &format!("Location: http://{target}/b\r\n"), b""),
    });
    let login = client(options_with(&auth));
    login.credentials().login(&server.host, "user", "secret").unwrap();
    let (came, done) = pull(&login, &place(&server.host), &blob);
    done.unwrap();
    assert!(came == **blob);
    assert!(server.got.lock().unwrap().iter().any(|got| got.header("authorization").is_some()));
    assert!(other.got.lock().unwrap().iter().all(|got| got.header("authorization").is_none()));

    for (location, needle) in
        [("/v2/again", "more than 5 times"), ("ftp://x/", "no URL to follow"), ("", "no URL to follow")]
    {
        let server = Server::start(move |_, stream| {
            reply(stream, "302 Found", &format!("Location: {location}\r\n"), b"");
        });
        let message = client(options()).manifest(&place(&server.host), "1").unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
        assert!(server.got.lock().unwrap().len() <= 6);
    }
}

/// A registry that wants a token of `/token`, which wants `user` and `secret` if `login` is set.
fn token_registry(login: bool, short_lived: bool) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |got, stream| {
        let host = got.header("host").unwrap_or_default();
        if got.path.starts_with("/token") {
            // user:secret
            if login && got.header("authorization") != Some("Basic dXNlcjpzZWNyZXQ=") {
                return reply(stream, "401 Unauthorized", "", b"{\"details\":\"wrong password\"}");
            }
            assert!(got.path.contains("service=test") && got.path.contains("scope=repository:test/app:pull"));
            let token = format!("{{\"token\":\"t{}\"}}", count.fetch_add(1, Ordering::SeqCst));
            return reply(stream, "200 OK", "", token.as_bytes());
        }
        let tokens = count.load(Ordering::SeqCst);
        let newest = format!("Bearer t{}", tokens.wrapping_sub(1));
        if tokens == 0 || got.header("authorization") != Some(&newest) {
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"test\"\r\n");
            return reply(stream, "401 Unauthorized", &challenge, b"");
        }
        if short_lived {
            // The token is good once.
            count.fetch_add(1, Ordering::SeqCst);
        }
        reply(stream, "200 OK", &manifest_type(), b"{}");
    })
}

#[test]
fn tokens_are_fetched_reused_and_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let auth = directory.path().join("auth.json");
    for (login, short_lived, tokens) in [(false, false, 1), (true, false, 1), (true, true, 3)] {
        let server = token_registry(login, short_lived);
        let client = client(options_with(&auth));
        if login {
            let denied = client.manifest(&place(&server.host), "1").unwrap_err().to_string();
            assert!(denied.contains("wrong password"), "{denied}");
            client.credentials().login(&server.host, "user", "secret").unwrap();
        }
        let before = server.count("/token");
        for _ in 0..3 {
            client.manifest(&place(&server.host), "1").unwrap();
        }
        assert_eq!(server.count("/token") - before, tokens);
    }
}

#[test]
fn an_identity_token_buys_others() {
    let directory = tempfile::tempdir().unwrap();
    let auth = directory.path().join("auth.json");
    let server = Server::start(|got, stream| {
        let host = got.header("host").unwrap_or_default();
        match (got.path.as_str(), got.header("authorization")) {
            ("/token", None) => {
                let form = String::from_utf8(got.body.clone()).unwrap();
                assert_eq!(got.method, "POST");
                assert!(
                    form.contains("grant_type=refresh_token") && form.contains("refresh_token=id%2B1"),
                    "{form}"
                );
                reply(stream, "200 OK", "", b"{\"access_token\":\"a\"}");
            }
            (_, Some("Bearer a")) => reply(stream, "200 OK", &manifest_type(), b"{}"),
            _ => {
                let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"\r\n");
                reply(stream, "401 Unauthorized", &challenge, b"");
            }
        }
    });
    let config = format!("{{\"auths\":{{\"{}\":{{\"identitytoken\":\"id+1\"}}}}}}", server.host);
    std::fs::write(&auth, config).unwrap();
    client(options_with(&auth)).manifest(&place(&server.host), "1").unwrap();
}

#[test]
fn token_servers_and_tokens_that_are_none_are_refused() {
    for (realm, token, needle) in [
        ("file:///etc/passwd", "", "no URL of HTTP"),
        ("ftp://127.0.0.1/token", "", "no URL of HTTP"),
        ("", "", "no URL of HTTP"),
        ("http://HOST/token", "{}", "no JSON with a token"),
        ("http://HOST/token", "junk", "no JSON with a token"),
        ("http://HOST/token", "{\"token\":\"a\\r\\nX: y\"}", "no JSON with a token"),
        ("http://HOST/token", "{\"token\":\"good\"}", "nelly login"),
    ] {
        let server = Server::start(move |got, stream| {
            if got.path.starts_with("/token") {
                return reply(stream, "200 OK", "", token.as_bytes());
            }
            let realm = realm.replace("HOST", got.header("host").unwrap_or_default());
            reply(
                stream,
                "401 Unauthorized",
                &format!("WWW-Authenticate: Bearer realm=\"{realm}\"\r\n"),
                b"",
            );
        });
        let message = client(options()).manifest(&place(&server.host), "1").unwrap_err().to_string();
        assert!(message.contains(needle), "{realm} {token}: {message}");
        assert!(server.count("/manifests/") <= 2);
    }
}

#[test]
fn what_stands_still_is_given_up() {
    let mut impatient = options();
    // Longer than a busy machine takes to answer, or the drips would count as no answer.
    impatient.patience.stall = Duration::from_millis(700);
    impatient.patience.attempts = 2;
    let server = Server::start(|got, stream| {
        if got.path.contains("/blobs/") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
            // A byte now and then is standing still as well.
            while stream.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        } else {
            // No answer at all, until the client hangs up.
            let _ = std::io::Read::read(stream, &mut [0]);
        }
    });
    let silent = client(impatient.clone()).manifest(&place(&server.host), "1").unwrap_err();
    assert!(matches!(silent, RegistryError::Connect { .. }), "{silent:?}");
    let (_, drips) = pull(&client(impatient), &place(&server.host), &bytes(100_000));
    assert!(matches!(drips, Err(RegistryError::Cut { .. })), "{drips:?}");
}

#[test]
fn a_transfer_ends_when_it_is_cancelled() {
    let cancel = Cancel::new();
    let inner = cancel.clone();
    let server = Server::start(move |got, stream| {
        if got.path.contains("/blobs/") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc");
            inner.cancel();
            let _ = std::io::Read::read(stream, &mut [0]);
        } else {
            reply(stream, "429 Too Many Requests", "Retry-After: 1\r\n", b"");
        }
    });
    let client = Client::new(options(), cancel);
    let (came, done) = pull(&client, &place(&server.host), &bytes(100));
    assert!(matches!(done, Err(RegistryError::Cancelled)), "{done:?}");
    assert!(came.len() <= 3);
    // So does what comes later, at once.
    assert!(matches!(client.manifest(&place(&server.host), "1"), Err(RegistryError::Cancelled)));
}

#[test]
fn mirrors_are_asked_first_and_the_registry_when_they_fail() {
    let good = Server::start(|got, stream| {
        let body = if got.path.contains("/blobs/") { bytes(1000) } else { b"{}".to_vec() };
        reply(stream, "200 OK", &manifest_type(), &body);
    });
    let empty = Server::start(|_, stream| reply(stream, "404 Not Found", "", b""));
    let mut mirrored = options();
    let host = HostOptions {
        mirrors: vec![empty.host.clone(), format!("http://{}/hub", good.host)],
        ..HostOptions::default()
    };
    mirrored.hosts.insert("registry.invalid".to_owned(), host);
    let asking = client(mirrored.clone());
    let found = asking.manifest(&place("registry.invalid"), "1").unwrap();
    assert_eq!(found.bytes, b"{}");
    // The first did not help: that is said once, with its reason.
    let warnings = asking.take_warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for word in [&empty.host[..], "registry.invalid", "does not have the manifest test/app:1"] {
        assert!(warnings[0].contains(word), "{word}: {warnings:?}");
    }
    // The rest of the pull does not ask it again, the next pull does.
    let blob = bytes(1000);
    for _ in 0..3 {
        let (came, done) = pull(&asking, &place("registry.invalid"), &blob);
        done.unwrap();
        assert!(came == blob);
    }
    let asked =
        |server: &Server, path: &str| server.count(&format!("{path}/blobs/{}", Digest::sha256(&blob)));
    assert_eq!((asked(&empty, "/v2/test/app"), asked(&good, "/v2/hub/test/app")), (0, 3));
    asking.manifest(&place("registry.invalid"), "1").unwrap();
    assert!(asking.take_warnings().is_empty());
    assert_eq!((empty.count("/v2/test/app/manifests/1"), good.count("/v2/hub/test/app/manifests/1")), (2, 2));
    mirrored.hosts.get_mut("registry.invalid").unwrap().mirrors.pop();
    let message = client(mirrored).manifest(&place("registry.invalid"), "1").unwrap_err().to_string();
    assert!(message.contains("registry.invalid"), "{message}");
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let proxy = Server::start(|got, stream| {
        assert_eq!((&got.method[..], &got.path[..]), ("CONNECT", "registry.invalid:443"));
        reply(stream, "403 Forbidden", "", b"");
    });
    let mut proxied = options();
    let url = format!("http://{}", proxy.host);
    proxied.environment =
        nelly_registry::Environment::new(move |name| (name == "HTTPS_PROXY").then(|| url.clone()));
    let message = client(proxied).manifest(&place("registry.invalid"), "1").unwrap_err().to_string();
    assert!(message.contains("registry.invalid"), "{message}");
    assert!(proxy.count("registry.invalid:443") >= 1);
}

#[test]
fn what_the_disk_has_no_room_for_is_not_fetched() {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        _ => "arm64",
    };
    let layer = Digest::sha256(b"no layer");
    let config = format!(
        "{{\"architecture\":\"{architecture}\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{layer}\"]}}}}"
    );
    let told = |size: u64| {
        let (digest, config_size) = (Digest::sha256(config.as_bytes()), config.len());
        format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST}\",\
             \"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{digest}\",\"size\":{config_size}}},\
             \"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"{layer}\",\"size\":{size}}}]}}"
        )
    };
    // The smaller of two disks: an image may have 64 GiB.
    let free = |path: &Path| {
        let output = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().map(|word| word.parse::<u64>().unwrap()).product::<u64>()
    };
    let places = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    let place = tempfile::tempdir_in(places.iter().min_by_key(|place| free(place)).unwrap()).unwrap();
    let size = free(place.path());
    let (manifest, served) = (told(size), config.clone());
    let server = Server::start(move |got, stream| match got.path.contains("/manifests/") {
        true => reply(stream, "200 OK", &manifest_type(), manifest.as_bytes()),
        false => reply(stream, "200 OK", "", served.as_bytes()),
    });
    let store = LocalStore::open(place.path().join("images")).unwrap();
    let name: ImageName = format!("{}/test/app", server.host).parse().unwrap();
    let error = pull_image(&client(options()), &store, &name, None, &mut Unwatched).unwrap_err();
    let (message, code) = (error.to_string(), error.code());
    assert!(code == "no_room" && message.contains(&size.to_string()), "{code}: {message}");
    assert!(message.contains(store.path().to_str().unwrap()), "{message}");
    assert_eq!(server.count("/blobs/"), 1, "the configuration");
    assert!(store.list().unwrap().is_empty());
}
