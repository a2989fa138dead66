//! Disks from a server of this test's own: the cache, checksums, interruptions, and what is no
//! disk.
//! What is packed is tested where the unpacker is (vmm/unpack, vmm/cli).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nelly_fetch::{DiskCache, DiskFormat, FetchError, Fetcher, Packing, Source, Unwatched, Wanted};
use nelly_image::{Digest, Unpacker};
use nelly_registry::{Cancel, Client, Patience, RegistryOptions};

/// What a test's server has: bytes and their tag, and after how many bytes an answer is cut.
#[derive(Clone)]
struct Served {
    bytes: Vec<u8>,
    tag: Option<&'static str>,
    cut: usize,
}

/// Requests that came, each with its range and its condition.
type Asked = Mutex<Vec<(Option<String>, Option<String>)>>;

/// A server of one file.
struct Server {
    port: u16,
    served: Arc<Mutex<Served>>,
    asked: Arc<Asked>,
}

impl Server {
    fn start(bytes: &[u8], tag: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = Arc::new(Mutex::new(Served { bytes: bytes.to_vec(), tag, cut: usize::MAX }));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (file, log) = (Arc::clone(&served), Arc::clone(&asked));
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(&stream, &file.lock().unwrap().clone(), &log);
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Self { port, served, asked }
    }

    fn source(&self, name: &str) -> Source {
        let url = format!("http://127.0.0.1:{}/{name}", self.port);
        Source::parse(&url, &RegistryOptions::default()).unwrap()
    }

    fn serve(&self, change: impl FnOnce(&mut Served)) {
        change(&mut self.served.lock().unwrap());
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn answer(mut stream: &TcpStream, served: &Served, log: &Asked) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let (mut range, mut condition, mut if_range) = (None, None, None);
    while let Some(Ok(line)) = lines.next() {
        match line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())) {
            Some((name, value)) if name == "range" => range = Some(value),
            Some((name, value)) if name == "if-none-match" => condition = Some(value),
            Some((name, value)) if name == "if-range" => if_range = Some(value),
            Some(_) => {}
            None if line.is_empty() => break,
            None => {}
        }
    }
    log.lock().unwrap().push((range.clone(), condition.clone()));
    let tag = served.tag.map(|tag| format!("ETag: {tag}\r\n")).unwrap_or_default();
    if condition.is_some() && condition.as_deref() == served.tag {
        let _ = write!(stream, "HTTP/1.1 304 Not Modified\r\n{tag}\r\n");
        return;
    }
    let size = served.bytes.len();
    let same = if_range.is_none() || if_range.as_deref() == served.tag;
    let from = range.filter(|_| same).map_or(0, |range| range[6..range.len() - 1].parse().unwrap());
    let status = match from {
        0 => "200 OK".to_owned(),
        from => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}", size - 1),
    };
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{tag}Content-Length: {}\r\n\r\n", size - from);
    let end = size.min(from.saturating_add(served.cut));
    let _ = stream.write_all(&served.bytes[from..end]);
}

struct Place {
    directory: tempfile::TempDir,
    client: Client,
    unpacker: Unpacker,
}

impl Place {
    fn new() -> Self {
        let mut options = RegistryOptions::default();
        let (first_delay, most_delay) = (Duration::from_millis(1), Duration::from_millis(10));
        options.patience = Patience { attempts: 2, first_delay, most_delay, ..Patience::default() };
        Self {
            directory: tempfile::tempdir().unwrap(),
            client: Client::new(options, Cancel::new()),
            unpacker: Unpacker::at(vec!["/nowhere/nelly-unpack".into()]),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn fetcher(&self) -> Fetcher<'_> {
        Fetcher { client: &self.client, unpacker: &self.unpacker }
    }

    fn cache(&self) -> DiskCache {
        DiskCache::at(self.path("disks"))
    }

    fn save(&self, wanted: &Wanted<'_>, name: &str) -> Result<Digest, FetchError> {
        self.fetcher().save(wanted, &self.path(name), &mut Unwatched).map(|saved| saved.sha256)
    }

    /// The files in a directory, and below those of the cache.
    fn files(&self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        files(&self.path(name), &mut found);
        found.sort();
        found
    }
}

fn files(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
}

fn wanted(source: &Source) -> Wanted<'_> {
    Wanted {
        source,
        credentials: None,
        checksum: None,
        packing: None,
        member: None,
        most: 1 << 30,
        disk: true,
    }
}

/// A disk that begins as none of the formats does.
fn disk(seed: u8) -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 251).to_le_bytes()[0] ^ seed).collect()
}

#[test]
fn a_version_is_fetched_once_and_never_replaced() {
    let (place, one, two) = (Place::new(), disk(1), disk(2));
    let server = Server::start(&one, Some("\"1\""));
    let source = server.source("debian.img?token=x");
    let pull = || place.cache().pull(&place.fetcher(), &wanted(&source), None, &mut Unwatched).unwrap();
    assert_eq!(place.cache().find(&source, None, None).unwrap(), None);
    let first = pull();
    assert_eq!((first.format, first.fresh, first.sha256), (DiskFormat::Raw, true, Digest::sha256(&one)));
    let name = first.path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(name, format!("debian-{}.raw", Digest::sha256(&one).hex()));
    assert!(fs::read(&first.path).unwrap() == one);
    assert_eq!(fs::metadata(&first.path).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(place.files("disks"), [name.clone(), "entry.json".to_owned()]);
    // The server is asked whether it has another one; whoever only wants it asks nobody.
    assert!(!pull().fresh);
    assert_eq!(server.asked.lock().unwrap()[1].1.as_deref(), Some("\"1\""));
    let found = place.cache().find(&source, None, None).unwrap().unwrap();
    assert_eq!((found.path.clone(), server.asked()), (first.path.clone(), 2));
    // A checksum that it has asks nobody either.
    let sum = Digest::sha256(&one);
    let checked = Wanted { checksum: Some(&sum), ..wanted(&source) };
    assert!(!place.cache().pull(&place.fetcher(), &checked, None, &mut Unwatched).unwrap().fresh);
    assert_eq!(server.asked(), 2);
    // Another one is not satisfied by what the server says is unchanged.
    let wrong = Digest::sha256(&two);
    let checked = Wanted { checksum: Some(&wrong), ..wanted(&source) };
    let error = place.cache().pull(&place.fetcher(), &checked, None, &mut Unwatched).unwrap_err();
    assert_eq!((error.code(), server.asked()), ("checksum_mismatch", 3));

    server.serve(|served| (served.bytes, served.tag) = (two.clone(), Some("\"2\"")));
    let second = pull();
    assert!(second.fresh && second.path != first.path);
    assert!(fs::read(&first.path).unwrap() == one && fs::read(&second.path).unwrap() == two);
    // The old one's checksum is not that of the newest.
    assert_eq!(place.cache().find(&source, None, Some(&sum)).unwrap(), None);
    // The same bytes by another tag are the same version.
    server.serve(|served| served.tag = Some("\"3\""));
    let third = pull();
    assert_eq!((third.path, third.fresh), (second.path, false));
    assert_eq!(place.files("disks").len(), 3);
}

#[test]
fn an_interrupted_one_is_gone_on_with_and_only_its_part_stays() {
    let (place, disk) = (Place::new(), disk(3));
    let server = Server::start(&disk, Some("\"1\""));
    let source = server.source("x.raw");
    server.serve(|served| served.cut = 100_000);
    // Two attempts bring 200,000 bytes.
    let cut = place.save(&wanted(&source), "x.raw").unwrap_err();
    assert_eq!(cut.code(), "registry_cut", "{cut}");
    let left = || fs::read_dir(place.directory.path()).unwrap().count();
    assert_eq!((left(), fs::metadata(place.path("x.raw.part")).unwrap().len()), (2, 200_000));
    assert_eq!(fs::metadata(place.path("x.raw.part.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.save(&wanted(&source), "x.raw").unwrap(), Digest::sha256(&disk));
    assert_eq!(server.asked.lock().unwrap()[2].0.as_deref(), Some("bytes=200000-"));
    assert!(fs::read(place.path("x.raw")).unwrap() == disk && left() == 1);
    // A file is never replaced, and nobody is asked then.
    let before = server.asked();
    assert!(matches!(place.save(&wanted(&source), "x.raw"), Err(FetchError::Exists(_))));
    assert_eq!(server.asked(), before);
    // The part of another URL is not gone on with.
    fs::write(place.path("y.raw.part"), b"other").unwrap();
    fs::write(
        place.path("y.raw.part.json"),
        r#"{"url":"http://127.0.0.1:1/y","etag":"\"1\"","size":300000}"#,
    )
    .unwrap();
    server.serve(|served| served.cut = usize::MAX);
    place.save(&wanted(&source), "y.raw").unwrap();
    assert!(fs::read(place.path("y.raw")).unwrap() == disk);
    // Nor is a link that somebody put in its way followed.
    std::os::unix::fs::symlink(place.path("victim"), place.path("z.raw.part")).unwrap();
    assert_eq!(place.save(&wanted(&source), "z.raw").unwrap_err().code(), "io");
    assert!(!place.path("victim").exists());
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    let (place, disk) = (Place::new(), disk(4));
    let server = Server::start(&disk, None);
    let source = server.source("x.raw");
    let wrong = Digest::sha256(b"other");
    let checked = Wanted { checksum: Some(&wrong), ..wanted(&source) };
    let error = place.save(&checked, "x.raw").unwrap_err();
    let found = Digest::sha256(&disk).to_string();
    assert!(error.to_string().contains(&found) && error.code() == "checksum_mismatch", "{error}");
    assert_eq!(fs::read_dir(place.directory.path()).unwrap().count(), 0);
    let error = place.cache().pull(&place.fetcher(), &checked, None, &mut Unwatched).unwrap_err();
    assert_eq!((error.code(), place.files("disks")), ("checksum_mismatch", Vec::<String>::new()));
    // SHA-512, too.
    let long = "sha512:".to_owned() + &"0".repeat(128);
    let long: Digest = long.parse().unwrap();
    let checked = Wanted { checksum: Some(&long), ..wanted(&source) };
    assert!(place.save(&checked, "x.raw").unwrap_err().to_string().contains("sha512:"));
    // A file of this host stays, whatever it has.
    fs::write(place.path("own.raw"), &disk).unwrap();
    let own = Source::File(place.path("own.raw"));
    let checked = Wanted { checksum: Some(&wrong), ..wanted(&own) };
    assert_eq!(place.save(&checked, "x.raw").unwrap_err().code(), "checksum_mismatch");
    assert!(fs::read(place.path("own.raw")).unwrap() == disk);
}

/// The header of a qcow2 image of 1 MiB, with a backing file or without.
fn qcow2(place: &Place, backing: bool) -> Vec<u8> {
    let path = place.path("made.qcow2");
    let mut command = std::process::Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    if backing {
        command.args(["-b", "/etc/passwd", "-F", "raw"]);
    }
    let done = command.arg(&path).args(if backing { None } else { Some("1M") }).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

#[test]
fn what_is_no_disk_of_its_own_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let pull = |bytes: &[u8], name: &str| {
        let server = Server::start(bytes, Some("\"1\""));
        let source = server.source(name);
        place.cache().pull(&place.fetcher(), &wanted(&source), None, &mut Unwatched)
    };
    let good = pull(&qcow2(&place, false), "ubuntu.img").unwrap();
    // It is known by what it is, and not by its name.
    assert_eq!((good.format, good.path.extension().unwrap()), (DiskFormat::Qcow2, "qcow2".as_ref()));
    let before = place.files("disks");
    for (bytes, needle) in [
        (qcow2(&place, true), "a change of another image"),
        (b"QFI\xfb\0\0\0\x09".to_vec(), "no disk"),
        (b"".to_vec(), "it is empty"),
        (b"\n<!DOCTYPE html><html>log in</html>".to_vec(), "a page of HTML"),
        (b"KDMV\x01\0\0\0".to_vec(), "VMDK"),
    ] {
        let error = pull(&bytes, "x").unwrap_err();
        assert!(error.to_string().contains(needle), "{error}");
        assert_eq!(place.files("disks"), before, "{needle}");
    }
    // The same for a file that gets a name of the caller's, also one that comes from this host.
    for bytes in [b"<html>".to_vec(), qcow2(&place, true)] {
        let server = Server::start(&bytes, Some("\"1\""));
        let source = server.source("x.qcow2");
        assert_eq!(place.save(&wanted(&source), "x.qcow2").unwrap_err().code(), "not_a_disk");
        assert!(!place.path("x.qcow2").exists() && !place.path("x.qcow2.part").exists());
        fs::write(place.path("own"), &bytes).unwrap();
        let own = Source::File(place.path("own"));
        assert_eq!(place.save(&wanted(&own), "x.qcow2").unwrap_err().code(), "not_a_disk");
        assert!(!place.path("x.qcow2").exists());
    }
}

#[test]
fn a_part_that_others_may_write_to_is_not_gone_on_with() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let bytes = disk(1);
    let server = Server::start(&bytes, Some("\"1\""));
    let source = server.source("x.raw");
    let part = place.path("x.raw.part");
    fs::write(&part, b"").unwrap();
    fs::set_permissions(&part, fs::Permissions::from_mode(0o666)).unwrap();
    let error = place.save(&wanted(&source), "x.raw").unwrap_err();
    assert!(format!("{:#}", std::error::Error::source(&error).unwrap()).contains("others"), "{error}");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&part, place.path("second")).unwrap();
    place.save(&wanted(&source), "x.raw").unwrap_err();
    assert!(part.exists() && !place.path("x.raw").exists());
    fs::remove_file(place.path("second")).unwrap();
    place.save(&wanted(&source), "x.raw").unwrap();
    assert!(fs::read(place.path("x.raw")).unwrap() == bytes);
}

#[test]
fn a_file_of_this_host_is_what_its_name_says() {
    let place = Place::new();
    // A guest wrote the beginning of another format into its raw disk.
    fs::write(place.path("disk.raw"), qcow2(&place, true)).unwrap();
    let source = Source::File(place.path("disk.raw"));
    let pull = |said| place.cache().pull(&place.fetcher(), &wanted(&source), said, &mut Unwatched);
    let taken = pull(None).unwrap();
    assert_eq!((taken.format, taken.fresh), (DiskFormat::Raw, true));
    assert!(!pull(None).unwrap().fresh);
    assert_eq!(pull(Some(DiskFormat::Qcow2)).unwrap_err().code(), "not_a_disk");
    for path in ["/dev/null", "/", "/nowhere/x.raw"] {
        let source = Source::File(path.into());
        let error = place.cache().pull(&place.fetcher(), &wanted(&source), None, &mut Unwatched).unwrap_err();
        assert_eq!(error.code(), "io", "{path}");
    }
}

#[test]
fn what_is_larger_than_allowed_or_packed_without_an_unpacker_is_refused() {
    let (place, disk) = (Place::new(), disk(5));
    let server = Server::start(&disk, None);
    let source = server.source("x.raw");
    let error = place.save(&Wanted { most: 299_999, ..wanted(&source) }, "x.raw").unwrap_err();
    assert!(error.code() == "too_large" && error.to_string().contains("300000 bytes"), "{error}");
    let member = Wanted { member: Some("a"), ..wanted(&source) };
    assert_eq!(place.save(&member, "x.raw").unwrap_err().code(), "not_a_disk");
    let packed = Wanted { packing: Some(Packing::Xz), ..wanted(&source) };
    assert_eq!(place.save(&packed, "x.raw").unwrap_err().code(), "unpack_failed");
    assert!(!place.path("x.raw").exists());
}

#[test]
fn two_who_want_the_same_share_one_download() {
    let (place, disk) = (Place::new(), disk(6));
    let server = Server::start(&disk, Some("\"1\""));
    let source = server.source("x.raw");
    let fresh: Vec<bool> = thread::scope(|scope| {
        let pull = || place.cache().pull(&place.fetcher(), &wanted(&source), None, &mut Unwatched).unwrap();
        let both = [scope.spawn(pull), scope.spawn(pull)];
        both.map(|one| one.join().unwrap().fresh).to_vec()
    });
    assert_eq!(fresh.iter().filter(|fresh| **fresh).count(), 1);
    // The second one only asked whether there is another version.
    let conditions: Vec<bool> = server.asked.lock().unwrap().iter().map(|(_, one)| one.is_some()).collect();
    assert_eq!(conditions, [false, true]);
}
