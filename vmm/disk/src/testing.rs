//! Readers and files that only tests want.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use crate::buffer::{ReadBuffer, Within, WriteBuffer};
use crate::store::Store;
use crate::traits::ReadAt;

/// So many bytes, of no file: each is its position's lowest byte.
#[derive(Debug)]
pub(crate) struct Endless(pub(crate) u64);

impl ReadAt for Endless {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let left = self.0.saturating_sub(offset);
        let bytes: Vec<u8> = (0..left).take(into.size()).map(|at| (offset + at).to_le_bytes()[0]).collect();
        into.copy_in(0, &bytes);
        Ok(bytes.len())
    }
}

/// At most `1` bytes at a time of the reader `0`, as a file may give them.
#[derive(Debug)]
pub(crate) struct Slow<R>(pub(crate) R, pub(crate) usize);

impl<R: ReadAt> ReadAt for Slow<R> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        let some = into.size().min(self.1);
        self.0.read_at(&mut Within::new(into, 0..some), offset)
    }
}

/// What was done to a [`Recorder`].
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Write(u64, Vec<u8>),
    Length(u64),
    Punch(u64, u64),
    Sync,
}

/// A file in memory that records what is done to it.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    state: Mutex<(Vec<u8>, Vec<Action>)>,
}

impl Recorder {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { state: Mutex::new((bytes, Vec::new())) }
    }

    fn state(&self) -> MutexGuard<'_, (Vec<u8>, Vec<Action>)> {
        self.state.lock().unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().0.clone()
    }

    /// What was done since the last call.
    pub(crate) fn actions(&self) -> Vec<Action> {
        std::mem::take(&mut self.state().1)
    }

    /// How much was done since then.
    pub(crate) fn count(&self) -> usize {
        self.state().1.len()
    }

    fn act(&self, action: Action) {
        let mut state = self.state();
        apply(&mut state.0, &action);
        state.1.push(action);
    }
}

/// Does `action` to a file.
pub(crate) fn apply(bytes: &mut Vec<u8>, action: &Action) {
    let place = |at: u64| usize::try_from(at).unwrap();
    match action {
        Action::Write(at, data) => {
            let (at, end) = (place(*at), place(*at) + data.len());
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(data);
        }
        Action::Length(len) => bytes.resize(place(*len), 0),
        Action::Punch(at, len) => {
            let end = place(at + len).min(bytes.len());
            let start = place(*at).min(end);
            bytes[start..end].fill(0);
        }
        Action::Sync => {}
    }
}

impl Store for Recorder {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().0.len() as u64)
    }

    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        let state = self.state();
        let rest = usize::try_from(offset).ok().and_then(|at| state.0.get(at..)).unwrap_or_default();
        let some = rest.len().min(range.len());
        into.copy_in(range.start, &rest[..some]);
        Ok(some)
    }

    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        let mut data = vec![0; range.len()];
        from.copy_out(range.start, &mut data);
        if !data.is_empty() {
            self.act(Action::Write(offset, data));
        }
        Ok(range.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.act(Action::Length(bytes));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.act(Action::Sync);
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.act(Action::Punch(offset, len));
        Ok(())
    }
}

/// Numbers that a seed decides.
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}
