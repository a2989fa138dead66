//! A life beside a guest that answers or does not, on a clock that moves when the test says so.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};

use async_trait::async_trait;
use nelly_protocol::messages as m;
use nelly_protocol::service::{self, create_agent};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::advance;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;

const ID: ProcessId<'_> = ProcessId { container: "c", exec: "" };

/// An agent that answers what it is told to, and forgets to answer everything else.
struct Scripted {
    answers_signals: bool,
    /// Signals and sizes, as they came.
    heard: watch::Sender<Vec<String>>,
    ended: watch::Receiver<bool>,
}

#[async_trait]
impl service::Agent for Scripted {
    async fn wait(&self, _: &TtrpcContext, _: m::WaitRequest) -> ttrpc::Result<m::WaitResponse> {
        let mut ended = self.ended.clone();
        // Its sender outlives every wait of these tests.
        let _ = ended.wait_for(|ended| *ended).await;
        Ok(m::WaitResponse { exit_code: 7, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: m::SignalRequest) -> ttrpc::Result<m::Empty> {
        self.hear(format!("signal {}", request.signal)).await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: m::ResizePtyRequest) -> ttrpc::Result<m::Empty> {
        self.hear(format!("{}x{}", request.rows, request.columns)).await
    }
}

impl Scripted {
    async fn hear(&self, what: String) -> ttrpc::Result<m::Empty> {
        self.heard.send_modify(|heard| heard.push(what));
        if self.answers_signals { Ok(m::Empty::default()) } else { std::future::pending().await }
    }
}

/// A life that is attended, and its guest.
struct Life {
    ended: JoinHandle<Result<Ended, AgentError>>,
    requests: UnboundedSender<ProcessRequest>,
    heard: watch::Receiver<Vec<String>>,
    /// Ends the process.
    end: watch::Sender<bool>,
    _server: Server,
    _place: tempfile::TempDir,
    /// While somebody waits at its other end, the clock stands still.
    _clock: mpsc::Sender<()>,
}

impl Life {
    async fn new(answers_signals: bool, limit: Option<Duration>) -> Self {
        // A clock that jumps to the next deadline whenever nothing is ready would run ahead of
        // sockets.
        let (clock, stands) = mpsc::channel();
        tokio::task::spawn_blocking(move || stands.recv());
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("agent");
        let listener = Listener::bind_unix(path.to_str().unwrap()).unwrap();
        let (told, heard) = watch::channel(Vec::new());
        let (end, ended) = watch::channel(false);
        let scripted = Arc::new(Scripted { answers_signals, heard: told, ended });
        let mut server = Server::new().register_service(create_agent(scripted)).add_listener(listener);
        server.start().await.unwrap();
        let agent = Agent::new(UnixStream::connect(&path).unwrap()).unwrap();
        let (requests, mut outside) = outside(limit);
        let ended = tokio::spawn(async move { outside.attend(&agent, ID).await });
        Self { ended, requests, heard, end, _server: server, _place: place, _clock: clock }
    }

    /// Asks for something, and waits until the guest was told this.
    async fn ask(&mut self, request: ProcessRequest, word: &str) {
        self.requests.send(request).unwrap();
        self.heard.wait_for(|heard| heard.iter().any(|heard| heard == word)).await.unwrap();
    }

    /// It is left, as soon as this time is over and not before.
    async fn left_after(self, time: Duration, exit: Exit) {
        let moment = Duration::from_millis(1);
        advance(time - moment).await;
        settle().await;
        assert!(!self.ended.is_finished(), "its guest has time left");
        advance(moment).await;
        assert_eq!(self.ended.await.unwrap().unwrap(), Ended::Left(exit));
    }
}

fn outside(limit: Option<Duration>) -> (UnboundedSender<ProcessRequest>, Outside) {
    let (send, requests) = unbounded_channel();
    (send, Outside::new(requests, limit))
}

/// Lets every task run that can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_answers_nothing_is_left_at_the_limit_and_for_every_wish() {
    let limit = Duration::from_secs(3);
    // Each first asks for something that is never answered.
    let int = (ProcessRequest::Signal(Signal::INT), "signal 2");
    let size = (ProcessRequest::Resize { rows: 1, columns: 2 }, "1x2");
    let user = (ProcessRequest::Signal(Signal::USR1), "signal 10");
    let killed = |code| Exit { code, reason: "killed" };
    let table = [
        (int, None, limit, Exit { code: 124, reason: "timeout" }),
        (size, Some(ProcessRequest::Signal(Signal::TERM)), ANSWER, killed(143)),
        (user, Some(ProcessRequest::HangUp), ANSWER, Exit { code: 129, reason: "hung_up" }),
    ];
    for ((request, word), wish, time, exit) in table {
        let mut life = Life::new(false, Some(limit)).await;
        life.ask(request, word).await;
        if let Some(wish) = wish {
            life.requests.send(wish).unwrap();
            settle().await;
        }
        life.left_after(time, exit).await;
    }
    // At once.
    let mut life = Life::new(false, None).await;
    life.ask(int.0, int.1).await;
    life.requests.send(ProcessRequest::Kill(Signal::INT)).unwrap();
    assert_eq!(life.ended.await.unwrap().unwrap(), Ended::Left(killed(130)));
}

#[tokio::test(start_paused = true)]
async fn a_stage_without_a_process_is_left_at_once() {
    let (_send, mut timed) = outside(Some(Duration::from_millis(10)));
    let exit = timed.during(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(exit, Exit { code: 124, reason: "timeout" });
    for (request, code, reason) in [
        (ProcessRequest::Signal(Signal::TERM), 143, "killed"),
        (ProcessRequest::Signal(Signal::USR1), 138, "killed"),
        (ProcessRequest::Kill(Signal::INT), 130, "killed"),
        (ProcessRequest::HangUp, 129, "hung_up"),
    ] {
        let (send, mut outside) = outside(None);
        send.send(ProcessRequest::Resize { rows: 1, columns: 1 }).unwrap();
        send.send(request).unwrap();
        let exit = outside.during(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(exit, Exit { code, reason });
    }
    // Without anybody who could ask, it is as if nothing were asked.
    let (send, mut alone) = outside(None);
    drop(send);
    assert_eq!(alone.during(async { 5 }).await, Ok(5));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_told_to_end_may_take_its_time() {
    let mut life = Life::new(true, None).await;
    life.ask(ProcessRequest::Signal(Signal::TERM), "signal 15").await;
    // One word after the other: the answer to the first has come.
    life.ask(ProcessRequest::Signal(Signal::USR1), "signal 10").await;
    advance(ANSWER * 1000).await;
    life.end.send(true).unwrap();
    let exited = Ended::Exited(Exit { code: 7, reason: "exited" });
    assert_eq!(life.ended.await.unwrap().unwrap(), exited);
    assert_eq!(*life.heard.borrow(), ["signal 15", "signal 10"]);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_outlives_its_terminal_has_a_grace() {
    let mut life = Life::new(true, None).await;
    life.ask(ProcessRequest::HangUp, "signal 1").await;
    life.ask(ProcessRequest::Signal(Signal::USR1), "signal 10").await;
    life.requests.send(ProcessRequest::HangUp).unwrap();
    life.left_after(HANG_UP_GRACE, Exit { code: 129, reason: "hung_up" }).await;
}

#[test]
fn signals_have_names_and_numbers() {
    for (text, number) in [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("sigkill", 9),
        ("1", 1),
        ("SYS", 31),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
    ] {
        assert_eq!(text.parse::<Signal>().map(Signal::number), Ok(number), "{text}");
    }
    for bad in ["", "0", "65", "-1", "SIG", "NOPE", "RTMIN+200", "RTMAX-65", "SIG9"] {
        assert!(bad.parse::<Signal>().is_err(), "{bad}");
    }
}

#[test]
fn what_waits_says_nothing_twice_and_the_latest_size_counts() {
    let mut waiting = Waiting::default();
    let size = |rows| Instruction::Resize { rows, columns: 80 };
    let (user, term) = (Instruction::Signal(Signal::USR1), Instruction::Signal(Signal::TERM));
    for word in [size(1), user, term, user, size(2)] {
        waiting.add(word);
    }
    assert!(waiting.asks_for_the_end());
    let order: Vec<_> = std::iter::from_fn(|| waiting.take()).collect();
    assert_eq!(order, [user, term, size(2)]);
    assert!(!waiting.asks_for_the_end());
}
