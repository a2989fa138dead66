//! As much of protocol buffers and of ttrpc as an agent needs that is played: the tests of the
//! client take neither from the library that the client has.

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    /// A number.
    Number(u64),
    /// Bytes, a string or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message, as far as it is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a>(pub(crate) &'a [u8]);

impl<'a> Message<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The last value of a field.
    fn field(self, number: u64) -> Option<Value<'a>> {
        self.filter_map(|(found, value)| (found == number).then_some(value)).last()
    }

    /// The bytes of a field; none where it is not there.
    pub(crate) fn bytes(self, number: u64) -> &'a [u8] {
        match self.field(number) {
            Some(Value::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    /// The text of a field.
    pub(crate) fn text(self, number: u64) -> String {
        String::from_utf8_lossy(self.bytes(number)).into_owned()
    }

    /// The number of a field; 0 where it is not there.
    pub(crate) fn number(self, number: u64) -> u64 {
        match self.field(number) {
            Some(Value::Number(value)) => value,
            _ => 0,
        }
    }
}

impl<'a> Iterator for Message<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A field that is a number.
pub(crate) fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field that is a message, bytes or text.
pub(crate) fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    let length = u64::try_from(value.len()).expect("64 bits");
    [varint(field << 3 | 2), varint(length), value.to_vec()].concat()
}

/// The kinds of frames.
pub(crate) const REQUEST: u8 = 1;
/// See [`REQUEST`].
pub(crate) const RESPONSE: u8 = 2;

/// A frame as it is sent, whose header says this length.
pub(crate) fn frame(kind: u8, stream: u32, length: u32, payload: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0], payload].concat()
}

/// An answer: a response of ttrpc with this payload.
pub(crate) fn answer(stream: u32, payload: &[u8]) -> Vec<u8> {
    response(stream, &bytes(2, payload))
}

/// A refusal.
pub(crate) fn refusal(stream: u32, code: u64, text: &str) -> Vec<u8> {
    response(stream, &bytes(1, &[number(1, code), bytes(2, text.as_bytes())].concat()))
}

fn response(stream: u32, bytes: &[u8]) -> Vec<u8> {
    frame(RESPONSE, stream, u32::try_from(bytes.len()).expect("a short answer"), bytes)
}
