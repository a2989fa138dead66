//! Requests of a guest to a server over a temporary tree.

use std::path::Path;

use nelly_share::wire::Op;
use nelly_share::{CacheMode, Locks, Options, Owners, Server, Tree};

use self::body::Body;
use super::place::Place;

/// Most requests of one input.
const REQUESTS_MAX: usize = 64;

mod body {
    /// Fields of a request.
    #[derive(Default)]
    pub(super) struct Body(pub(super) Vec<u8>);

    impl Body {
        pub(super) fn long(mut self, value: u64) -> Self {
            self.0.extend_from_slice(&value.to_le_bytes());
            self
        }

        pub(super) fn word(mut self, value: u32) -> Self {
            self.0.extend_from_slice(&value.to_le_bytes());
            self
        }

        pub(super) fn name(mut self, name: &str) -> Self {
            self.0.extend_from_slice(name.as_bytes());
            self.0.push(0);
            self
        }
    }
}

/// A tree with a file, and with links that lead out of it.
fn place() -> Place {
    let place = Place::new("share");
    let tree = place.tree();
    std::fs::create_dir(tree.join("d")).expect("there is room");
    std::fs::write(tree.join("d/f"), b"contents").expect("there is room");
    std::os::unix::fs::symlink("../beside", tree.join("out")).expect("there is room");
    std::os::unix::fs::symlink("..", tree.join("up")).expect("there is room");
    place
}

fn server(tree: &Path, choice: u8) -> Option<Server> {
    let tree = if choice & 1 == 0 {
        Tree::Directory(std::fs::File::open(tree).ok()?.into())
    } else {
        Tree::File(std::fs::File::open(tree.join("d/f")).ok()?.into())
    };
    let options = Options {
        read_only: choice & 2 != 0,
        owners: if choice & 4 == 0 { Owners::Mapped { uid: 0, gid: 0 } } else { Owners::Kept },
        cache: if choice & 8 == 0 { CacheMode::Auto } else { CacheMode::Always },
        // A wait would last: nobody interrupts it here.
        locks: if choice & 16 == 0 { Locks::Guest } else { Locks::Host { waiters: 0 } },
        descriptors: Some(16),
        inodes: 64,
        handles: 16,
    };
    Server::new(tree, options).ok()
}

/// Whether a request would make a file that takes long to remove or write: the host's file system
/// is not what is tested.
fn is_large(request: &[u8]) -> bool {
    let long = |at: usize| {
        request.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
    };
    let opcode = request.get(4..8).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")));
    let most = 1 << 24;
    match opcode {
        // SETATTR's length, WRITE's offset, FALLOCATE's range, COPY_FILE_RANGE's.
        Some(4) => long(56) > Some(most),
        Some(16) => long(48) > Some(most),
        Some(43) => long(48).max(long(56)) > Some(most),
        Some(47) => long(80) > Some(most) || long(48) > Some(most),
        _ => false,
    }
}

/// Sends the requests in the input; how many succeeded.
fn send(data: &[u8]) -> usize {
    let Some((choice, mut rest)) = data.split_first() else { return 0 };
    let place = place();
    let before = place.beside();
    let Some(server) = server(&place.tree(), *choice) else { return 0 };
    let mut reply = vec![0; 8192];
    let mut good = 0;
    for _ in 0..REQUESTS_MAX {
        // Two bytes say how long a request is, two how much room its answer has; what the request
        // says of its length is its own.
        let Some((head, more)) = rest.split_first_chunk::<4>() else { break };
        let len = usize::from(u16::from_le_bytes([head[0], head[1]])).min(more.len());
        let room = usize::from(u16::from_le_bytes([head[2], head[3]])).min(reply.len());
        let (request, more) = more.split_at(len);
        rest = more;
        if is_large(request) {
            continue;
        }
        let answer = server.handle(&request, &mut &mut reply[..room]);
        assert!(answer == 0 || (16..=room).contains(&answer), "an answer has a header, and room");
        if answer > 0 {
            let said = u32::from_le_bytes(reply[..4].try_into().expect("4 bytes"));
            assert_eq!(usize::try_from(said).ok(), Some(answer), "it is as long as it says");
            let error = i32::from_le_bytes(reply[4..8].try_into().expect("4 bytes"));
            assert!((-511..=0).contains(&error), "a driver takes no other error");
            good += usize::from(error == 0);
        }
        let usage = server.usage();
        assert!(usage.inodes <= 64 && usage.handles <= 16 && usage.unnamed <= 4, "{usage:?}");
    }
    server.reset();
    drop(server);
    assert!(place.beside() == before, "nothing beside the tree changes");
    good
}

/// Sends the requests in the input.
pub fn run(data: &[u8]) {
    send(data);
}

/// How many requests of a seed succeed.
#[must_use]
pub fn successes(data: &[u8]) -> usize {
    send(data)
}

fn request(into: &mut Vec<u8>, op: Op, node: u64, body: Body) {
    let opcode = Op::ALL.iter().find(|(known, _)| *known == op).expect("every operation is listed").1;
    let len = u16::try_from(40 + body.0.len()).expect("seeds are short");
    into.extend_from_slice(&len.to_le_bytes());
    into.extend_from_slice(&4112_u16.to_le_bytes());
    into.extend_from_slice(&u32::from(len).to_le_bytes());
    into.extend_from_slice(&opcode.to_le_bytes());
    into.extend_from_slice(&1_u64.to_le_bytes());
    into.extend_from_slice(&node.to_le_bytes());
    into.extend_from_slice(&[0; 16]);
    into.extend_from_slice(&body.0);
}

fn new() -> Body {
    Body::default()
}

/// Names and files; attributes; listings and locks; one file alone.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut names = vec![0];
    let all = |into: &mut Vec<u8>, requests: Vec<(Op, u64, Body)>| {
        requests.into_iter().for_each(|(op, node, body)| request(into, op, node, body));
    };
    // Numbers of inodes count from 2, those of handles from 1.
    all(
        &mut names,
        vec![
            (Op::Init, 0, new().word(7).word(41).word(0).word(u32::MAX).word(u32::MAX).long(0)),
            (Op::Lookup, 1, new().name("d")),
            (Op::Lookup, 2, new().name("f")),
            (Op::Open, 3, new().word(2).word(0)),
            (Op::Write, 3, new().long(1).long(4).word(4).word(0).long(0).long(0).word(7)),
            (Op::Read, 3, new().long(1).long(0).word(64).word(0).long(0).long(0)),
            (Op::Create, 1, new().word(2).word(0o644).long(0).name("new")),
            (Op::SymLink, 1, new().name("link").name("../../beside")),
            (Op::ReadLink, 5, new()),
            (Op::Rename2, 1, new().long(2).long(0).name("new").name("f")),
            (Op::Link, 1, new().long(4).name("second")),
            (Op::Unlink, 2, new().name("f")),
            (Op::MkDir, 1, new().word(0o755).word(0).name("dir")),
            (Op::RmDir, 1, new().name("dir")),
            (Op::CopyFileRange, 3, new().long(1).long(0).long(4).long(2).long(0).long(8).long(0)),
            (Op::Release, 3, new().long(1).long(0).long(0)),
            (Op::Forget, 3, new().long(1)),
            (Op::BatchForget, 0, new().word(1).word(0).long(2).long(1)),
        ],
    );
    let mut attributes = vec![4];
    all(
        &mut attributes,
        vec![
            (Op::Lookup, 1, new().name("d")),
            (Op::GetAttr, 2, new().long(0).long(0)),
            (
                Op::SetAttr,
                2,
                new()
                    .word(0x37)
                    .word(0)
                    .long(0)
                    .long(0)
                    .long(0)
                    .long(1)
                    .long(2)
                    .long(3)
                    .word(4)
                    .word(5)
                    .word(6)
                    .word(0o750)
                    .word(0)
                    .word(0)
                    .word(0)
                    .word(0),
            ),
            (Op::SetXattr, 2, new().word(4).word(0).name("user.x").word(9)),
            (Op::GetXattr, 2, new().word(64).word(0).name("user.x")),
            (Op::ListXattr, 2, new().word(64).word(0)),
            (Op::RemoveXattr, 2, new().name("user.x")),
            (Op::MkNod, 2, new().word(0o010_644).word(0).long(0).name("pipe")),
            (Op::Access, 2, new().word(4).word(0)),
            (Op::StatFs, 1, new()),
        ],
    );
    let mut listing = vec![16];
    all(
        &mut listing,
        vec![
            (Op::OpenDir, 1, new().long(0)),
            (Op::ReadDir, 1, new().long(1).long(0).word(4096).word(0).long(0).long(0)),
            (Op::ReadDirPlus, 1, new().long(1).long(0).word(4096).word(0).long(0).long(0)),
            (Op::TmpFile, 1, new().word(2).word(0o600).long(0).name("/")),
            (Op::SetLk, 1, new().long(2).long(1).long(0).long(9).word(1).word(0).word(0).word(0)),
            (Op::GetLk, 1, new().long(2).long(2).long(0).long(9).word(1).word(0).word(0).word(0)),
            (Op::FAllocate, 1, new().long(2).long(0).long(4096).word(0).word(0)),
            (Op::LSeek, 1, new().long(2).long(0).word(3).word(0)),
            (Op::Flush, 1, new().long(2).long(0).long(1)),
            (Op::FSync, 1, new().long(2).long(0)),
            (Op::Interrupt, 0, new().long(1)),
            (Op::ReleaseDir, 1, new().long(1).long(0).long(0)),
        ],
    );
    let mut single = vec![1];
    all(
        &mut single,
        vec![
            (Op::Lookup, 1, new().name("file")),
            (Op::Open, 2, new().word(2).word(0)),
            (Op::Read, 2, new().long(1).long(0).word(64).word(0).long(0).long(0)),
            (Op::OpenDir, 1, new().long(0)),
            (Op::ReadDirPlus, 1, new().long(2).long(0).word(4096).word(0).long(0).long(0)),
            (Op::Destroy, 0, new()),
        ],
    );
    vec![names, attributes, listing, single]
}
