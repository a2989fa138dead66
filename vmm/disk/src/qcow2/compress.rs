//! Compressed clusters.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::entry::corrupt;
use super::header::Compression;
use crate::buffer::wide;

/// Unpacks a cluster: `into` is filled whole. What follows in `from` belongs to others.
pub(crate) fn unpack(kind: Compression, from: &[u8], into: &mut [u8]) -> io::Result<()> {
    match kind {
        Compression::Zlib => inflate(from, into),
        Compression::Zstd => unzstd(from, into),
    }
}

fn inflate(from: &[u8], into: &mut [u8]) -> io::Result<()> {
    let mut stream = Decompress::new(false);
    let status = stream.decompress(from, into, FlushDecompress::Finish);
    let full = stream.total_out() == wide(into.len());
    match status {
        Ok(Status::StreamEnd | Status::Ok | Status::BufError) if full => Ok(()),
        _ => Err(corrupt("a compressed cluster cannot be unpacked (zlib)")),
    }
}

fn unzstd(mut from: &[u8], into: &mut [u8]) -> io::Result<()> {
    let damaged = || corrupt("a compressed cluster cannot be unpacked (zstd)");
    let mut done = 0;
    let mut frame = FrameDecoder::new();
    // A window is as large as what is unpacked, but not below 1 KiB; encoders may say more for
    // their level.
    frame.set_max_window_size(8 << 20);
    while done < into.len() {
        frame.reset(&mut from).map_err(|_| damaged())?;
        while !frame.is_finished() || frame.can_collect() > 0 {
            if frame.can_collect() == 0 {
                // One at a time: a block is at most 128 KiB.
                frame
                    .decode_blocks(&mut from, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|_| damaged())?;
            }
            let read = io::Read::read(&mut frame, &mut into[done..])?;
            done += read;
            if done == into.len() {
                break;
            }
        }
    }
    Ok(())
}
