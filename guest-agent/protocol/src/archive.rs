//! The bytes of an archive in the frames of `CopyOut` and `CopyIn`.

use std::io::{self, Error, ErrorKind, Read, Write};

use crate::inspect::{HEADER, Kind, PAYLOAD_MOST, header, parse};

/// Most sentences of one stream.
const NOTES_MOST: usize = 64;

/// Writes an archive as records.
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    stream: W,
    /// A header's room, and then the payload of the record that is not yet sent.
    frame: Vec<u8>,
}

impl<W: Write> ArchiveWriter<W> {
    /// Writes to `stream`, in large steps.
    pub fn new(stream: W) -> Self {
        let mut frame = Vec::with_capacity(HEADER + PAYLOAD_MOST);
        frame.resize(HEADER, 0);
        Self { stream, frame }
    }

    fn send(&mut self) -> io::Result<()> {
        let length = self.frame.len() - HEADER;
        if length > 0 {
            self.frame[..HEADER].copy_from_slice(&header(Kind::Record, length));
            let sent = self.stream.write_all(&self.frame);
            self.frame.truncate(HEADER);
            sent?;
        }
        Ok(())
    }

    /// Sends what is left, sentences, and the result, and gives the stream back. A sentence that is
    /// longer than a frame is cut.
    ///
    /// # Errors
    /// Those of the stream.
    ///
    /// # Panics
    /// The result is above [`PAYLOAD_MOST`].
    pub fn finish(mut self, notes: &[String], result: &[u8]) -> io::Result<W> {
        self.send()?;
        for note in notes {
            let note = &note[..note.floor_char_boundary(PAYLOAD_MOST)];
            self.stream.write_all(&header(Kind::Note, note.len()))?;
            self.stream.write_all(note.as_bytes())?;
        }
        self.stream.write_all(&[&header(Kind::Result, result.len())[..], result].concat())?;
        self.stream.flush()?;
        Ok(self.stream)
    }

    /// The stream.
    pub fn stream(&self) -> &W {
        &self.stream
    }
}

impl<W: Write> Write for ArchiveWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(HEADER + PAYLOAD_MOST - self.frame.len());
        self.frame.extend_from_slice(&bytes[..count]);
        if self.frame.len() == HEADER + PAYLOAD_MOST {
            self.send()?;
        }
        Ok(count)
    }

    /// Sends what there is.
    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.stream.flush()
    }
}

/// Reads an archive out of records. The end is that of the stream's result; a stream that ends
/// before it is an error (`UnexpectedEof`), as are frames that are none (`InvalidData`).
#[derive(Debug)]
pub struct ArchiveReader<R> {
    stream: R,
    /// Bytes of the present record that are not yet read.
    left: usize,
    notes: Vec<String>,
    result: Option<Vec<u8>>,
}

impl<R: Read> ArchiveReader<R> {
    /// Reads from `stream`, in large steps.
    pub fn new(stream: R) -> Self {
        Self { stream, left: 0, notes: Vec::new(), result: None }
    }

    /// The sentences so far, at most 64.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The result, after the end.
    pub fn result(&self) -> Option<&[u8]> {
        self.result.as_deref()
    }

    /// The stream.
    pub fn stream(&self) -> &R {
        &self.stream
    }

    fn payload(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        Ok(payload)
    }
}

impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            if self.result.is_some() {
                return Ok(0);
            }
            let mut head = [0; HEADER];
            self.stream.read_exact(&mut head)?;
            let bad = |what| Error::new(ErrorKind::InvalidData, what);
            let (kind, length) = parse(head).map_err(|_| bad("the stream has something that is no frame"))?;
            match kind {
                Kind::Record => self.left = length,
                Kind::Note if self.notes.len() >= NOTES_MOST => {
                    return Err(bad("the stream has too many notes"));
                }
                Kind::Note => {
                    let note = self.payload(length)?;
                    self.notes.push(String::from_utf8_lossy(&note).into_owned());
                }
                Kind::Result => self.result = Some(self.payload(length)?),
            }
        }
        let most = self.left.min(buffer.len());
        let count = self.stream.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8], notes: &[&str], result: &[u8]) -> Vec<u8> {
        let mut writer = ArchiveWriter::new(Vec::new());
        writer.write_all(bytes).unwrap();
        let notes: Vec<String> = notes.iter().map(|note| (*note).to_owned()).collect();
        writer.finish(&notes, result).unwrap()
    }

    #[test]
    fn bytes_come_out_as_they_went_in_and_only_whole() {
        for length in [0_u32, 1, 65_535, 65_536, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[0]).collect();
            let stream = written(&bytes, &["left out"], b"done");
            let mut reader = ArchiveReader::new(&stream[..]);
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            assert!(all == bytes);
            assert_eq!((reader.notes(), reader.result()), (&["left out".to_owned()][..], Some(&b"done"[..])));
        }
        let stream = written(b"some", &["x"], b"done");
        for cut in 0..stream.len() {
            let error = ArchiveReader::new(&stream[..cut]).read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{cut}");
        }
    }

    #[test]
    fn what_is_no_frame_and_endless_notes_are_errors() {
        for stream in [vec![9; 20], written(b"", &["x"; NOTES_MOST + 1], b"")] {
            let error = ArchiveReader::new(&stream[..]).read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
    }
}
