//! vsock ports, all in one range that starts at [`AGENT_PORT`] and ends at [`STREAM_PORT`].
//!
//! Two are the guest's, which the host dials: [`AGENT_PORT`] and [`STREAM_PORT`]. Two are the
//! host's, which the agent dials, once each and before there is any container: [`POWER_PORT`] and
//! [`READY_PORT`]. Every process of the guest can dial the host, so nothing that comes later on a
//! port of the host is believed; and the agent believes no connection but the host's
//! ([`HOST_CID`]).
//!
//! An agent that is a service of a guest with an init of its own listens at privileged ports
//! instead ([`SERVICE_PORT`], [`SERVICE_STREAM_PORT`]), and dials [`READY_PORT`] alone; that
//! connection, on which nothing is said, is no more than a hint that it is worth to call it.
//!
//! Order at boot: the agent listens, dials [`POWER_PORT`] and [`READY_PORT`], and says that it is
//! ready once both connections stand. Order at the end: it says its word on the connection to
//! [`POWER_PORT`] and waits for the machine to end.

/// Context id of the host.
pub const HOST_CID: u32 = 2;

/// The agent listens here in the guest; ttrpc, service `nelly.agent.v1.Agent`.
pub const AGENT_PORT: u32 = 500_000;

/// The agent dials the host here while it boots, sends one byte ([`READY_BYTE`]) when it can be
/// called, and closes.
pub const READY_PORT: u32 = 500_001;

/// The agent dials the host here while it boots and holds the connection. As its very last act it
/// sends one byte: [`POWER_OFF`], [`POWER_REBOOT`] or [`POWER_PANIC`]. The monitor answers this
/// port, once for each start of the guest, and ends or resets the machine; the agent waits for the
/// close and then falls back to a reset by reboot(2).
pub const POWER_PORT: u32 = 500_002;

/// The agent listens here in the guest for the streams of processes; a connection begins with the
/// token of its stream, see `Stdio`.
pub const STREAM_PORT: u32 = 500_003;

/// In the place of [`AGENT_PORT`] where the agent is a service of a guest with an init of its own,
/// whose processes could listen at any port that is not privileged, before the agent does.
pub const SERVICE_PORT: u32 = 1000;

/// In the place of [`STREAM_PORT`], likewise.
pub const SERVICE_STREAM_PORT: u32 = 1001;

/// Bytes of a stream's token.
pub const TOKEN_BYTES: usize = 16;

/// What the agent sends on [`READY_PORT`].
pub const READY_BYTE: u8 = b'!';

/// Word on [`POWER_PORT`]: the guest is done, end the machine.
pub const POWER_OFF: u8 = b'o';

/// Word on [`POWER_PORT`]: the guest asks to be started again.
pub const POWER_REBOOT: u8 = b'r';

/// Word on [`POWER_PORT`]: the agent failed and cannot go on; the reason is on the console.
pub const POWER_PANIC: u8 = b'p';
