//! What a talk with a registry fails with.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why a registry did not give or take something. Words of the registry in a message are cut and
/// have no control characters.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The host or the path of a registry is none.
    #[error("`{word}` {problem}")]
    Name {
        /// What was given.
        word: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host could not be reached, or not be trusted.
    #[error("cannot connect to {host}: {problem}")]
    Connect {
        /// Host and port.
        host: String,
        /// Why, and what to do.
        problem: String,
    },
    /// The registry wants other credentials, or does not allow it.
    #[error(
        "{host} denies access to {what}{detail}: it does not exist, or needs other credentials (`nelly login {host}`)"
    )]
    Denied {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's words in brackets; else empty.
        detail: String,
    },
    /// A server of files wants credentials, or other ones.
    #[error("{host} denies access to {what}{detail}: it needs {}credentials", other(*.shown))]
    FileDenied {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
        /// The server's words in brackets; else empty.
        detail: String,
        /// Whether it was shown some.
        shown: bool,
    },
    /// What is fetched has more bytes than it may have.
    #[error("{what} has {}, more than the {most} that are allowed", bytes(*.told))]
    TooLarge {
        /// What was asked for.
        what: String,
        /// How many it has, if the server told.
        told: Option<u64>,
        /// How many it may have.
        most: u64,
    },
    /// What came could not be kept.
    #[error("cannot keep {what}")]
    Kept {
        /// What was asked for.
        what: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The registry does not have it.
    #[error("{host} does not have {what}{detail}")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's words in brackets; else empty.
        detail: String,
    },
    /// The registry asks for fewer requests (429), longer than it was worth waiting.
    #[error("{host} refuses more requests for now{}{detail}; try again later, or log in", after(*.retry_after))]
    TooManyRequests {
        /// The registry.
        host: String,
        /// How long it wants to be left alone, if it told.
        retry_after: Option<Duration>,
        /// The registry's words in brackets; else empty.
        detail: String,
    },
    /// Another status than was hoped for.
    #[error("{host} answers {what} with status {status}{detail}")]
    Status {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The status, such as 500.
        status: u16,
        /// The registry's words in brackets; else empty.
        detail: String,
    },
    /// An answer that no registry should give.
    #[error("{host} gives a bad answer to {what}: {problem}")]
    Protocol {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// Transfers ended early or stood still, more often than was worth trying.
    #[error("the transfer of {what} from or to {host} was cut: {problem}")]
    Cut {
        /// The registry.
        host: String,
        /// What was transferred.
        what: String,
        /// The last reason.
        problem: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{host} gives other bytes than {what}: {problem}")]
    Mismatch {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// How they differ.
        problem: String,
    },
    /// A file with credentials or certificates, or a helper program for them, cannot be used.
    #[error("cannot use {}: {problem}", path.display())]
    Credentials {
        /// The file or program.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The caller cancelled, or took no more bytes.
    #[error("the transfer was cancelled")]
    Cancelled,
}

fn after(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |time| format!(" (for {} seconds)", time.as_secs()))
}

fn other(shown: bool) -> &'static str {
    if shown { "other " } else { "" }
}

fn bytes(told: Option<u64>) -> String {
    told.map_or_else(|| "too many bytes".to_owned(), |told| format!("{told} bytes"))
}

impl RegistryError {
    /// A stable word for programs, `snake_case`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name { .. } => "registry_name_invalid",
            Self::Connect { .. } => "registry_unreachable",
            Self::Denied { .. } | Self::FileDenied { .. } => "registry_denied",
            Self::TooLarge { .. } => "too_large",
            Self::Kept { .. } => "io",
            Self::NotFound { .. } => "registry_not_found",
            Self::TooManyRequests { .. } => "registry_too_many_requests",
            Self::Status { .. } | Self::Protocol { .. } => "registry_failed",
            Self::Cut { .. } => "registry_cut",
            Self::Mismatch { .. } => "registry_corrupt",
            Self::Credentials { .. } => "registry_credentials_unusable",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Words from outside for a message: one line without control characters, at most 200 characters.
pub(crate) fn clean(words: &str) -> String {
    let spaced = words.chars().map(|c| if c.is_control() || is_bidi(c) { ' ' } else { c });
    spaced.take(200).collect::<String>().trim().to_owned()
}

/// Characters that change the direction of what follows.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_from_outside_do_not_drive_a_terminal() {
        assert_eq!(clean("a\x1b[31mb\nc\u{202e}d"), "a [31mb c d");
        assert_eq!(clean(&"x".repeat(1000)).len(), 200);
    }
}
