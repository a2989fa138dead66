//! The agent that is played, and the processes that it says it has.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::lie::Lie;
use crate::message::{Message, REQUEST, answer, bytes, number, refusal};
use crate::{frame as told, send};

const TOKEN_BYTES: usize = 16;
const NOT_FOUND: u64 = 5;
const UNIMPLEMENTED: u64 = 12;

/// A stream of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Input,
    Output,
    Errors,
}

#[derive(Debug, Default)]
struct Process {
    runs: bool,
    /// It ends by a signal alone.
    stays: bool,
    /// Output streams that the host has not dialled, or that are not written yet.
    unserved: usize,
    /// Exit code and signal.
    ended: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct State {
    /// By the exec's id; the container's first one has none.
    processes: HashMap<String, Process>,
    /// The streams that were promised, by their tokens.
    promised: Vec<(String, Role)>,
}

/// A guest.
pub(crate) struct Guest {
    state: Mutex<State>,
    changed: Condvar,
    lie: Option<(String, Lie)>,
    /// Where the machine's outcome is told.
    done: UnixStream,
}

impl Guest {
    pub(crate) fn new(lie: Option<(String, Lie)>, done: UnixStream) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), lie, done }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's end.
    pub(crate) fn end(&self, reason: &str) -> ! {
        let _gone = send(&self.done, &told(&format!("{{\"reason\":\"{reason}\",\"starts\":1}}")), None);
        std::process::exit(0);
    }

    /// Serves a connection to the agent.
    pub(crate) fn agent(self: &Arc<Self>, stream: UnixStream) {
        let stream = Arc::new(stream);
        let mut lie = self.lie.clone();
        let mut reader: &UnixStream = &stream;
        loop {
            let mut header = [0; 10];
            if reader.read_exact(&mut header).is_err() {
                return;
            }
            let [length, asked] =
                [0, 4].map(|at| u32::from_be_bytes(header[at..at + 4].try_into().expect("four")));
            let mut request = vec![0; usize::try_from(length).expect("usize has at least 32 bits")];
            if header[8] != REQUEST || reader.read_exact(&mut request).is_err() {
                return;
            }
            let (method, payload) = (Message(&request).text(2), Message(&request).bytes(3));
            if let Some((_, lie)) = lie.take_if(|(at, _)| *at == method) {
                let truth = self.answer(&method, Message(payload)).unwrap_or_default();
                if lie.tell(&stream, asked, &truth) {
                    continue;
                }
                // Whatever else it is asked; the client's end is the end.
                let _all = std::io::copy(&mut reader, &mut std::io::sink());
                return;
            }
            if method == "Wait" {
                let (guest, stream, exec) = (Arc::clone(self), Arc::clone(&stream), Message(payload).text(2));
                std::thread::spawn(move || say(&stream, asked, guest.wait(&exec)));
                continue;
            }
            say(&stream, asked, self.answer(&method, Message(payload)));
            if method == "Shutdown" {
                self.end("power_off");
            }
        }
    }

    /// The payload of an honest answer, or the code of a refusal.
    fn answer(&self, method: &str, request: Message<'_>) -> Result<Vec<u8>, u64> {
        match method {
            "Hello" => Ok([number(1, 1), bytes(4, b"0-played")].concat()),
            "CreateContainer" => {
                let tokens = self.make("", request.bytes(2), Message(request.bytes(6)));
                Ok(bytes(1, &tokens))
            }
            "StartContainer" => {
                self.begin("");
                Ok(number(1, 1))
            }
            "Exec" => {
                let exec = request.text(2);
                let tokens = self.make(&exec, request.bytes(3), Message(request.bytes(6)));
                self.begin(&exec);
                Ok([number(1, 2), bytes(3, &tokens)].concat())
            }
            "Signal" => {
                let (exec, signal) = (request.text(2), request.number(3));
                let mut state = self.state();
                let process = state.processes.get_mut(&exec).ok_or(NOT_FOUND)?;
                if process.runs && signal != 0 {
                    process.ended.get_or_insert((128 + signal, signal));
                }
                self.changed.notify_all();
                Ok(Vec::new())
            }
            "DeleteExec" => {
                let removed = self.state().processes.remove(&request.text(2));
                removed.map(|_| Vec::new()).ok_or(NOT_FOUND)
            }
            "Wait" | "Shutdown" | "State" | "Stats" | "Timeline" | "CloseStdin" | "ResizePty" => {
                Ok(Vec::new())
            }
            _ => Err(UNIMPLEMENTED),
        }
    }

    /// A new process, and the tokens of its streams.
    fn make(&self, exec: &str, spec: &[u8], asked: Message<'_>) -> Vec<u8> {
        let word = b"\"stay\"";
        let stays = spec.windows(word.len()).any(|some| some == word);
        let mut state = self.state();
        let (mut tokens, mut unserved) = (Vec::new(), 0);
        for (role, field, token) in [(Role::Input, 7, 1), (Role::Output, 8, 2), (Role::Errors, 9, 3)] {
            if asked.number(field) != 0 {
                let index = u64::try_from(state.promised.len()).expect("64 bits");
                state.promised.push((exec.to_owned(), role));
                tokens.extend(bytes(token, &[[b't'; TOKEN_BYTES - 8], index.to_le_bytes()].concat()));
                unserved += usize::from(role != Role::Input);
            }
        }
        state.processes.insert(exec.to_owned(), Process { stays, unserved, ..Process::default() });
        tokens
    }

    fn begin(&self, exec: &str) {
        if let Some(process) = self.state().processes.get_mut(exec) {
            process.runs = true;
            process.look();
        }
        self.changed.notify_all();
    }

    fn wait(&self, exec: &str) -> Result<Vec<u8>, u64> {
        let mut state = self.state();
        loop {
            let process = state.processes.get(exec).ok_or(NOT_FOUND)?;
            if let Some((code, signal)) = process.ended {
                return Ok([number(1, code), number(2, signal)].concat());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Serves a stream of a process: the one whose token comes first.
    pub(crate) fn stream(&self, mut stream: UnixStream) {
        let mut token = [0; TOKEN_BYTES];
        if stream.read_exact(&mut token).is_err() {
            return;
        }
        let index = u64::from_le_bytes(token[TOKEN_BYTES - 8..].try_into().expect("eight"));
        let promised =
            usize::try_from(index).ok().and_then(|index| self.state().promised.get(index).cloned());
        let Some((exec, role)) = promised else { return };
        if role == Role::Input {
            let _all = std::io::copy(&mut stream, &mut std::io::sink());
            return;
        }
        let mut state = self.state();
        // Nothing is said before it runs.
        while state.processes.get(&exec).is_some_and(|process| !process.runs) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if role == Role::Output {
            let _reader_gone = stream.write_all(b"hello\n");
        }
        if let Some(process) = state.processes.get_mut(&exec) {
            process.unserved -= 1;
            process.look();
        }
        self.changed.notify_all();
        while state.processes.get(&exec).is_some_and(|process| process.ended.is_none()) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Process {
    /// It ends when it has said what it has to say.
    fn look(&mut self) {
        if self.runs && !self.stays && self.unserved == 0 {
            self.ended.get_or_insert((0, 0));
        }
    }
}

/// Says an answer. The client may be gone.
fn say(mut stream: &UnixStream, asked: u32, what: Result<Vec<u8>, u64>) {
    let frame = match what {
        Ok(payload) => answer(asked, &payload),
        Err(code) => refusal(asked, code, "the played guest has nothing of this"),
    };
    let _gone = stream.write_all(&frame);
}
