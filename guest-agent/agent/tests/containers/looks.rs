//! What is found out about containers: their processes, and what changed in their files.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nelly_protocol::inspect::{HEADER, Kind, parse};
use nelly_protocol::messages::{self as m, change};
use nelly_protocol::{Message, messages};
use ttrpc::Code;

use crate::bench::{World, context, dial, refusal};

crate::scenarios!(
    processes_are_told_with_their_numbers,
    changes_are_told_and_mounts_are_not,
    a_stopped_container_is_not_looked_into,
    so_many_look_at_a_time,
);

/// Everything on a stream: records, sentences, the result.
pub(crate) async fn told<M: Message>(
    world: &World,
    answer: ttrpc::Result<m::InspectResponse>,
) -> (Vec<M>, Vec<String>, m::InspectResult) {
    let mut stream = dial(&world.promises, &answer.unwrap().token);
    stream.set_nonblocking(true).unwrap();
    let bytes = whole(&mut stream).await;
    let (mut records, mut notes, mut rest) = (Vec::new(), Vec::new(), &bytes[..]);
    loop {
        let (header, after) = rest.split_first_chunk::<HEADER>().expect("a frame before the end");
        let (kind, length) = parse(*header).unwrap();
        let (payload, after) = after.split_at(length);
        rest = after;
        match kind {
            Kind::Record => records.push(M::parse_from_bytes(payload).unwrap()),
            Kind::Note => notes.push(String::from_utf8(payload.to_vec()).unwrap()),
            Kind::Result => {
                assert!(rest.is_empty(), "nothing comes after the result");
                return (records, notes, messages::InspectResult::parse_from_bytes(payload).unwrap());
            }
        }
    }
}

pub(crate) async fn whole(stream: &mut UnixStream) -> Vec<u8> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            // It has closed its end before it had read everything.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Ok(count) => bytes.extend(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn processes(id: &str) -> m::ProcessesRequest {
    m::ProcessesRequest { container_id: id.to_owned(), ..Default::default() }
}

fn changes(id: &str) -> m::ChangesRequest {
    m::ChangesRequest { container_id: id.to_owned(), ..Default::default() }
}

async fn processes_are_told_with_their_numbers(world: Arc<World>) {
    world.idle("a").await;
    let started =
        world.exec_sh("a", "e", "sleep 500 >/dev/null 2>&1 & sleep 600 >/dev/null 2>&1 & true").await;
    assert_eq!(started.exit.exit_code, 0);
    let answer = world.client.processes(context(), &processes("a")).await;
    let (all, notes, result) = told::<m::Process>(&world, answer).await;
    assert_eq!((result.code, notes.len()), (0, 0), "{result:?} {notes:?}");
    let of = |seconds: &str| {
        let found = all.iter().find(|one| one.args.last().is_some_and(|word| word == seconds.as_bytes()));
        found.unwrap_or_else(|| panic!("{seconds}: {all:?}"))
    };
    assert_eq!(all.len(), 3, "{all:?}");
    let first = of("1000");
    assert_eq!((first.container_pid, first.user), (1, 0));
    assert!(first.pid > 1 && first.resident_bytes > 0, "{first:?}");
    // Orphans are the first process's.
    assert_eq!(of("500").parent, first.pid);
    assert!(of("600").container_pid > 1);
    let (code, _) = refusal(world.client.processes(context(), &processes("none")).await);
    assert_eq!(code, Code::NOT_FOUND);
}

async fn changes_are_told_and_mounts_are_not(world: Arc<World>) {
    world.idle("a").await;
    let script = "echo x > /data/new; echo more >> /data/plain; rm /data/orphan; mkdir -p /made/deep; \
        echo x > /dev/shm/not-told; rm -r /mnt; mkdir /mnt; chmod 600 /data/garbage; \
        rm -r /home; mkdir /home; touch /home/file";
    assert_eq!(world.exec_sh("a", "e", script).await.exit.exit_code, 0);
    let answer = world.client.changes(context(), &changes("a")).await;
    let (all, notes, result) = told::<m::Change>(&world, answer).await;
    assert_eq!((result.code, notes.len()), (0, 0), "{result:?} {notes:?}");
    let told: Vec<String> = all
        .iter()
        .map(|one| {
            let letter = match one.kind.unwrap() {
                change::Kind::ADDED => 'A',
                change::Kind::CHANGED => 'C',
                change::Kind::DELETED => 'D',
                change::Kind::UNKNOWN => '?',
            };
            format!("{letter} {}", String::from_utf8_lossy(&one.path))
        })
        .collect();
    for line in [
        "C /data",
        "A /data/new",
        "C /data/plain",
        "D /data/orphan",
        "C /data/garbage",
        "A /made",
        "A /made/deep",
        // A directory that hides that of the image.
        "C /home",
        "D /home/app",
        "A /home/file",
    ] {
        assert_eq!(told.iter().filter(|one| *one == line).count(), 1, "{line}: {told:?}");
    }
    let foreign = |line: &&String| {
        ["/dev", "/proc", "/sys", "/bin", "/outside", "/mnt"].iter().any(|path| line[2..].starts_with(path))
    };
    assert_eq!(told.iter().find(foreign), None, "{told:?}");
}

async fn a_stopped_container_is_not_looked_into(world: Arc<World>) {
    world.idle("a").await;
    world.signal("a", "", libc::SIGKILL, false).await.unwrap();
    world.wait("a", "").await;
    for (code, words) in [
        refusal(world.client.processes(context(), &processes("a")).await),
        refusal(world.client.changes(context(), &changes("a")).await),
    ] {
        assert!(code == Code::FAILED_PRECONDITION && words.contains("stopped"), "{code:?} {words}");
    }
}

async fn so_many_look_at_a_time(world: Arc<World>) {
    world.idle("a").await;
    let mut tokens = Vec::new();
    for _ in 0..nelly_agent::inspect::MOST {
        tokens.push(world.client.processes(context(), &processes("a")).await.unwrap().token);
    }
    let (code, words) = refusal(world.client.changes(context(), &changes("a")).await);
    assert!(code == Code::FAILED_PRECONDITION && words.contains("too many"), "{code:?} {words}");
    for token in tokens {
        let mut stream = dial(&world.promises, &token);
        stream.set_nonblocking(true).unwrap();
        assert!(!whole(&mut stream).await.is_empty());
    }
    // Each ends with its process, which is reaped in a moment.
    for _ in 0..1000 {
        if world.client.changes(context(), &changes("a")).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the places of those that have ended are not free");
}
