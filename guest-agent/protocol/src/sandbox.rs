//! The protocol between a client and a sandbox's keeper. `proto/sandbox.proto` is the documentation
//! of the messages and of the two sockets; package `nelly.sandbox.v1` only ever grows.

/// Major version of the protocol, said by both sides in `Hello`. Another major is refused.
pub const PROTOCOL_MAJOR: u32 = 1;

/// Bytes of a token that the stream socket takes.
pub const TOKEN_BYTES: usize = 16;

/// File name of the socket that speaks the service, in the sandbox's runtime directory.
pub const CONTROL_SOCKET: &str = "control";

/// File name of the socket that hands out streams, beside it.
pub const STREAM_SOCKET: &str = "stream";

/// The messages of package `nelly.sandbox.v1`.
pub use crate::generated::sandbox as messages;
/// The client (`SandboxClient`), the service trait (`Sandbox`) and its registration
/// (`create_sandbox`).
pub use crate::generated::sandbox_ttrpc as service;
