//! How far a fetch is.

/// A step of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Another process fetches the same; it is waited for.
    Elsewhere,
    /// Bytes come.
    Download,
    /// What came is compared with its checksum.
    Verify,
    /// What came is unpacked.
    Unpack,
}

/// Is told how far a fetch is.
pub trait Watch {
    /// So many bytes of `total`, if that is known, are done.
    fn at(&mut self, stage: Stage, done: u64, total: Option<u64>);
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn at(&mut self, _stage: Stage, _done: u64, _total: Option<u64>) {}
}
