//! The fields of a section: little-endian numbers one after the other, without names or gaps. The
//! section's version says which fields there are.

use super::StateError;
use crate::sys::fits;

/// A value that can be a field.
pub trait Field: Sized {
    /// Appends it.
    fn write(&self, fields: &mut FieldWriter);

    /// Reads it.
    ///
    /// # Errors
    /// The section ends before it, or its bytes are no value of this type.
    fn read(fields: &mut FieldReader<'_>) -> Result<Self, StateError>;
}

/// The bytes of a section under way.
#[derive(Debug, Default)]
pub struct FieldWriter(Vec<u8>);

impl FieldWriter {
    /// Appends a field.
    pub fn put<T: Field>(&mut self, value: &T) {
        value.write(self);
    }

    /// Appends the number of `values` (32 bits) and each of them.
    pub fn put_list<'a, T: Field + 'a>(&mut self, values: impl ExactSizeIterator<Item = &'a T>) {
        self.put(&fits::<_, u32>(values.len(), "no list of a device has 2^32 entries"));
        values.for_each(|value| self.put(value));
    }

    /// Appends a text without its control characters: the number of its bytes (32 bits) and its
    /// bytes.
    pub fn put_text(&mut self, text: &str) {
        self.put_list(plain(text).as_bytes().iter());
    }

    /// What was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A text without its control characters.
#[must_use]
pub fn plain(text: &str) -> String {
    text.replace(char::is_control, "")
}

/// The bytes of a section that were not read yet.
#[derive(Debug)]
pub struct FieldReader<'a> {
    section: &'a str,
    rest: &'a [u8],
}

impl<'a> FieldReader<'a> {
    /// Reads `bytes` of the section called `section`.
    #[must_use]
    pub fn new(section: &'a str, bytes: &'a [u8]) -> Self {
        Self { section, rest: bytes }
    }

    /// Says that the section does not fit.
    #[must_use]
    pub fn unfit(&self, why: impl Into<String>) -> StateError {
        StateError::unfit(self.section, why)
    }

    /// Reads a field.
    ///
    /// # Errors
    /// As [`Field::read`].
    pub fn get<T: Field>(&mut self) -> Result<T, StateError> {
        T::read(self)
    }

    /// Reads a field that must have the value that it has here, which is `what`, a word for the
    /// sentence that refuses another.
    ///
    /// # Errors
    /// As [`Field::read`], or it is another value.
    pub fn expect<T: Field + PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        here: &T,
    ) -> Result<(), StateError> {
        let saved: T = self.get()?;
        if saved == *here {
            return Ok(());
        }
        Err(self.unfit(format!("its {what} is {saved:?}, and here it is {here:?}")))
    }

    /// Reads a list of at most `max` values.
    ///
    /// # Errors
    /// As [`Field::read`], or it is longer.
    pub fn get_list<T: Field>(&mut self, max: usize) -> Result<Vec<T>, StateError> {
        let len: u32 = self.get()?;
        if usize::try_from(len).is_ok_and(|len| len <= max) {
            return (0..len).map(|_| self.get()).collect();
        }
        Err(self.unfit(format!("it has a list of {len}, and {max} is the most")))
    }

    /// Reads a text of at most `max` bytes, which has no control characters: people may see it.
    ///
    /// # Errors
    /// As [`Field::read`], or it is longer, or something else.
    pub fn get_text(&mut self, max: usize) -> Result<String, StateError> {
        let text = String::from_utf8(self.get_list(max)?).ok();
        let plain = text.filter(|text| !text.chars().any(char::is_control));
        plain.ok_or_else(|| self.unfit("what should be a text is none"))
    }

    /// Says that everything was read.
    ///
    /// # Errors
    /// It was not.
    pub fn finish(self) -> Result<(), StateError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.unfit(format!("it is {} bytes too long", self.rest.len())))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let Some((array, rest)) = self.rest.split_first_chunk() else {
            return Err(self.unfit("it ends within a field"));
        };
        self.rest = rest;
        Ok(*array)
    }
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl Field for $number {
            fn write(&self, fields: &mut FieldWriter) {
                fields.0.extend(self.to_le_bytes());
            }

            fn read(fields: &mut FieldReader<'_>) -> Result<Self, StateError> {
                Ok(Self::from_le_bytes(fields.array()?))
            }
        }
    )*};
}
number!(u8, u16, u32, u64);

/// One byte, 0 or 1.
impl Field for bool {
    fn write(&self, fields: &mut FieldWriter) {
        fields.put(&u8::from(*self));
    }

    fn read(fields: &mut FieldReader<'_>) -> Result<Self, StateError> {
        match fields.get::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(fields.unfit(format!("{other} is neither yes nor no"))),
        }
    }
}

/// Whether there is a value, and the value.
impl<T: Field> Field for Option<T> {
    fn write(&self, fields: &mut FieldWriter) {
        fields.put(&self.is_some());
        if let Some(value) = self {
            fields.put(value);
        }
    }

    fn read(fields: &mut FieldReader<'_>) -> Result<Self, StateError> {
        Ok(if fields.get()? { Some(fields.get()?) } else { None })
    }
}

/// Each of them, without their number.
impl<const N: usize> Field for [u8; N] {
    fn write(&self, fields: &mut FieldWriter) {
        fields.0.extend(self);
    }

    fn read(fields: &mut FieldReader<'_>) -> Result<Self, StateError> {
        fields.array()
    }
}

/// Makes a structure a [`Field`]: its fields, all of them, in the order given here. A new field
/// that is forgotten here does not compile.
macro_rules! stateful_fields {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::state::fields::Field for $name {
            fn write(&self, fields: &mut $crate::state::fields::FieldWriter) {
                let Self { $($field),* } = self;
                $(fields.put($field);)*
            }

            fn read(
                fields: &mut $crate::state::fields::FieldReader<'_>,
            ) -> Result<Self, $crate::state::StateError> {
                $(let $field = fields.get()?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}
pub(crate) use stateful_fields;
