//! Two streams that become one connection: what comes out of one goes into the other.
//!
//! Bytes that are taken at once go through one buffer of the whole agent; only of a side that has
//! no room a connection holds some itself, at most [`BUFFER`] a direction, and then it reads no
//! more. So an idle connection holds none, and nobody is waited for but the slower side.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::Stream;
use crate::sys;

/// Most bytes that a connection holds in one direction.
const BUFFER: usize = 64 << 10;

/// How often it is looked whether an end that said its last is still there to listen: no event
/// tells it.
const LOOK: Duration = Duration::from_secs(5);

thread_local! {
    static PASSING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Copies both ways until both directions have ended, or one of the two ends is closed. The end of
/// a direction is passed on by itself.
pub async fn join(one: Stream, other: Stream) {
    let (one_said, other_said) = (Notify::new(), Notify::new());
    let ways = async {
        // An end that cannot be read is the end of both.
        let _ended = tokio::try_join!(copy(&one, &other, &one_said), copy(&other, &one, &other_said));
    };
    tokio::select! {
        () = ways => {}
        () = gone(&one, &one_said) => {}
        () = gone(&other, &other_said) => {}
    }
}

/// Copies one direction to its end. Where `to` takes no more, the other direction goes on: what
/// `to` said before is still under way.
async fn copy(from: &Stream, to: &Stream, said: &Notify) -> io::Result<()> {
    loop {
        let mut ready = from.0.readable().await?;
        let mut held = Vec::new();
        let takes = match ready.try_io(|_| pass(from, to, &mut held)) {
            Err(_nothing_there) => true,
            Ok(Ok(Passed::End)) => break,
            Ok(Ok(Passed::Some)) => to.write_all(&held).await.is_ok(),
            Ok(Ok(Passed::Refused)) => false,
            Ok(Err(error)) => return Err(error),
        };
        if !takes {
            sys::shutdown_read(from.as_fd());
            return Ok(());
        }
        // Two ends that are always ready would leave no turn to anybody else.
        tokio::task::consume_budget().await;
    }
    sys::shutdown_write(to.as_fd());
    said.notify_one();
    Ok(())
}

/// What became of a read.
enum Passed {
    /// `from` has said all.
    End,
    /// Bytes were taken, or are held.
    Some,
    /// `to` takes no more.
    Refused,
}

/// Reads once, and writes what `to` takes; the rest of it is `held`. An error is one of reading.
fn pass(from: &Stream, to: &Stream, held: &mut Vec<u8>) -> io::Result<Passed> {
    PASSING.with_borrow_mut(|buffer| {
        buffer.resize(BUFFER, 0);
        let count = sys::read(from.as_fd(), buffer)?;
        if count == 0 {
            return Ok(Passed::End);
        }
        let mut rest = buffer.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match sys::write(to.as_fd(), rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Ok(Passed::Refused),
            }
        }
        held.extend_from_slice(rest);
        Ok(Passed::Some)
    })
}

/// Waits until an end that said its last does not listen either.
async fn gone(end: &Stream, said: &Notify) {
    said.notified().await;
    while !sys::hung_up(end.as_fd()) {
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn unix() -> (UnixStream, Stream) {
        let (near, far) = UnixStream::pair().unwrap();
        (near, Stream::new(far.into()).unwrap())
    }

    fn tcp() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = OwnedFd::from(listener.accept().unwrap().0);
        (near, Stream::new(far).unwrap())
    }

    fn pattern(length: u32) -> Vec<u8> {
        (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
    }

    #[test]
    fn much_goes_both_ways_at_once_and_each_end_ends_by_itself() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ((mut client, one), (mut server, other)) = (unix(), tcp());
            let bytes = pattern(9_000_001);
            let (there, back) = (bytes.clone(), bytes.clone());
            let writes = std::thread::spawn(move || {
                let mut reads = client.try_clone().unwrap();
                let write = std::thread::spawn(move || {
                    client.write_all(&there).unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                });
                let mut got = Vec::new();
                reads.read_to_end(&mut got).unwrap();
                write.join().unwrap();
                got
            });
            let serves = std::thread::spawn(move || {
                let mut got = Vec::new();
                server.read_to_end(&mut got).unwrap();
                // Its answer begins when the request has ended.
                server.write_all(&back).unwrap();
                got
            });
            join(one, other).await;
            assert!(writes.join().unwrap() == bytes && serves.join().unwrap() == bytes);
        });
    }

    #[test]
    fn an_end_that_is_closed_closes_the_other_and_its_last_words_arrive() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let got = runtime.block_on(async {
            let ((mut client, one), (mut server, other)) = (unix(), unix());
            server.write_all(b"last words").unwrap();
            drop(server);
            let reads = std::thread::spawn(move || {
                let mut text = String::new();
                client.read_to_string(&mut text).unwrap();
                // Its own direction is closed with the other, or a moment later.
                while client.write(b"x").is_ok() {}
                (text, client.write(b"x").unwrap_err().kind())
            });
            join(one, other).await;
            reads.join().unwrap()
        });
        assert_eq!(got, ("last words".to_owned(), ErrorKind::BrokenPipe));
    }

    #[test]
    fn an_answer_arrives_whose_sender_closed_while_it_was_sent_to() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..50 {
            let answer = runtime.block_on(async {
                let ((mut client, one), (mut server, other)) = (unix(), unix());
                let talks = std::thread::spawn(move || {
                    let mut reads = client.try_clone().unwrap();
                    // More than is ever taken, until nobody takes it.
                    let writes = std::thread::spawn(move || while client.write_all(&[0; 8192]).is_ok() {});
                    let mut answer = Vec::new();
                    // What it wrote is not all taken, and it may be told so behind the answer.
                    let _ = reads.read_to_end(&mut answer);
                    writes.join().unwrap();
                    answer
                });
                let serves = std::thread::spawn(move || {
                    server.read_exact(&mut [0; 8192]).unwrap();
                    server.write_all(b"too much").unwrap();
                });
                join(one, other).await;
                serves.join().unwrap();
                talks.join().unwrap()
            });
            assert_eq!(answer, b"too much");
        }
    }

    #[test]
    fn one_that_does_not_read_holds_up_its_direction_alone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ((client, one), (server, other)) = runtime.block_on(async { (unix(), unix()) });
        client.set_nonblocking(true).unwrap();
        runtime.block_on(async {
            let joined = tokio::spawn(join(one, other));
            let mut sent = 0;
            // What sockets and connection hold, and no more.
            for _ in 0..1000 {
                match (&client).write(&[1; 4096]) {
                    Ok(count) => sent += count,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                tokio::task::yield_now().await;
            }
            assert!((BUFFER..2 << 20).contains(&sent), "{sent}");
            (&server).write_all(b"answer").unwrap();
            let mut answer = [0; 6];
            while (&client).read(&mut answer).is_err() {
                sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(&answer, b"answer");
            drop(server);
            let _ended = joined.await;
        });
    }
}
