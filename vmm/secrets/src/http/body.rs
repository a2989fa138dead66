//! Where a body ends.

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has so many bytes.
    Length(u64),
    /// It comes in chunks.
    Chunked,
    /// It ends with the connection.
    ToTheEnd,
}

/// The longest line of a size, and of a trailer, in bytes.
const MOST_LINE: usize = 4096;
/// The most bytes of trailers.
const MOST_TRAILERS: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    /// In the line of a size.
    Size(Vec<u8>),
    /// So many bytes of it are left.
    Data(u64),
    /// In the line break behind one, of which so many bytes have been.
    Break(usize),
    /// In a line of the trailers, and how many bytes they had.
    Trailer(Vec<u8>, usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    Chunked(Chunk),
    ToTheEnd,
    Over,
}

/// A body that is passed on as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body(State);

impl Body {
    /// One that begins now.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::Over,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunk::Size(Vec::new())),
            Framing::ToTheEnd => State::ToTheEnd,
        })
    }

    /// Whether nothing more belongs to it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0 == State::Over
    }

    /// Whether it ends well where the connection ends now.
    #[must_use]
    pub fn may_end(&self) -> bool {
        matches!(self.0, State::Over | State::ToTheEnd)
    }

    /// How many of these bytes belong to it.
    ///
    /// # Errors
    /// It is none whose end can be told.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            match &mut self.0 {
                State::Over => break,
                State::ToTheEnd => taken = bytes.len(),
                State::Length(left) => {
                    taken += within(left, rest.len());
                    if *left == 0 {
                        self.0 = State::Over;
                    }
                }
                State::Chunked(chunk) => match chunk.take(rest)? {
                    (len, false) => taken += len,
                    (len, true) => {
                        taken += len;
                        self.0 = State::Over;
                    }
                },
            }
        }
        Ok(taken)
    }
}

/// Takes as many of `there` bytes as are left.
fn within(left: &mut u64, there: usize) -> usize {
    let len = usize::try_from(*left).map_or(there, |left| left.min(there));
    *left -= len as u64;
    len
}

/// Takes bytes of a line to its end; whether it is whole.
fn take_line(line: &mut Vec<u8>, bytes: &[u8]) -> Result<(usize, bool), &'static str> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let len = end.map_or(bytes.len(), |at| at + 1);
    if line.len() + len > MOST_LINE {
        return Err("a line between chunks is too long");
    }
    line.extend_from_slice(&bytes[..len]);
    if end.is_none() {
        return Ok((len, false));
    }
    let text = line.strip_suffix(b"\r\n").ok_or("a line between chunks does not end with CR LF")?;
    if text.iter().any(|byte| matches!(byte, b'\r' | 0)) {
        return Err("a line between chunks has a control character");
    }
    Ok((len, true))
}

impl Chunk {
    /// Takes bytes; how many, and whether all of the body is there.
    fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), &'static str> {
        match self {
            Self::Data(left) => {
                let len = within(left, bytes.len());
                if *left == 0 {
                    *self = Self::Break(0);
                }
                Ok((len, false))
            }
            Self::Break(had) => {
                if bytes.first() != b"\r\n".get(*had) {
                    return Err("a chunk is longer than its size");
                }
                *self = if *had == 0 { Self::Break(1) } else { Self::Size(Vec::new()) };
                Ok((1, false))
            }
            Self::Size(line) => {
                let (len, whole) = take_line(line, bytes)?;
                if whole {
                    let size = size(line)?;
                    *self = if size == 0 { Self::Trailer(Vec::new(), 0) } else { Self::Data(size) };
                }
                Ok((len, false))
            }
            Self::Trailer(line, all) => {
                let (len, whole) = take_line(line, bytes)?;
                *all += len;
                if *all > MOST_TRAILERS {
                    return Err("the trailers are too long");
                }
                if !whole {
                    return Ok((len, false));
                }
                let over = line == b"\r\n";
                if matches!(line.first(), Some(b' ' | b'\t')) {
                    return Err("a trailer goes on in the next line");
                }
                line.clear();
                Ok((len, over))
            }
        }
    }
}

/// The size of a chunk in hexadecimal digits, with or without an extension behind it.
fn size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let wrong = "the size of a chunk is no number";
    if digits == 0 || digits > 15 || !matches!(line[digits], b'\r' | b';') {
        return Err(wrong);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| wrong)?;
    u64::from_str_radix(text, 16).map_err(|_| wrong)
}
