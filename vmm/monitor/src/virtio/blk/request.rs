//! One request: header, data, status byte (virtio 1.2, 5.2.6).

use std::io;
use std::sync::Arc;

use nelly_disk::SECTOR;

use super::control::Shared;
use super::spec;
use crate::memory::Memory;
use crate::sys::at_most;
use crate::virtio::device::DeviceFault;
use crate::virtio::queue::{Chain, QueueFault, Reader, Served, TURN_BYTES, Writer};

/// Bytes of the header: type, reserved, sector.
const HEADER: usize = 16;
/// The same, as lengths of chains are told.
const HEADER_BYTES: u32 = 16;
/// Bytes of a range to discard or zero: sector, count, flags.
const RANGE: u32 = 16;
/// Flag of a range: its space may be given back.
const UNMAP: u32 = 1;

/// What serves requests.
pub(super) struct Requests {
    pub(super) shared: Arc<Shared>,
    pub(super) id: [u8; spec::ID_BYTES],
    pub(super) features: u64,
    pub(super) write_through: bool,
}

/// Why a request is not done: the status the driver reads, a fault of the chain itself, or that the
/// host's file system has no room for it now.
enum Refused {
    Status(u8),
    Fault(QueueFault),
    Full,
}

impl From<QueueFault> for Refused {
    fn from(fault: QueueFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => IOERR,
        }
    }
}

const IOERR: Refused = Refused::Status(spec::S_IOERR);
const UNSUPP: Refused = Refused::Status(spec::S_UNSUPP);

impl Requests {
    /// Serves one chain; `None`: the host's file system has no room for what it writes, so it is to
    /// be served once more, whole. Only a chain without room for header or status is a fault.
    pub(super) fn serve(&self, memory: &Memory, chain: &Chain) -> Result<Option<Served>, DeviceFault> {
        let mut reader = chain.reader(memory);
        let mut writer = chain.writer(memory);
        let mut header = [0; HEADER];
        reader.read_exact(&mut header)?;
        // The last byte the device may write is the status.
        let Some(room) = writer.left().checked_sub(1) else {
            return Err(DeviceFault::Protocol("a block request without room for its status"));
        };
        let (kind, sector) =
            (word(&header, 0), u64::from(word(&header, 8)) | u64::from(word(&header, 12)) << 32);
        let status = match self.execute(kind, sector, &mut reader, &mut writer, room) {
            Ok(()) => spec::S_OK,
            Err(Refused::Status(status)) => status,
            Err(Refused::Fault(fault)) => return Err(fault.into()),
            Err(Refused::Full) => return Ok(None),
        };
        writer.skip(room.saturating_sub(writer.written()));
        writer.write_all(&[status])?;
        let data = if kind == spec::T_IN { room } else { chain.readable_len().saturating_sub(HEADER_BYTES) };
        self.shared.counters.answered(kind, status, data);
        let moved = match kind {
            spec::T_IN => u64::from(room),
            // Otherwise it ends with a flush.
            spec::T_OUT if !self.write_through => u64::from(chain.readable_len()),
            // What the host does for a flush or a discard, no length tells: each is a turn of its
            // own.
            _ => TURN_BYTES,
        };
        Ok(Some(Served { written: writer.written(), moved }))
    }

    fn execute(
        &self,
        kind: u32,
        sector: u64,
        reader: &mut Reader<'_>,
        writer: &mut Writer<'_>,
        room: u32,
    ) -> Result<(), Refused> {
        match kind {
            spec::T_IN => self.read(sector, writer, room),
            spec::T_OUT => self.write(sector, reader),
            spec::T_FLUSH => self.flush(),
            spec::T_GET_ID => {
                let bytes = at_most(room, spec::ID_BYTES);
                Ok(writer.write_all(&self.id[..bytes])?)
            }
            spec::T_DISCARD if self.features & spec::F_DISCARD != 0 => {
                self.ranges(reader, spec::DISCARD_RANGES_MAX, 0, |range| {
                    Ok(self.shared.disk.discard(range.offset, range.len)?)
                })
            }
            spec::T_WRITE_ZEROES if self.features & spec::F_WRITE_ZEROES != 0 => {
                self.ranges(reader, spec::ZERO_RANGES_MAX, UNMAP, |range| {
                    Ok(self.shared.disk.write_zeroes(range.offset, range.len, range.flags & UNMAP != 0)?)
                })
            }
            _ => Err(UNSUPP),
        }
    }

    fn read(&self, sector: u64, writer: &mut Writer<'_>, room: u32) -> Result<(), Refused> {
        let mut offset = self.extent(sector, u64::from(room))?;
        let mut left = room;
        while left > 0 {
            let bytes = writer.transfer(left, |pieces| self.shared.disk.read_at(pieces, offset))??;
            (offset, left) = advance(offset, left, bytes)?;
        }
        Ok(())
    }

    fn write(&self, sector: u64, reader: &mut Reader<'_>) -> Result<(), Refused> {
        let mut left = reader.left();
        let mut offset = self.extent(sector, u64::from(left))?;
        if self.shared.disk.read_only() {
            return Err(IOERR);
        }
        while left > 0 {
            let bytes = reader.transfer(left, |pieces| self.shared.disk.write_at(pieces, offset))??;
            (offset, left) = advance(offset, left, bytes)?;
        }
        self.written()
    }

    /// After a change: on stable storage at once if the driver will not ask for it.
    fn written(&self) -> Result<(), Refused> {
        if self.write_through { self.flush() } else { Ok(()) }
    }

    /// A flush that fails is told to the driver, whatever the reason: the host may have given up
    /// what it had accepted before, and a second flush would succeed without it.
    fn flush(&self) -> Result<(), Refused> {
        self.shared.disk.flush().map_err(|_| IOERR)
    }

    /// Where whole sectors of the disk begin, in bytes. No request touches more at once than
    /// [`spec::REQUEST_BYTES_MAX`].
    fn extent(&self, sector: u64, len: u64) -> Result<u64, Refused> {
        let offset = sector.checked_mul(SECTOR).ok_or(IOERR)?;
        let end = offset.checked_add(len).ok_or(IOERR)?;
        if len > spec::REQUEST_BYTES_MAX || !len.is_multiple_of(SECTOR) || end > self.shared.disk.len() {
            return Err(IOERR);
        }
        Ok(offset)
    }

    /// Checks every range, of which there are at most `most`, before the first is touched. Of the
    /// flags of a range, those of `known` mean something.
    fn ranges(
        &self,
        reader: &mut Reader<'_>,
        most: u32,
        known: u32,
        mut each: impl FnMut(&Range) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let bytes = reader.left();
        if self.shared.disk.read_only()
            || !bytes.is_multiple_of(RANGE)
            || !(1..=most).contains(&(bytes / RANGE))
        {
            return Err(IOERR);
        }
        let mut ranges = Vec::new();
        while reader.left() > 0 {
            let mut raw = [0; 16];
            reader.read_exact(&mut raw)?;
            let sector = u64::from(word(&raw, 0)) | u64::from(word(&raw, 4)) << 32;
            let (count, flags) = (word(&raw, 8), word(&raw, 12));
            if count > spec::RANGE_SECTORS_MAX {
                return Err(IOERR);
            }
            if flags & !known != 0 {
                return Err(UNSUPP);
            }
            let len = u64::from(count) * SECTOR;
            ranges.push(Range { offset: self.extent(sector, len)?, len, flags });
        }
        for range in ranges.iter().filter(|range| range.len > 0) {
            each(range)?;
        }
        self.written()
    }
}

struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}

/// A disk that moves nothing would never come to an end.
fn advance(offset: u64, left: u32, bytes: usize) -> Result<(u64, u32), Refused> {
    match u32::try_from(bytes).ok().and_then(|bytes| left.checked_sub(bytes)) {
        Some(rest) if bytes > 0 => Ok((offset + bytes as u64, rest)),
        _ => Err(IOERR),
    }
}

fn word(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
