//! From a request to a running process: the plan (pure), the pre-exec stage that carries it out,
//! and the agent's side of the stage.

pub mod caps;
pub mod devices;
pub mod elf;
pub mod init;
pub mod launch;
pub mod limits;
pub mod mount_options;
pub mod plan;
pub mod seccomp;
pub mod shares;
pub mod spec;
pub mod stage;
pub mod users;

/// Bytes of a failure's message that fit a packet.
const LONGEST_MESSAGE: usize = 4000;

/// Class of a failure to start, which decides on the exit code that a person sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The surroundings could not be made: 125.
    Other,
    /// The program is there but cannot be executed: 126.
    NotExecutable,
    /// The program is not there: 127.
    NotFound,
}

impl FailureKind {
    /// The letter on the stage's channel.
    const fn letter(self) -> u8 {
        match self {
            Self::Other => b'o',
            Self::NotExecutable => b'x',
            Self::NotFound => b'n',
        }
    }

    const fn of_letter(letter: u8) -> Self {
        match letter {
            b'x' => Self::NotExecutable,
            b'n' => Self::NotFound,
            _ => Self::Other,
        }
    }

    /// 125, 126 or 127.
    #[must_use]
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::Other => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }
}

/// Why a process did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageFailure {
    /// Class.
    pub kind: FailureKind,
    /// What was tried, on which path, and the system's answer.
    pub message: String,
}

/// An error and its sources in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
