//! The protocol between a sandbox on the host and `nelly-agent`, PID 1 of the guest: the messages
//! and the asynchronous ttrpc service and client generated from `proto/agent.proto`, the vsock
//! ports, and the feature names. Beside it, in [`sandbox`], the protocol between a client and the
//! keeper of a sandbox. Nothing else.
//!
//! `proto/agent.proto` is the documentation of the messages; package `nelly.agent.v1` only ever
//! grows.

/// Major version of the protocol, said by both sides in `Hello`. Another major is refused.
pub const PROTOCOL_MAJOR: u32 = 1;

/// The id under which an agent that is a service of a guest serves that guest as a whole, as it
/// would serve a container: its processes, its files, its network.
pub const MACHINE: &str = "machine";

pub mod archive;
pub mod features;
pub mod inspect;
pub mod ports;
pub mod sandbox;

mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

/// Messages as bytes and back.
pub use protobuf::Message;

/// The messages of package `nelly.agent.v1`.
pub use generated::agent as messages;
/// The client (`AgentClient`), the service trait (`Agent`) and its registration (`create_agent`).
pub use generated::agent_ttrpc as service;
