//! Files out of containers and into them.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use nelly_archive::pack::{Choice, Packer};
use nelly_archive::unpack::{Naming, Options, Unpacker};
use nelly_archive::{Entry, Kind, Reader, Writer};
use nelly_protocol::archive::{ArchiveReader, ArchiveWriter};
use nelly_protocol::{Message, messages as m};
use ttrpc::Code;

use crate::bench::{World, context, dial, refusal};
use crate::looks::whole;

crate::scenarios!(
    files_come_out_and_links_lead_nowhere_else,
    files_go_in_and_links_lead_nowhere_else,
    directories_that_are_swapped_for_links_lead_nowhere_else,
    a_copy_that_is_cut_leaves_nothing,
    a_copy_ends_with_its_container,
);

/// The result of a stream.
fn result_of(frames: &ArchiveReader<&[u8]>) -> m::InspectResult {
    m::InspectResult::parse_from_bytes(frames.result().expect("a result")).unwrap()
}

/// Copies out of container `a`: the archive, and what the guest says.
async fn out(world: &World, path: &str, follow: bool) -> (Vec<u8>, m::InspectResult) {
    let request =
        m::CopyOutRequest { container_id: "a".into(), path: path.into(), follow, ..Default::default() };
    answer_of(world, request).await
}

/// What is copied out at a request.
pub(crate) async fn answer_of(world: &World, request: m::CopyOutRequest) -> (Vec<u8>, m::InspectResult) {
    let token = world.client.copy_out(context(), &request).await.unwrap().token;
    let mut stream = dial(&world.promises, &token);
    stream.set_nonblocking(true).unwrap();
    let bytes = whole(&mut stream).await;
    let (mut frames, mut archive) = (ArchiveReader::new(&bytes[..]), Vec::new());
    frames.read_to_end(&mut archive).unwrap();
    let result = result_of(&frames);
    (archive, result)
}

pub(crate) fn request(path: &str, name: &str) -> m::CopyInRequest {
    m::CopyInRequest { container_id: "a".into(), path: path.into(), name: name.into(), ..Default::default() }
}

/// Copies an archive into a container.
pub(crate) async fn into(world: &World, request: &m::CopyInRequest, archive: &[u8]) -> m::InspectResult {
    let token = world.client.copy_in(context(), request).await.unwrap().token;
    let mut stream = dial(&world.promises, &token);
    let mut frames = ArchiveWriter::new(&stream);
    frames.write_all(archive).unwrap();
    frames.finish(&[], &[]).unwrap();
    stream.set_nonblocking(true).unwrap();
    let bytes = whole(&mut stream).await;
    let mut frames = ArchiveReader::new(&bytes[..]);
    assert_eq!(frames.read(&mut [0]).unwrap(), 0);
    result_of(&frames)
}

pub(crate) fn file(name: &str, mode: u32, text: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let entry = Entry {
        path: name.into(),
        link: Vec::new(),
        kind: Kind::File,
        mode,
        uid: 1000,
        gid: 1001,
        mtime: 1_000_000,
        mtime_nsec: 0,
        size: text.len() as u64,
        extents: None,
        xattrs: Vec::new(),
    };
    writer.begin(&entry).unwrap();
    writer.data(text).unwrap();
    writer.finish().unwrap()
}

fn unpacked(archive: &[u8], to: &Path) {
    let root = fs::File::open(to).unwrap();
    let mut reader = Reader::new(archive);
    let first = reader.entry().unwrap();
    let mut note = |note: String| panic!("{note}");
    Unpacker::new(root.as_fd(), Naming::default(), Options::default(), &mut note)
        .all(first, &mut reader)
        .unwrap();
}

async fn sh(world: &World, exec: &str, script: &str) -> String {
    let ran = world.exec_sh("a", exec, script).await;
    assert_eq!(ran.exit.exit_code, 0, "{script}: {}", ran.stderr);
    ran.stdout
}

async fn files_come_out_and_links_lead_nowhere_else(world: Arc<World>) {
    world.idle("a").await;
    let script = "mkdir -p /srv/tree/deep; echo in >/srv/tree/deep/file; chmod 751 /srv/tree/deep/file; \
        echo inner >/outside/secret; ln -s /outside/secret /srv/abs; ln -s ../../../../../outside/secret /srv/up; \
        ln -s /srv/tree /srv/todir; ln -s / /srv/tree/root";
    // There is no applet for it among those of the image.
    sh(&world, "made", &script.replace("ln ", "/bin/busybox ln ")).await;
    let home = tempfile::tempdir().unwrap();
    let (archive, result) = out(&world, "/srv/tree", false).await;
    assert_eq!(result.code, 0, "{result:?}");
    unpacked(&archive, home.path());
    let file = home.path().join("tree/deep/file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "in\n");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(home.path().join("tree/root")).unwrap(), Path::new("/"));
    // The container's files, not those of whoever copies.
    for (path, follow, name) in
        [("/srv/abs", true, "abs"), ("srv/up", true, "up"), ("/escape/secret", false, "secret")]
    {
        let (archive, result) = out(&world, path, follow).await;
        assert_eq!(result.code, 0, "{path}: {result:?}");
        unpacked(&archive, home.path());
        assert_eq!(fs::read_to_string(home.path().join(name)).unwrap(), "inner\n", "{path}");
    }
    // A link itself, what it leads to, and what is in that.
    for (path, first, kind) in [
        ("/srv/todir", "todir", Kind::Symlink),
        ("/srv/todir/", "todir", Kind::Directory),
        ("/srv/todir/.", ".", Kind::Directory),
        ("/data/plain", "plain", Kind::File),
        ("/proc/version", "version", Kind::File),
    ] {
        let (archive, result) = out(&world, path, false).await;
        assert_eq!(result.code, 0, "{path}: {result:?}");
        let entry = Reader::new(&archive[..]).entry().unwrap().unwrap();
        assert_eq!((&entry.path[..], entry.kind), (first.as_bytes(), kind), "{path}");
    }
    for (path, words) in [
        ("/srv/none", "/srv/none: there is no such file"),
        ("/none/x", "/none/x: there is no such file"),
        ("/data/plain/", "is not a directory"),
        ("/dangling/", "no such file"),
        ("/around/", "symbolic links"),
        ("/dev/null", "a device"),
    ] {
        let (archive, result) = out(&world, path, false).await;
        assert!(result.code == 1 && result.message.contains(words), "{path}: {result:?}");
        assert!(archive.is_empty(), "{path}");
    }
    let none = m::CopyOutRequest { container_id: "none".into(), ..Default::default() };
    assert_eq!(refusal(world.client.copy_out(context(), &none).await).0, Code::NOT_FOUND);
}

async fn files_go_in_and_links_lead_nowhere_else(world: Arc<World>) {
    world.idle("a").await;
    sh(
        &world,
        "made",
        "mkdir -p /srv/dir; /bin/busybox ln -s /srv/dir /srv/todir; \
        /bin/busybox ln -s ../../../../../../outside /srv/up",
    )
    .await;
    let mut archived = file("src", 0o4751, b"text");
    for path in ["/srv/new", "/srv/dir", "/srv/todir/other", "srv/up"] {
        let result = into(&world, &request(path, "src"), &archived).await;
        assert_eq!(result.code, 0, "{path}: {result:?}");
    }
    let shown = sh(
        &world,
        "shown",
        "stat -c '%a %u %g %Y' /srv/new /srv/dir/src /srv/dir/other /outside/src; cat /outside/src",
    )
    .await;
    // Root's, and without the bit of set-user-id.
    assert_eq!(shown, format!("{}text", "751 0 0 1000000\n".repeat(4)));
    let kept = m::CopyInRequest { archive: true, ..request("/srv/kept", "src") };
    assert_eq!(into(&world, &kept, &archived).await.code, 0);
    assert_eq!(sh(&world, "kept", "stat -c '%a %u %g' /srv/kept").await, "4751 1000 1001\n");
    // A tree, by the name of its destination, and an archive of any names.
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("tree/deep")).unwrap();
    fs::write(home.path().join("tree/deep/file"), "deep").unwrap();
    fs::set_permissions(home.path().join("tree/deep"), fs::Permissions::from_mode(0o500)).unwrap();
    let root = fs::File::open(home.path()).unwrap();
    let mut writer = Writer::new(Vec::new());
    Packer::new(&mut writer, Choice::default(), &mut |note| panic!("{note}"))
        .tree(&root, b"tree", b"tree")
        .unwrap();
    let tree = writer.finish().unwrap();
    let directory = m::CopyInRequest { directory: true, ..request("/srv/moved", "tree") };
    assert_eq!(into(&world, &directory, &tree).await.code, 0);
    let any = m::CopyInRequest { tar: true, ..request("/srv/dir", "") };
    assert_eq!(into(&world, &any, &tree).await.code, 0);
    let script = "cat /srv/moved/deep/file /srv/dir/tree/deep/file; stat -c %a /srv/moved/deep";
    assert_eq!(sh(&world, "tree", script).await, "deepdeep500\n");
    let tar = |path: &str| m::CopyInRequest { tar: true, ..request(path, "") };
    let as_directory = |path: &str| m::CopyInRequest { directory: true, ..request(path, "src") };
    for (request, words) in [
        (request("/none/there/x", "src"), "no directory"),
        (request("/srv/none/", "src"), "has to exist"),
        (request("/data/plain/", "src"), "not a directory"),
        (as_directory("/data/plain"), "the source is a directory"),
        (as_directory("/srv/x"), "what was announced"),
        (request("/sys/x", "src"), "read-only"),
        (request("/dev/null", "src"), "device"),
        (request("/srv/x", "../src"), "the name"),
        (tar("/none"), "no directory that exists"),
        (tar("/data/plain"), "no directory that exists"),
    ] {
        let result = into(&world, &request, &archived).await;
        assert!(result.code == 1 && result.message.contains(words), "{request:?}: {result:?}");
    }
    archived = file("../../src", 0o644, b"text");
    let result = into(&world, &tar("/srv"), &archived).await;
    assert!(result.code == 1 && result.message.contains(".."), "{result:?}");
}

async fn directories_that_are_swapped_for_links_lead_nowhere_else(world: Arc<World>) {
    world.idle("a").await;
    let name = format!("nelly-copied-{}", std::process::id());
    let script = "mkdir -p /srv/real /srv/x; (while :; do mv /srv/x /srv/y; \
        /bin/busybox ln -s ../../../../../../../../tmp /srv/x; rm /srv/x; mv /srv/y /srv/x; done) >/dev/null 2>&1 &";
    sh(&world, "swap", script).await;
    let archive = file("src", 0o644, b"text");
    let mut copied = 0;
    for _ in 0..60 {
        let result = into(&world, &request(&format!("/srv/x/{name}"), "src"), &archive).await;
        copied += usize::from(result.code == 0);
    }
    assert!(copied > 0, "some find the directory");
    assert!(!Path::new("/tmp").join(&name).exists(), "it was written outside of the container");
}

async fn a_copy_that_is_cut_leaves_nothing(world: Arc<World>) {
    world.idle("a").await;
    let archive = file("src", 0o644, &vec![7; 90_000]);
    sh(&world, "made", "mkdir /srv").await;
    let token = world.client.copy_in(context(), &request("/srv", "src")).await.unwrap().token;
    let mut stream = dial(&world.promises, &token);
    let mut frames = ArchiveWriter::new(&stream);
    frames.write_all(&archive[..80_000]).unwrap();
    frames.flush().unwrap();
    drop(frames);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.set_nonblocking(true).unwrap();
    let bytes = whole(&mut stream).await;
    let mut frames = ArchiveReader::new(&bytes[..]);
    assert_eq!(frames.read(&mut [0]).unwrap(), 0);
    let result = result_of(&frames);
    assert!(result.code == 1 && result.message.contains("not complete"), "{result:?}");
    assert_eq!(sh(&world, "left", "ls -a /srv").await, ".\n..\n");
}

async fn a_copy_ends_with_its_container(world: Arc<World>) {
    world.idle("a").await;
    let token = world.client.copy_in(context(), &request("/data", "src")).await.unwrap().token;
    let mut stream: UnixStream = dial(&world.promises, &token);
    // It waits for an archive that never comes.
    stream.set_nonblocking(true).unwrap();
    for _ in 0..5 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    world.signal("a", "", libc::SIGKILL, false).await.unwrap();
    world.wait("a", "").await;
    assert!(whole(&mut stream).await.is_empty());
    let (code, words) = refusal(world.client.copy_in(context(), &request("/data", "src")).await);
    assert!(code == Code::FAILED_PRECONDITION && words.contains("stopped"), "{code:?} {words}");
}
