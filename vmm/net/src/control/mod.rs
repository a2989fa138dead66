//! What whoever holds a machine asks of its network while that runs: one message of a message
//! socket (SOCK_SEQPACKET) each way, JSON, at most [`MAX_MESSAGE`] bytes.
//!
//! The holder says a [`Request`], and is answered by an [`Answer`] with the same id; requests are
//! answered in their order. To add a port the holder makes the socket that listens, and passes it
//! with the request (`SCM_RIGHTS`), so that the network itself need not be able to listen. Neither
//! side believes the other's lengths or numbers: the network is next to a hostile guest.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Publish;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 << 10;
/// The most ports of one answer; others follow in the next one.
pub const PAGE: usize = 64;
/// The most published ports of one network.
pub const MAX_PORTS: usize = 1024;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u64,
    /// What is to be done.
    pub call: Call,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Publish a port, with the socket that comes with the message, which is bound to `bind`.
    Add(Publish),
    /// Publish it no more: its socket is closed. Connections that were accepted go on; peers of a
    /// UDP port are forgotten.
    Remove(Publish),
    /// Tell of the ports from this place on, and of what was counted.
    List(u32),
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The request's.
    pub id: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is done.
    Done,
    /// It is not, and this is why.
    Refused(String),
    /// A part of a list.
    Page(Page),
}

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// At most [`PAGE`] ports.
    pub ports: Vec<Port>,
    /// Where the next part begins; `None`: this is the last one.
    pub next: Option<u32>,
    /// What the network counted by now.
    pub traffic: Traffic,
}

/// A published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Where it listens, and where it leads to.
    pub publish: Publish,
    /// Connections that were accepted; of UDP: peers that were heard of.
    pub connections: u64,
    /// Those that were turned away, because there were too many.
    pub refused: u64,
}

/// What a guest asked for, counted since its network began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Connections, flows of datagrams and pings that were let out.
    pub allowed: u64,
    /// Those that a rule, or the network itself, did not let out.
    pub denied: u64,
    /// Names that were looked up.
    pub names_allowed: u64,
    /// Names that were not.
    pub names_denied: u64,
}

impl Request {
    /// The message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(message: &[u8]) -> Result<Self, String> {
        let request: Self = parse(message)?;
        match request.call {
            Call::Add(publish) | Call::Remove(publish) if publish.bind.port() == 0 => {
                Err(format!("{publish} has no port"))
            }
            Call::List(from) if crate::number::index(from) > MAX_PORTS => {
                Err(format!("there is no port at place {from}"))
            }
            _ => Ok(request),
        }
    }
}

impl Answer {
    /// The message; a reason is cut so that it fits.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        /// The longest reason, in bytes, each of which may take six in JSON.
        const MOST: usize = 1024;
        match &self.outcome {
            Outcome::Refused(why) if why.len() > MOST => {
                let why = why[..why.floor_char_boundary(MOST)].to_owned();
                serde_json::to_vec(&Self { id: self.id, outcome: Outcome::Refused(why) })
            }
            _ => serde_json::to_vec(self),
        }
        .unwrap_or_default()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(message: &[u8]) -> Result<Self, String> {
        let answer: Self = parse(message)?;
        match &answer.outcome {
            Outcome::Page(page) if page.ports.len() > PAGE => {
                Err(format!("{} ports are more than {PAGE}", page.ports.len()))
            }
            Outcome::Page(Page { next: Some(next), .. }) if crate::number::index(*next) > MAX_PORTS => {
                Err(format!("there is no port at place {next}"))
            }
            _ => Ok(answer),
        }
    }
}

fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<T, String> {
    if message.len() > MAX_MESSAGE {
        return Err(format!("it is longer than {MAX_MESSAGE} bytes"));
    }
    serde_json::from_slice(message).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
