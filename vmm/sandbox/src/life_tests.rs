use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use nelly_protocol::messages as m;
use nelly_protocol::service::{self, create_agent};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;

const ID: ProcessId<'_> = ProcessId { container: "c", exec: "" };

/// Far below the minute after which a call fails by itself, far above what a busy machine takes.
const SOON: Duration = Duration::from_secs(30);

/// An agent that answers what it is told to, and forgets to answer everything else.
struct Scripted {
    answers_signals: bool,
    /// Signals and sizes, as they came.
    heard: Arc<Mutex<Vec<String>>>,
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
        self.heard.lock().unwrap().push(what);
        if self.answers_signals { Ok(m::Empty::default()) } else { std::future::pending().await }
    }
}

/// A scripted agent, a connection to it, and what it heard. It ends its process when `end` says so.
struct Guest {
    agent: Agent,
    heard: Arc<Mutex<Vec<String>>>,
    end: watch::Sender<bool>,
    _server: Server,
    _place: tempfile::TempDir,
}

async fn guest(answers_signals: bool) -> Guest {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("agent");
    let listener = Listener::bind_unix(path.to_str().unwrap()).unwrap();
    let heard = Arc::default();
    let (end, ended) = watch::channel(false);
    let scripted = Scripted { answers_signals, heard: Arc::clone(&heard), ended };
    let mut server = Server::new().register_service(create_agent(Arc::new(scripted))).add_listener(listener);
    server.start().await.unwrap();
    let agent = Agent::new(UnixStream::connect(&path).unwrap()).unwrap();
    Guest { agent, heard, end, _server: server, _place: place }
}

fn outside(limit: Option<Duration>) -> (UnboundedSender<Request>, Outside) {
    let (send, requests) = unbounded_channel();
    (send, Outside::new(requests, limit))
}

/// How it ended, which it has to soon.
async fn attend(outside: &mut Outside, guest: &Guest) -> Ended {
    let ended = tokio::time::timeout(SOON, outside.attend(&guest.agent, ID)).await;
    ended.expect("the guest kept its caller").unwrap()
}

#[tokio::test]
async fn a_guest_that_answers_nothing_is_left_at_the_limit_and_for_every_wish() {
    // Each first asks for something that is never answered.
    let table: [(&[Request], Option<Duration>, Exit); 4] = [
        (
            &[Request::Signal(Signal::INT)],
            Some(Duration::from_millis(50)),
            Exit { code: 124, reason: "timeout" },
        ),
        (
            &[Request::Signal(Signal::INT), Request::Kill(Signal::INT)],
            None,
            Exit { code: 130, reason: "killed" },
        ),
        (
            &[Request::Resize { rows: 1, columns: 2 }, Request::Signal(Signal::TERM)],
            None,
            Exit { code: 143, reason: "killed" },
        ),
        (&[Request::Signal(Signal::USR1), Request::HangUp], None, Exit { code: 129, reason: "hung_up" }),
    ];
    for (requests, limit, exit) in table {
        let guest = guest(false).await;
        let (send, mut outside) = outside(limit);
        requests.iter().for_each(|request| send.send(*request).unwrap());
        assert_eq!(attend(&mut outside, &guest).await, Ended::Left(exit), "{requests:?}");
    }
}

#[tokio::test]
async fn a_stage_without_a_process_is_left_at_once() {
    let (_send, mut timed) = outside(Some(Duration::from_millis(10)));
    let exit = timed.during(std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(exit, Exit { code: 124, reason: "timeout" });
    for (request, code, reason) in [
        (Request::Signal(Signal::TERM), 143, "killed"),
        (Request::Signal(Signal::USR1), 138, "killed"),
        (Request::Kill(Signal::INT), 130, "killed"),
        (Request::HangUp, 129, "hung_up"),
    ] {
        let (send, mut outside) = outside(None);
        send.send(Request::Resize { rows: 1, columns: 1 }).unwrap();
        send.send(request).unwrap();
        let exit = outside.during(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(exit, Exit { code, reason });
    }
    // Without anybody who could ask, it is as if nothing were asked.
    let (send, mut alone) = outside(None);
    drop(send);
    assert_eq!(alone.during(async { 5 }).await, Ok(5));
}

#[tokio::test]
async fn a_process_that_was_told_to_end_may_take_its_time() {
    let guest = guest(true).await;
    let (send, mut outside) = outside(None);
    send.send(Request::Signal(Signal::TERM)).unwrap();
    let end = guest.end.clone();
    tokio::spawn(async move {
        tokio::time::sleep(ANSWER * 2).await;
        end.send(true).unwrap();
    });
    assert_eq!(attend(&mut outside, &guest).await, Ended::Exited(Exit { code: 7, reason: "exited" }));
    assert_eq!(*guest.heard.lock().unwrap(), ["signal 15"]);
}

#[tokio::test]
async fn a_program_that_outlives_its_terminal_has_a_grace() {
    let guest = guest(true).await;
    let (send, mut outside) = outside(None);
    send.send(Request::HangUp).unwrap();
    send.send(Request::HangUp).unwrap();
    let began = Instant::now();
    let left = Ended::Left(Exit { code: 129, reason: "hung_up" });
    assert_eq!(attend(&mut outside, &guest).await, left);
    assert!(began.elapsed() >= HANG_UP_GRACE);
    assert_eq!(guest.heard.lock().unwrap()[0], "signal 1");
}

#[test]
fn what_waits_says_nothing_twice_and_the_latest_size_counts() {
    let mut waiting = Waiting::default();
    let size = |rows| Word::Resize { rows, columns: 80 };
    let (user, term) = (Word::Signal(Signal::USR1), Word::Signal(Signal::TERM));
    for word in [size(1), user, term, user, size(2)] {
        waiting.add(word);
    }
    assert!(waiting.asks_for_the_end());
    let order: Vec<_> = std::iter::from_fn(|| waiting.take()).collect();
    assert_eq!(order, [user, term, size(2)]);
    assert!(!waiting.asks_for_the_end());
}
