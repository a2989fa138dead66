//! The header of a vsock packet (virtio 1.2, section 5.10.6).

/// Bytes of a header on the rings.
pub(super) const HEADER_LEN: usize = 44;

/// The host's context id.
pub(super) const HOST_CID: u64 = 2;

/// The only socket type this device speaks: a stream.
pub(super) const TYPE_STREAM: u16 = 1;

/// SHUTDOWN flag: the sender of the packet will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: the sender of the packet will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both SHUTDOWN flags: a clean close, answered by RST.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet asks or tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Open a connection.
    Request = 1,
    /// The connection is open.
    Response = 2,
    /// The connection does not exist any more, or never did.
    Rst = 3,
    /// One or both directions are over, see [`SHUTDOWN_BOTH`].
    Shutdown = 4,
    /// Payload.
    Rw = 5,
    /// Only the credit fields matter.
    CreditUpdate = 6,
    /// Asks for a [`Op::CreditUpdate`].
    CreditRequest = 7,
}

impl Op {
    /// The operation numbered `raw`.
    #[must_use]
    pub(super) fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// Its number on the rings.
    #[must_use]
    pub(super) fn raw(self) -> u16 {
        self as u16
    }
}

/// A header, field by field; nothing in it has been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Sender's context id.
    pub(super) src_cid: u64,
    /// Receiver's context id.
    pub(super) dst_cid: u64,
    /// Sender's port.
    pub(super) src_port: u32,
    /// Receiver's port.
    pub(super) dst_port: u32,
    /// Payload bytes behind the header.
    pub(super) len: u32,
    /// Socket type, see [`TYPE_STREAM`].
    pub(super) kind: u16,
    /// Operation, see [`Op::from_raw`].
    pub(super) op: u16,
    /// Meaning depends on `op`.
    pub(super) flags: u32,
    /// Size of the sender's receive buffer for this connection, in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header as it lies in guest memory (little endian).
    #[must_use]
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let long = |at: usize| {
            let mut field = [0u8; 8];
            field.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(field)
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// Writes the header as it goes to guest memory.
    #[must_use]
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0u8; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The RST that answers this packet: its addresses and type swapped round, no credit.
    #[must_use]
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Rst.raw(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let expected: Vec<u8> = (1..=44).collect();
        assert_eq!(header.encode().as_slice(), expected);
        assert_eq!(Header::decode(&header.encode()), header);
    }

    #[test]
    fn operations_are_numbered_as_specified() {
        let known: Vec<u16> = (0..=u16::MAX).filter(|raw| Op::from_raw(*raw).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
        assert!(known.iter().all(|raw| Op::from_raw(*raw).unwrap().raw() == *raw));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_and_come_back(bytes in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform12(any::<u8>())) {
            let mut whole = [0u8; HEADER_LEN];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::decode(&whole).encode(), whole);
        }
    }
}
