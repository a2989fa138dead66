//! Inputs that are kept with the source, all of a target in one file: each with its length before
//! it, in four bytes, the least significant first.

/// Most bytes that are kept for a target.
pub const MOST: usize = 48 << 10;

/// The inputs of a file.
///
/// # Errors
/// It is cut.
pub fn unpacked(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let mut inputs = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| "a length is too large")?;
        let (input, rest) = rest.split_at_checked(len).ok_or("an input is cut")?;
        inputs.push(input.to_vec());
        bytes = rest;
    }
    if bytes.is_empty() { Ok(inputs) } else { Err("a length is cut") }
}

/// A file of as many inputs as may be kept, the shortest first.
#[must_use]
pub fn packed(mut inputs: Vec<Vec<u8>>) -> Vec<u8> {
    inputs.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    inputs.dedup();
    let mut bytes = Vec::new();
    for input in inputs {
        if bytes.len() + 4 + input.len() > MOST {
            break;
        }
        bytes.extend(u32::try_from(input.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(input);
    }
    bytes
}
