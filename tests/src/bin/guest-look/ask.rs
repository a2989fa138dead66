//! A question to a resolver, as it is on the wire.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

/// Asks `resolver` (ADDRESS:PORT) for the records of `kind` (a number) that `name` has. Gives the
/// answer in hexadecimal.
pub(crate) fn ask(resolver: &str, name: &str, kind: &str) -> io::Result<String> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let kind: u16 = kind.parse().map_err(|_| wrong())?;
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).map_err(|_| wrong())?);
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(resolver)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    socket.send(&question)?;
    let mut answer = [0; 1024];
    let len = socket.recv(&mut answer)?;
    Ok(answer[..len].iter().map(|byte| format!("{byte:02x}")).collect())
}
