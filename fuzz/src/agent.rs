//! Frames of the guest's agent to the host's client of it: a guest that answers what nobody asked.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nelly_sandbox::agent::Agent;

/// Sends the input as the agent's answers, and hangs up. An even first byte: as it is. An odd one:
/// in frames that begin with a sound header, each as long as its first byte says, so that the
/// messages inside are reached.
///
/// # Panics
/// When the client does, or when it waits although the connection has ended.
pub fn run(data: &[u8]) {
    let [choice, rest @ ..] = data else { return };
    let sent = if choice & 1 == 0 { rest.to_vec() } else { frames(rest) };
    let (host, mut guest) = UnixStream::pair().expect("a pair of sockets");
    guest.set_nonblocking(true).expect("a socket");
    // What does not fit the socket's buffer is not sent: the client has to cope with an end
    // anywhere.
    let _ = guest.write(&sent);
    guest.shutdown(std::net::Shutdown::Write).expect("a connected socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let agent = Agent::new(host).expect("a client");
        let calls = async {
            let _ = agent.hello("fuzz", 0, Vec::new(), None).await;
            let _ = agent.stats("").await;
            let _ = agent.start("x").await;
        };
        tokio::time::timeout(Duration::from_secs(10), calls).await.expect("a call ends with its connection");
    });
}

fn frames(mut data: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut stream: u32 = 1;
    while let [len, rest @ ..] = data {
        let (body, tail) = rest.split_at(rest.len().min(usize::from(*len)));
        sent.extend_from_slice(&u32::try_from(body.len()).expect("at most 255").to_be_bytes());
        sent.extend_from_slice(&stream.to_be_bytes());
        sent.extend_from_slice(&[2, 0]);
        sent.extend_from_slice(body);
        stream += 2;
        data = tail;
    }
    sent
}

/// Answers to the first calls: a status and a payload, by protobuf's rules.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    // Response { payload (field 2): { 1: varint 1, 2: "build", 3: "feature" } }
    let payload = [&[0x08, 1, 0x12, 5], b"build".as_slice(), &[0x1a, 7], b"feature"].concat();
    let mut response = vec![0x12, u8::try_from(payload.len()).expect("a short seed")];
    response.extend_from_slice(&payload);
    // Response { status (field 1): { code: 5, message: "no" } }
    let refused = [0x0a, 6, 0x08, 5, 0x12, 2, b'n', b'o'];
    let framed = |body: &[u8]| [&[u8::try_from(body.len()).expect("a short seed")], body].concat();
    vec![
        [&[1], framed(&response).as_slice(), &framed(&response), &framed(&refused)].concat(),
        [&[0], frames(&framed(&refused)).as_slice()].concat(),
        vec![0],
    ]
}
