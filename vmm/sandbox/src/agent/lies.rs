//! Each call of the client beside a guest that lies: with each lie, every call ends within its time
//! limit, with a sentence of bounded length, and leaves neither a task nor a stream.
//!
//! The clock is the runtime's own, which stands while there is something to do.

use std::pin::Pin;
use std::time::Duration;

use nelly_protocol::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::Instant;
use ttrpc::proto::{Request, Response};

use super::guard::ANSWER_MOST;
use super::*;
use crate::spec::{ContainerSpec, Overrides, ProcessSpec, RelayAddress, Volume};

const ID: ProcessId<'_> = ProcessId { container: "c", exec: "e" };

/// A minute, as most calls have it, and the moment in which its end is told.
const MINUTE: Duration = Duration::from_secs(61);

/// How often something is said that has no end: the clock stands meanwhile, and who listens to all
/// of it fails.
const ENDLESS: usize = 50_000;

type Done = Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send>>;

/// A call of the client.
struct Verb {
    name: &'static str,
    /// Within which it ends; none of what waits for as long as a process runs.
    limit: Option<Duration>,
    call: fn(Agent) -> Done,
}

macro_rules! verb {
    ($name:literal, $limit:expr, $agent:ident, $call:expr) => {
        Verb { name: $name, limit: $limit, call: |$agent| Box::pin(async move { $call.await.map(drop) }) }
    };
}

fn container() -> ContainerSpec {
    let overrides = Overrides { command: vec!["x".into()], ..Default::default() };
    ContainerSpec::new(ProcessSpec::merge(&Default::default(), &overrides, "box").unwrap(), "box")
}

fn with_volume() -> ContainerSpec {
    let mut spec = container();
    spec.options.volumes =
        vec![Volume { name: "v".into(), path: "/v".into(), read_only: false, copy_up: true }];
    spec
}

fn verbs() -> Vec<Verb> {
    let within = |seconds| Some(Duration::from_secs(seconds));
    let all = Some(MINUTE);
    vec![
        verb!("Hello", all, agent, agent.hello("box", 1, vec![1; 64], None)),
        verb!("Hello", all, agent, agent.hello_again(1, vec![1; 64])),
        verb!("Timeline", within(3), agent, agent.timeline()),
        verb!("ProbeDevices", all, agent, agent.probe_devices()),
        verb!("Touch", all, agent, agent.touch("tag", &[b"a".to_vec()])),
        verb!("ReleaseDevice", all, agent, agent.release_disk("disk")),
        verb!("Processes", all, agent, agent.inspect("c", Inspection::Processes)),
        verb!("Changes", all, agent, agent.inspect("c", Inspection::Changes)),
        verb!("CopyOut", all, agent, agent.inspect("c", Inspection::CopyOut(CopySource::default()))),
        verb!("CopyIn", all, agent, agent.inspect("c", Inspection::CopyIn(CopyTarget::default()))),
        verb!("CreateContainer", all, agent, agent.create("c", &container(), "/dev/vda", None)),
        verb!("CreateContainer", within(901), agent, agent.create("c", &with_volume(), "/dev/vda", None)),
        verb!("State", all, agent, agent.first_process("c")),
        verb!("StartContainer", all, agent, agent.start("c")),
        verb!("Exec", all, agent, agent.exec(ID, &container().process, None)),
        verb!("Wait", None, agent, agent.wait(ID)),
        verb!("DeleteExec", all, agent, agent.delete_exec("c", "e")),
        verb!("Signal", all, agent, agent.signal(ID, 15)),
        verb!("Signal", all, agent, agent.signal_group(ID, 15)),
        verb!("ResizePty", all, agent, agent.resize(ID, 24, 80)),
        verb!("Stats", all, agent, agent.stats("c")),
        verb!("UpdateContainer", all, agent, agent.limit_memory("c", Some(1 << 20))),
        verb!("Connect", all, agent, agent.connect("c", &RelayAddress::Tcp(80))),
        verb!("Listen", all, agent, agent.listen("c", &RelayAddress::Tcp(80))),
        verb!("Accept", None, agent, agent.accept(7)),
        verb!("Forget", all, agent, agent.forget(&[0; TOKEN_BYTES])),
        verb!("Shutdown", within(66), agent, agent.shutdown(5000)),
    ]
}

/// An answer that an agent could give to this request of a call.
fn sound(method: &str, request: &[u8]) -> Vec<u8> {
    let token = vec![7; TOKEN_BYTES];
    let asked = match method {
        "CreateContainer" => wire::CreateContainerRequest::parse_from_bytes(request).unwrap().stdio,
        _ => wire::ExecRequest::parse_from_bytes(request).unwrap_or_default().stdio,
    };
    // Those of a process without an input, where nobody asks.
    let (stdin, output) = asked.as_ref().map_or((false, true), |asked| (asked.stdin, asked.stdout));
    let of = |asked: bool| if asked { token.clone() } else { Vec::new() };
    let streams =
        wire::StreamTokens { stdin: of(stdin), stdout: of(output), stderr: of(output), ..Default::default() };
    let payload = match method {
        "Processes" | "Changes" | "CopyOut" | "CopyIn" => {
            wire::InspectResponse { token, ..Default::default() }.write_to_bytes()
        }
        "Connect" | "Accept" => wire::ConnectResponse { token, ..Default::default() }.write_to_bytes(),
        "CreateContainer" => {
            let streams = Some(streams).into();
            wire::CreateContainerResponse { streams, ..Default::default() }.write_to_bytes()
        }
        "Exec" => {
            let streams = Some(streams).into();
            wire::StartResponse { pid: 1, streams, ..Default::default() }.write_to_bytes()
        }
        _ => Ok(Vec::new()),
    };
    payload.unwrap()
}

/// A frame as it is sent.
fn frame(kind: u8, stream: u32, length: usize, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap();
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0], payload].concat()
}

fn answer(stream: u32, response: &Response) -> Vec<u8> {
    let bytes = response.write_to_bytes().unwrap();
    frame(2, stream, bytes.len(), &bytes)
}

fn with_payload(stream: u32, payload: Vec<u8>) -> Vec<u8> {
    answer(stream, &Response { payload, ..Default::default() })
}

/// What a guest does once it was called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lie {
    /// It tells the truth.
    None,
    /// It reads nothing at all.
    Deaf,
    /// It hears, and says nothing.
    Silent,
    /// So many bytes of a sound answer, and the end.
    Cut(usize),
    /// The same, and silence.
    Half(usize),
    /// A byte each second, of an answer that is long but not too long.
    Drip,
    /// An answer said to have so many bytes.
    Length(u32),
    /// The same, with bytes that never end.
    Endless(u32),
    /// An answer to this stream.
    Stream(u32),
    /// A frame of this kind.
    Kind(u8),
    /// Bytes that are no frame.
    Noise(u8),
    /// Answers to nobody, without an end.
    Flood,
    /// No message in a sound frame.
    Garbage,
    /// No response in a sound frame.
    GarbageResponse,
    /// A refusal that is as long as an answer can be.
    Refusal,
    /// A refusal with a code that nobody knows, which the library takes for none.
    Code,
    /// Very many empty records, of this field.
    Records(u8),
    /// One string as long as an answer can be, of this field.
    String(u8),
    /// The largest number, of this field.
    Number(u8),
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It fails at once, and the guest is said to lie.
    Lied,
    /// It fails.
    Fails,
    /// It fails when its time is over.
    Silent,
    /// It ends in one way or the other: a guest may say so.
    Ends,
}

impl Lie {
    fn all() -> Vec<(Self, Fate)> {
        let too_long = ANSWER_MOST + 1;
        let mut all = vec![
            (Self::None, Fate::Ends),
            (Self::Deaf, Fate::Silent),
            (Self::Silent, Fate::Silent),
            (Self::Drip, Fate::Silent),
            (Self::Flood, Fate::Lied),
            (Self::Garbage, Fate::Fails),
            (Self::GarbageResponse, Fate::Fails),
            (Self::Refusal, Fate::Fails),
            (Self::Code, Fate::Ends),
            (Self::Length(0), Fate::Ends),
            (Self::Length(5), Fate::Silent),
            (Self::Length(ANSWER_MOST), Fate::Silent),
            (Self::Noise(0), Fate::Lied),
            (Self::Noise(0x55), Fate::Lied),
            (Self::Noise(0xff), Fate::Lied),
        ];
        // A header, and an answer, up to each of their bytes.
        all.extend(
            (0..10).flat_map(|count| [(Self::Cut(count), Fate::Fails), (Self::Half(count), Fate::Silent)]),
        );
        all.extend([too_long, 4 << 20, (4 << 20) + 1, u32::MAX].map(|long| (Self::Length(long), Fate::Lied)));
        all.extend([too_long, u32::MAX].map(|long| (Self::Endless(long), Fate::Lied)));
        all.extend([0, 2, 3, 0x7fff_ffff, u32::MAX].map(|stream| (Self::Stream(stream), Fate::Lied)));
        all.extend([0, 1, 3, 4, 255].map(|kind| (Self::Kind(kind), Fate::Lied)));
        for field in 1..8 {
            all.extend(
                [Self::Records(field), Self::String(field), Self::Number(field)].map(|lie| (lie, Fate::Ends)),
            );
        }
        all
    }

    /// The bytes that it begins with.
    fn bytes(self, (method, request): (&str, &[u8]), stream: u32) -> Vec<u8> {
        let truth = with_payload(stream, sound(method, request));
        // What a response, its payload and their lengths take is less than this.
        let room = usize::try_from(ANSWER_MOST).unwrap() - 16;
        match self {
            Self::None => truth,
            Self::Deaf | Self::Silent | Self::Flood => Vec::new(),
            Self::Cut(count) | Self::Half(count) => truth[..count].to_vec(),
            Self::Drip => frame(2, stream, room, &[]),
            Self::Length(length) | Self::Endless(length) => {
                frame(2, stream, usize::try_from(length).unwrap(), &[])
            }
            Self::Stream(other) => with_payload(other, sound(method, request)),
            Self::Kind(kind) => frame(kind, stream, 0, &[]),
            Self::Noise(byte) => vec![byte; 4096],
            Self::Garbage => with_payload(stream, vec![0xff; 64]),
            Self::GarbageResponse => frame(2, stream, 64, &[0xff; 64]),
            Self::Refusal => {
                let status = ttrpc::get_status(ttrpc::Code::INTERNAL, "\u{1b}ä".repeat(room / 3 - 16));
                answer(stream, &Response { status: Some(status).into(), ..Default::default() })
            }
            // Field 1 is the status, whose field 1 is the code.
            Self::Code => frame(2, stream, 5, &[0x0a, 3, 0x08, 0x8f, 0x4e]),
            Self::Records(field) => with_payload(stream, [field << 3 | 2, 0].repeat(room / 16)),
            Self::String(field) => {
                // The length, as a varint of three bytes.
                let length = [0x80 | 0x60, 0x80 | 0x7f, 0x0f];
                let bytes = usize::from(length[0] & 0x7f) | 0x7f << 7 | 0xf << 14;
                assert!(bytes < room);
                with_payload(stream, [&[field << 3 | 2][..], &length, &vec![b'x'; bytes]].concat())
            }
            Self::Number(field) => with_payload(stream, [&[field << 3][..], &[0xff; 9], &[1]].concat()),
        }
    }
}

/// A guest, until the client is gone. It lies at the first call, or at the first of this method;
/// before that it tells the truth, and of processes that they run.
pub(crate) async fn liar<S>(mut stream: S, at: Option<&'static str>, lie: Lie)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if lie == Lie::Deaf {
        // Nothing can be written to who is gone, not even nothing.
        while stream.write(&[]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        return;
    }
    let (method, payload, called) = loop {
        let mut header = [0; 10];
        if stream.read_exact(&mut header).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        let called = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let mut request = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut request).await.unwrap();
        let Request { method, payload, .. } = Request::parse_from_bytes(&request).unwrap();
        if at.is_none_or(|at| at == method) {
            break (method, payload, called);
        }
        if method != "Wait" {
            stream.write_all(&with_payload(called, sound(&method, &payload))).await.unwrap();
        }
    };
    // The client may close the connection in the middle.
    let mut said = stream.write_all(&lie.bytes((&method, &payload), called)).await.is_ok();
    match lie {
        Lie::Cut(_) => return,
        Lie::Endless(_) | Lie::Noise(_) => {
            for _ in 0..ENDLESS {
                if !said || stream.write_all(&[0xff; 4096]).await.is_err() {
                    break;
                }
            }
        }
        Lie::Flood => {
            for nobody in (0..=u32::MAX).rev().take(ENDLESS) {
                if stream.write_all(&frame(2, nobody, 0, &[])).await.is_err() {
                    break;
                }
            }
        }
        Lie::Drip => {
            while said {
                tokio::time::sleep(Duration::from_secs(1)).await;
                said = stream.write_all(&[0x0a]).await.is_ok();
            }
        }
        _ => {}
    }
    // Whatever else it is asked; the client's end is the end.
    let _all = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// An error as it is printed.
fn shown(error: &AgentError) -> String {
    nelly_vmm::text::chain(error)
}

fn lied(error: &AgentError) -> bool {
    matches!(error, AgentError::Call { source: CallError::Lied(_), .. })
}

fn silent(error: &AgentError) -> bool {
    matches!(error, AgentError::Call { source: CallError::Silent, .. })
}

/// One call beside one lie.
async fn meets(verb: &Verb, lie: Lie, fate: Fate) {
    let what = format!("{} beside {lie:?}", verb.name);
    // A guest that reads nothing has room for part of a request.
    let room = if lie == Lie::Deaf { 16 } else { 64 << 10 };
    let (near, far) = tokio::io::duplex(room);
    let guest = tokio::spawn(liar(far, None, lie));
    let agent = Agent::over(near);
    let began = Instant::now();
    let call = (verb.call)(agent.clone());
    let patience = verb.limit.unwrap_or(Duration::from_secs(3600));
    match (tokio::time::timeout(patience, call).await, fate) {
        // It waits for as long as a process runs, and whoever asked can go.
        (Err(_), Fate::Silent) if verb.limit.is_none() => {}
        (Err(_), _) => panic!("{what}: it did not end in time"),
        (Ok(Ok(())), Fate::Ends) => {}
        // The end of the connection is the machine's.
        (Ok(Ok(())), Fate::Fails) if verb.name == "Shutdown" && matches!(lie, Lie::Cut(_)) => {}
        (Ok(Ok(())), _) => panic!("{what}: it succeeded"),
        (Ok(Err(error)), fate) => {
            let text = shown(&error);
            assert!(text.len() < SENTENCE_MOST + 200, "{what}: {} bytes", text.len());
            assert!(text.starts_with("the agent's "), "{what}: {text}");
            assert_eq!(lied(&error), fate == Fate::Lied, "{what}: {text}");
            let at_once = began.elapsed() < Duration::from_secs(1);
            assert_eq!(silent(&error), !at_once, "{what}: {text}");
            assert_eq!(fate == Fate::Silent, !at_once, "{what}: {text}");
        }
    }
    if fate == Fate::Lied {
        // Nothing more is believed.
        let again = agent.stats("c").await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(1), "{what}: {}", shown(&again));
    }
    drop(agent);
    let gone = tokio::time::timeout(Duration::from_secs(5), guest).await;
    gone.unwrap_or_else(|_| panic!("{what}: the connection stays open")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_beside_every_lie() {
    for verb in verbs() {
        for (lie, fate) in Lie::all() {
            meets(&verb, lie, fate).await;
        }
        // The end of the connection at each byte of an answer.
        for count in 10..with_payload(1, sound(verb.name, &[])).len() {
            meets(&verb, Lie::Cut(count), Fate::Fails).await;
        }
    }
}

/// A guest that answers calls by hand.
struct ByHand(DuplexStream);

impl ByHand {
    /// The stream of the next call.
    async fn called(&mut self) -> u32 {
        let mut header = [0; 10];
        self.0.read_exact(&mut header).await.unwrap();
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        self.0.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.unwrap();
        u32::from_be_bytes(header[4..8].try_into().unwrap())
    }

    async fn says(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_no_lie_and_a_second_one_is() {
    let (near, far) = tokio::io::duplex(4096);
    let (agent, mut guest) = (Agent::over(near), ByHand(far));
    let late = async {
        let first = guest.called().await;
        tokio::time::sleep(MINUTE).await;
        guest.says(&with_payload(first, Vec::new())).await;
        let second = guest.called().await;
        // Each call has a stream of its own.
        assert_ne!(first, second);
        guest.says(&with_payload(second, Vec::new())).await;
        second
    };
    let calls = async {
        assert!(silent(&agent.stats("c").await.unwrap_err()));
        tokio::time::sleep(Duration::from_secs(5)).await;
        agent.stats("c").await.unwrap();
    };
    let (second, ()) = tokio::join!(late, calls);
    let waits = tokio::time::timeout(MINUTE, agent.wait(ID));
    let again = async {
        let _third = guest.called().await;
        guest.says(&with_payload(second, Vec::new())).await;
    };
    let (waited, ()) = tokio::join!(waits, again);
    assert!(lied(&waited.unwrap().unwrap_err()), "who waits for a process is told of the lie");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_no_process_has_is_none() {
    for (exit_code, signal, is_one) in [(0, 0, true), (255, 64, true), (256, 0, false), (0, 65, false)] {
        let (near, far) = tokio::io::duplex(4096);
        let (agent, mut guest) = (Agent::over(near), ByHand(far));
        let answers = async {
            let stream = guest.called().await;
            let done = wire::WaitResponse { exit_code, signal, ..Default::default() };
            guest.says(&with_payload(stream, done.write_to_bytes().unwrap())).await;
        };
        let (waited, ()) = tokio::join!(agent.wait(ID), answers);
        assert_eq!(waited.is_ok(), is_one, "{exit_code} {signal}: {waited:?}");
    }
}
