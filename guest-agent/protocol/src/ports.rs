//! vsock ports, all in one range that starts at [`AGENT_PORT`] and ends at [`STDIO_LAST`].
//!
//! Order at boot: the agent listens on [`AGENT_PORT`], then dials [`READY_PORT`]. Order at the end: the agent dials
//! [`POWER_PORT`], says its word and waits for the machine to end.

/// Context id of the host, which the guest dials.
pub const HOST_CID: u32 = 2;

/// The agent listens here in the guest; ttrpc, service `nelly.agent.v1.Agent`.
pub const AGENT_PORT: u32 = 500_000;

/// The agent dials the host here once it listens on [`AGENT_PORT`], sends one byte ([`READY_BYTE`]) and closes.
pub const READY_PORT: u32 = 500_001;

/// The agent dials the host here as its very last act and sends one byte: [`POWER_OFF`], [`POWER_REBOOT`] or
/// [`POWER_PANIC`]. The monitor answers this port and ends or resets the machine; the agent waits for the close and then
/// falls back to a reset by reboot(2).
pub const POWER_PORT: u32 = 500_002;

/// First port that the host may name in `Stdio`; the guest dials it.
pub const STDIO_FIRST: u32 = 510_000;

/// Last port that the host may name in `Stdio`.
pub const STDIO_LAST: u32 = 599_999;

/// What the agent sends on [`READY_PORT`].
pub const READY_BYTE: u8 = b'!';

/// Word on [`POWER_PORT`]: the guest is done, end the machine.
pub const POWER_OFF: u8 = b'o';

/// Word on [`POWER_PORT`]: the guest asks to be started again.
pub const POWER_REBOOT: u8 = b'r';

/// Word on [`POWER_PORT`]: the agent failed and cannot go on; the reason is on the console.
pub const POWER_PANIC: u8 = b'p';
