//! Streams for a token, from the stream socket of a keeper.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nelly_vmm::sys;
use tokio::io::{AsyncWriteExt, Interest};

use super::Claimed;
use crate::instance::Streams;

/// Shows a token, and receives its descriptors.
pub(super) async fn show(connection: UnixStream, token: &[u8]) -> io::Result<Claimed> {
    connection.set_nonblocking(true)?;
    let mut connection = tokio::net::UnixStream::from_std(connection)?;
    connection.write_all(token).await?;
    let (mut set, mut descriptors) = ([0], Vec::new());
    let arrived = loop {
        connection.readable().await?;
        let receive = || sys::receive(connection.as_fd(), &mut set, &mut descriptors, 3);
        match connection.try_io(Interest::READABLE, receive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            arrived => break arrived?,
        }
    };
    let [set] = set;
    let count = usize::try_from((set & 7).count_ones()).expect("at most three");
    if arrived.bytes != 1 || arrived.lost || count == 0 || count != descriptors.len() {
        return Err(io::Error::other(
            "the process that holds the sandbox does not know their token, or sent others",
        ));
    }
    let mut descriptors = descriptors.into_iter();
    let mut stream =
        |bit: u8| (set & bit != 0).then(|| descriptors.next().map(blocking)).flatten().transpose();
    let streams = Streams { stdin: stream(1)?, stdout: stream(2)?, stderr: stream(4)? };
    Ok(Claimed { streams, connection: connection.into_std()? })
}

fn blocking(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let stream = UnixStream::from(descriptor);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
