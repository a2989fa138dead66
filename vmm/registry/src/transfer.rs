//! Several blobs at once, and how far they are.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nelly_image::Descriptor;

/// Blobs that are transferred at once.
const AT_ONCE: usize = 4;
/// How often the watcher looks.
const LOOK: Duration = Duration::from_millis(100);

/// What happens to a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// It comes later.
    Queued,
    /// Its bytes are on the way.
    Running,
    /// Another process or thread transfers it.
    Elsewhere,
    /// It is there, and was transferred now.
    Done,
    /// It was there before.
    There,
}

const STEPS: [Step; 5] = [Step::Queued, Step::Running, Step::Elsewhere, Step::Done, Step::There];

/// A blob that is transferred.
#[derive(Debug)]
pub struct Transfer {
    /// The blob.
    pub blob: Descriptor,
    done: AtomicU64,
    step: AtomicU8,
}

impl Transfer {
    pub(crate) fn new(blob: Descriptor) -> Self {
        Self { blob, done: AtomicU64::new(0), step: AtomicU8::new(Step::Queued as u8) }
    }

    /// Bytes of it that are there.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// What happens to it.
    pub fn step(&self) -> Step {
        STEPS[usize::from(self.step.load(Ordering::Relaxed))]
    }

    pub(crate) fn at(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    pub(crate) fn begins(&self, step: Step) {
        self.step.store(step as u8, Ordering::Relaxed);
        if matches!(step, Step::Done | Step::There) {
            self.at(self.blob.size);
        }
    }
}

/// Looks at transfers on the thread that waits for them.
pub trait Watch {
    /// Called at the beginning, ten times a second, and at the end.
    fn look(&mut self, transfers: &[Transfer]);

    /// Called with a sentence that a user should know although nothing failed of it.
    fn warn(&mut self, _warning: &str) {}
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn look(&mut self, _transfers: &[Transfer]) {}
}

/// Does `work` for each transfer, some at once. After an error no other is begun, and `work` is
/// told by `true` of its second argument that it may give up.
///
/// # Errors
/// The first.
pub(crate) fn all<E: Send>(
    transfers: &[Transfer],
    watch: &mut dyn Watch,
    work: impl Fn(&Transfer, &dyn Fn() -> bool) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    // With the last of them the channel ends.
    let each = |sender: mpsc::Sender<Result<(), E>>| {
        while !failed.load(Ordering::Relaxed)
            && let Some(transfer) = transfers.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let result = work(transfer, &|| failed.load(Ordering::Relaxed));
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            // The receiver waits for all.
            let _ = sender.send(result);
        }
    };
    let each = &each;
    thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        let begun = (0..AT_ONCE.min(transfers.len())).take_while(|_| {
            let sender = sender.clone();
            thread::Builder::new().spawn_scoped(scope, move || each(sender)).is_ok()
        });
        if begun.count() == 0 {
            // A host without a thread to spare: it takes longer, and nobody looks meanwhile.
            each(sender);
        } else {
            drop(sender);
        }
        let mut first = Ok(());
        loop {
            watch.look(transfers);
            match results.recv_timeout(LOOK) {
                Ok(result) if first.is_ok() => first = result,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return first,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nelly_image::Digest;

    use super::*;

    fn transfers(count: u64) -> Vec<Transfer> {
        let blob = |size| Descriptor { media_type: String::new(), digest: Digest::sha256(b""), size };
        (0..count).map(|size| Transfer::new(blob(size))).collect()
    }

    #[test]
    fn all_are_done_once() {
        let transfers = transfers(50);
        let seen = Mutex::new(Vec::new());
        all::<()>(&transfers, &mut Unwatched, |transfer, _| {
            seen.lock().unwrap().push(transfer.blob.size);
            transfer.begins(Step::Done);
            Ok(())
        })
        .unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert!(transfers.iter().all(|transfer| transfer.done() == transfer.blob.size));
    }

    #[test]
    fn the_first_error_ends_the_others() {
        let transfers = transfers(50);
        let error = all(&transfers, &mut Unwatched, |transfer, failed| match transfer.blob.size {
            0 => Err("first"),
            _ => {
                while !failed() {
                    thread::yield_now();
                }
                Err("given up")
            }
        });
        assert_eq!(error, Err("first"));
    }
}
