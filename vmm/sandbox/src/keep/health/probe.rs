//! One probe: a process in the container, its output, and its end by itself or by SIGKILL.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nelly_vmm::text;
use tokio::io::AsyncReadExt;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::until_runs;
use crate::agent::{ProcessId, StartFailure};
use crate::instance::{Sandbox, Streams};
use crate::keep::output::registered;
use crate::life::{Signal, exit_of};
use crate::spec::ProcessSpec;
use crate::state::{Exit, SandboxState};

/// Bytes of the latest output that are held.
const HELD: usize = 4 << 10;

/// How long output may take to arrive after the end of the process, which may have left others.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How long the process may take to end by SIGKILL, before the next probe counts as failed without
/// being started.
const KILLED: Duration = Duration::from_secs(2);

const WHOLE: &str = "nobody panics while output is added";

/// What reads the output of a process.
type Readers = JoinSet<io::Result<()>>;

/// The latest of what a probe wrote.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(HELD)..];
        let over = (self.0.len() + bytes.len()).saturating_sub(HELD);
        self.0.drain(..over);
        self.0.extend_from_slice(bytes);
    }
}

/// How the process ended.
enum Ending {
    /// Its output may still arrive.
    Exited(Exit, Readers),
    NotStarted(StartFailure),
    /// The guest could not be asked.
    Failed(String),
}

/// A probe, from its start on. Dropping it forgets the process.
pub(super) struct Probe {
    task: JoinHandle<Ending>,
    kill: Option<oneshot::Sender<()>>,
    output: Arc<Mutex<Tail>>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probe {
    /// Starts `process` in a container, under an id that no exec has.
    pub(super) fn start(sandbox: &Arc<Sandbox>, container: &str, exec: String, process: ProcessSpec) -> Self {
        let output = Arc::new(Mutex::new(Tail::default()));
        let (kill, killed) = oneshot::channel();
        let (sandbox, container, tail) = (Arc::clone(sandbox), container.to_owned(), Arc::clone(&output));
        let task = tokio::spawn(async move {
            let target = ProcessId { container: &container, exec: &exec };
            run(&sandbox, target, &process, &tail, killed).await
        });
        Self { task, kill: Some(kill), output }
    }

    /// Whether its process has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end, and kills it when it takes longer than `limit`. A pause of the machine
    /// does not count. Returns its exit code, if it has one, and its output; `None` if a pause cut
    /// the connection to it.
    pub(super) async fn result(
        &mut self,
        state: &mut watch::Receiver<SandboxState>,
        limit: Duration,
    ) -> Option<(Option<u8>, Vec<u8>)> {
        let (mut left, mut paused) = (limit, false);
        let ending = loop {
            let began = Instant::now();
            tokio::select! {
                biased;
                done = &mut self.task => break done.ok(),
                () = until_runs(state, false) => {
                    left = left.saturating_sub(began.elapsed());
                    paused = true;
                    until_runs(state, true).await;
                }
                () = sleep(left) => {
                    if let Some(kill) = self.kill.take() {
                        // It has ended just now.
                        let _ended = kill.send(());
                    }
                    let _ended = timeout(KILLED, &mut self.task).await;
                    let sentence = format!("the probe did not end within {limit:?}, and was killed");
                    return Some((None, self.said(&sentence)));
                }
            }
        };
        match ending {
            Some(Ending::Exited(exit, mut readers)) => {
                // What it left behind may hold its output open, and is not waited for.
                let rest = async { while readers.join_next().await.is_some() {} };
                let _late = timeout(LAST_OUTPUT, rest).await;
                Some((Some(exit.code), self.said("")))
            }
            Some(Ending::NotStarted(failure)) => Some((Some(failure.code), failure.message.into_bytes())),
            _ if paused => None,
            Some(Ending::Failed(error)) => Some((None, self.said(&error))),
            None => Some((None, self.said("the task that waits for the probe ended"))),
        }
    }

    /// What it wrote, after a sentence of ours, if there is one.
    fn said(&self, sentence: &str) -> Vec<u8> {
        let output = std::mem::take(&mut self.output.lock().expect(WHOLE).0);
        match (sentence.is_empty(), output.is_empty()) {
            (true, _) => output,
            (false, true) => sentence.as_bytes().to_vec(),
            (false, false) => [sentence.as_bytes(), b": ", &output].concat(),
        }
    }
}

async fn run(
    sandbox: &Sandbox,
    target: ProcessId<'_>,
    process: &ProcessSpec,
    output: &Arc<Mutex<Tail>>,
    kill: oneshot::Receiver<()>,
) -> Ending {
    let streams = match sandbox.exec(target, process, None).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(failure)) => return Ending::NotStarted(failure),
        Err(error) => return Ending::Failed(text::chain(&error)),
    };
    let readers = read(streams, output);
    let agent = sandbox.agent();
    let ended = {
        let kills = async {
            if kill.await.is_ok() {
                // What cannot be told has ended, or ends with the machine.
                let _told = agent.signal_group(target, Signal::KILL.number().into()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            ended = sandbox.during(agent.wait(target)) => ended,
            () = kills => unreachable!("it waits for ever"),
        }
    };
    match ended {
        Ok(done) => {
            // The agent forgets it in time by itself.
            let _deleted = agent.delete_exec(target.container, target.exec).await;
            Ending::Exited(exit_of(&done), readers)
        }
        Err(error) => Ending::Failed(text::chain(&error)),
    }
}

/// Reads all that a process says, however much it is, and holds the latest.
fn read(streams: Streams, output: &Arc<Mutex<Tail>>) -> Readers {
    let mut readers = JoinSet::new();
    for stream in [streams.stdout, streams.stderr].into_iter().flatten() {
        let output = Arc::clone(output);
        readers.spawn(async move {
            let (mut stream, mut buffer) = (registered(stream)?, vec![0; HELD]);
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    count => output.lock().expect(WHOLE).push(&buffer[..count]),
                }
            }
        });
    }
    readers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_output_is_held() {
        let mut tail = Tail::default();
        for piece in [&[b'a'; 10][..], &[b'b'; HELD - 4], b"c"] {
            tail.push(piece);
        }
        assert_eq!(tail.0.len(), HELD);
        assert!(tail.0.starts_with(b"aaabb") && tail.0.ends_with(b"bc"), "{:?}", &tail.0[..6]);
        tail.push(&vec![b'd'; 3 * HELD]);
        assert_eq!(tail.0, vec![b'd'; HELD]);
    }
}
