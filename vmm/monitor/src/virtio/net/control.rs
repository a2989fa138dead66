//! Commands of the driver (virtio 1.2, 5.1.6.5): what each one asks for, as data.

use super::header::Offloads;
use super::spec::{control as spec, feature};
use crate::memory::Memory;
use crate::virtio::device::DeviceFault;
use crate::virtio::queue::Chain;

/// What the driver wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// So many pairs of queues are in use.
    Pairs(u16),
    /// What it takes from now on.
    Takes(Offloads),
    /// Nothing that there is here, or in a form that it does not have.
    Unknown,
}

/// Reads the command of a chain. `features` are those that were negotiated.
///
/// # Errors
/// There is no room for the answer: nobody would hear of it.
pub(super) fn read(chain: &Chain, memory: &Memory, features: u64) -> Result<Command, DeviceFault> {
    if chain.writable_len() == 0 {
        return Err(DeviceFault::Protocol("a command of the network device without room for its answer"));
    }
    let mut reader = chain.reader(memory);
    let mut head = [0; 2];
    if reader.read(&mut head)? < head.len() {
        return Ok(Command::Unknown);
    }
    let mut body = [0; 8];
    let has = |bit: u64| features & bit != 0;
    let left = reader.left();
    let command = match (head[0], head[1]) {
        (spec::CLASS_MQ, spec::MQ_VQ_PAIRS_SET) if has(feature::MQ) && left == 2 => {
            reader.read_exact(&mut body[..2])?;
            Command::Pairs(u16::from_le_bytes([body[0], body[1]]))
        }
        (spec::CLASS_GUEST_OFFLOADS, spec::GUEST_OFFLOADS_SET)
            if has(feature::CTRL_GUEST_OFFLOADS) && left == 8 =>
        {
            reader.read_exact(&mut body)?;
            let wanted = u64::from_le_bytes(body);
            // No more than was negotiated.
            let possible = features & Offloads::ALL.guest_features();
            if wanted & !possible == 0 {
                Command::Takes(Offloads::of_guest(wanted))
            } else {
                Command::Unknown
            }
        }
        _ => Command::Unknown,
    };
    Ok(command)
}
