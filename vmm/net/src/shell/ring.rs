//! The bytes of a stream that the guest does not have yet.

use std::io::IoSliceMut;

/// A ring that takes memory when it has something to hold.
#[derive(Debug, Default)]
pub(super) struct Ring {
    bytes: Box<[u8]>,
    /// Where the oldest byte is.
    head: usize,
    len: usize,
}

impl Ring {
    /// Of how many bytes the memory is.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// How many bytes it could still hold.
    pub(super) fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    /// How many bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same bytes in other memory, which is not smaller than what it holds.
    pub(super) fn resize(&mut self, capacity: usize) {
        let mut bytes = vec![0; capacity].into_boxed_slice();
        let (a, b) = self.slices(0, self.len);
        bytes[..a.len()].copy_from_slice(a);
        bytes[a.len()..a.len() + b.len()].copy_from_slice(b);
        (self.bytes, self.head) = (bytes, 0);
    }

    /// The memory that is free, to be read into.
    pub(super) fn free(&mut self) -> [IoSliceMut<'_>; 2] {
        let capacity = self.bytes.len();
        let (head, tail) = (self.head, self.head + self.len);
        if tail >= capacity {
            let tail = tail - capacity;
            return [IoSliceMut::new(&mut self.bytes[tail..head]), IoSliceMut::new(&mut [])];
        }
        let (before, behind) = self.bytes.split_at_mut(tail);
        [IoSliceMut::new(behind), IoSliceMut::new(&mut before[..head])]
    }

    /// That many bytes were read.
    pub(super) fn fill(&mut self, len: usize) {
        assert!(len <= self.room(), "a bug: more was read than there was room for");
        self.len += len;
    }

    /// A part of what it holds, counted from the oldest byte.
    pub(super) fn slices(&self, offset: usize, len: usize) -> (&[u8], &[u8]) {
        assert!(offset + len <= self.len, "a bug: bytes are sent that are not there");
        if len == 0 {
            return (&[], &[]);
        }
        let capacity = self.bytes.len();
        let start = (self.head + offset) % capacity;
        let first = len.min(capacity - start);
        (&self.bytes[start..start + first], &self.bytes[..len - first])
    }

    /// Forgets the oldest bytes.
    pub(super) fn free_oldest(&mut self, len: usize) {
        assert!(len <= self.len, "a bug: bytes are forgotten that are not there");
        self.len -= len;
        self.head = if self.len == 0 { 0 } else { (self.head + len) % self.bytes.len() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let mut ring = Ring::default();
        assert_eq!((ring.room(), ring.capacity()), (0, 0));
        let (mut next_in, mut next_out) = (0_u8, 0_u8);
        let mut seed = 1_u32;
        for round in 0..20_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let much = usize::try_from(seed >> 26).unwrap();
            if round % 1000 == 0 {
                ring.resize((ring.capacity() * 2).clamp(16, 256));
            }
            let mut filled = 0;
            for slice in &mut ring.free() {
                for byte in slice.iter_mut() {
                    if filled < much {
                        *byte = next_in;
                        next_in = next_in.wrapping_add(1);
                        filled += 1;
                    }
                }
            }
            ring.fill(filled);
            let out = (much * 7 % 41).min(ring.len);
            let (a, b) = ring.slices(0, out);
            for byte in a.iter().chain(b) {
                assert_eq!(*byte, next_out);
                next_out = next_out.wrapping_add(1);
            }
            ring.free_oldest(out);
        }
    }
}
