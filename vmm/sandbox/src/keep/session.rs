//! An exec that outlives its clients: its output passes a ring of its own, as the container's does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::attach::{Attachment, Clients, Input};
use super::output::{Output, registered};
use crate::instance::{Sandbox, Streams};
use crate::spec::ProcessSpec;
use crate::wire::frames::Source;

/// How long output of one that has ended may fail to arrive.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

/// What its clients share.
pub(super) struct Session {
    output: Arc<Output>,
    input: Input,
    /// It has an input.
    pub(super) stdin: bool,
    /// It has a terminal.
    pub(super) terminal: bool,
    /// Who is attached.
    pub(super) clients: Clients,
}

impl Session {
    /// One whose process is not started yet.
    pub(super) fn new(process: &ProcessSpec) -> Arc<Self> {
        Arc::new(Self {
            output: Output::new(Box::new(|_, _| {})),
            input: Input::default(),
            stdin: process.stdin,
            terminal: process.terminal,
            clients: Clients::default(),
        })
    }

    /// Takes the streams of the process.
    pub(super) async fn connect(&self, streams: Streams) -> io::Result<JoinSet<io::Result<()>>> {
        let mut pumps = JoinSet::new();
        let Streams { stdin, stdout, stderr } = streams;
        if let Some(stream) = stdin {
            let (reads, writes) = registered(stream)?.into_split();
            *self.input.lock().await = Some(writes);
            if self.terminal {
                pumps.spawn(Arc::clone(&self.output).pump(reads, Source::Output));
            }
        }
        for (stream, source) in [(stdout, Source::Output), (stderr, Source::Error)] {
            if let Some(stream) = stream {
                pumps.spawn(Arc::clone(&self.output).pump(registered(stream)?, source));
            }
        }
        Ok(pumps)
    }

    /// Waits for the rest of the output, after which attachments end.
    pub(super) async fn drain(&self, mut pumps: JoinSet<io::Result<()>>, sandbox: &Sandbox) {
        let all = async {
            let mut seen = self.output.end();
            loop {
                match tokio::time::timeout(LAST_OUTPUT, pumps.join_next()).await {
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    // A client that reads slowly holds it up, and nothing else does.
                    Err(_) if self.output.is_waited_for() && self.output.end() > seen => {
                        seen = self.output.end();
                    }
                    Err(_) => return,
                }
            }
        };
        tokio::select! {
            biased;
            () = all => {}
            () = sandbox.gone() => {}
        }
        self.output.finish();
        *self.input.lock().await = None;
    }

    /// What the client that started it is attached to: all output, and an input that ends with the
    /// client's.
    pub(super) fn first_attachment(&self) -> Attachment {
        let ends_input = !self.terminal;
        Attachment { ends_input, is_first: true, ..self.attachment(self.stdin) }
    }

    /// What a later client is attached to.
    pub(super) fn attachment(&self, stdin: bool) -> Attachment {
        Attachment {
            output: Arc::clone(&self.output),
            input: stdin.then(|| Arc::clone(&self.input)),
            ends_input: false,
            is_first: false,
            clients: self.clients.clone(),
        }
    }
}
