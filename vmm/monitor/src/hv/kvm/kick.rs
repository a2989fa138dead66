//! Getting a vCPU out of KVM_RUN from another thread, without a signal handler in the embedder's
//! process.
//!
//! The kick signal is blocked in the vCPU's thread and unblocked by KVM only while KVM_RUN runs
//! (KVM_SET_SIGNAL_MASK): it ends KVM_RUN with EINTR, stays pending and is taken by sigtimedwait;
//! it is never delivered. `immediate_exit` covers the window before KVM_RUN. A kick is `pending`
//! first, then `immediate_exit`, then the signal; the vCPU's thread takes them in the same order,
//! so that a kick that arrives in between leaves `pending` for the next run.

#![allow(unsafe_code, reason = "signals of one thread, and a byte that the kernel shares")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::{HvError, Kicker};

/// The signal: real-time, so that it has no meaning to anyone.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// What kickers and the vCPU share.
#[derive(Debug)]
pub(super) struct Kick {
    /// A kick that no run has reported yet.
    pending: AtomicBool,
    /// Gone with the vCPU.
    target: Mutex<Option<Target>>,
}

#[derive(Debug)]
struct Target {
    thread: libc::c_long,
    /// `kvm_run.immediate_exit`.
    immediate_exit: NonNull<u8>,
}

// SAFETY: the pointer is only used under the mutex while the vCPU that owns the mapping lives, and
// only atomically.
unsafe impl Send for Target {}

impl Kicker for Kick {
    fn kick(&self) {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(target) = &*target else { return };
        // One that is still pending does the work of both.
        if self.pending.swap(true, Ordering::SeqCst) {
            return;
        }
        target.set_immediate_exit(1);
        let process = std::process::id();
        // SAFETY: sends a signal to a thread of this process, which lives as long as `target` is
        // set: its vCPU takes it away first. The signal is blocked there, so that it interrupts
        // KVM_RUN and nothing else.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::c_long::from(process), target.thread, signal()) };
    }
}

impl Target {
    fn set_immediate_exit(&self, value: u8) {
        // SAFETY: the byte is in the mapping of the vCPU that `self` belongs to, and every access
        // from this process is atomic.
        unsafe { AtomicU8::from_ptr(self.immediate_exit.as_ptr()) }.store(value, Ordering::SeqCst);
    }
}

/// The vCPU's end, on its thread. Dropping it ends all kicks and gives the thread's signal mask
/// back.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Kick>,
    was_blocked: bool,
    /// Signals that KVM_RUN leaves blocked: those of the thread but for the kick.
    mask: u64,
    /// Signal masks belong to a thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Receiver {
    /// Blocks the kick signal in the calling thread. `immediate_exit` is valid until this is
    /// dropped.
    pub(super) fn new(immediate_exit: NonNull<u8>) -> Result<Self, HvError> {
        let kick = kick_set();
        // SAFETY: an all-zero set is a valid one to be overwritten.
        let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: both sets are valid; only this thread's mask changes.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const kick, &raw mut before) };
        if result != 0 {
            return Err(HvError::Call {
                call: "pthread_sigmask",
                source: io::Error::from_raw_os_error(result),
            });
        }
        // SAFETY: the set was filled by the call above.
        let blocked = |number| unsafe { libc::sigismember(&raw const before, number) } == 1;
        let mask = (1..=64).filter(|number| *number != signal() && blocked(*number));
        let mask = mask.fold(0, |mask, number| mask | 1u64 << (number - 1));
        let target =
            Target { thread: rustix::thread::gettid().as_raw_nonzero().get().into(), immediate_exit };
        let shared = Kick { pending: AtomicBool::new(false), target: Mutex::new(Some(target)) };
        Ok(Self {
            shared: Arc::new(shared),
            was_blocked: blocked(signal()),
            mask,
            _not_send: std::marker::PhantomData,
        })
    }

    /// For KVM_SET_SIGNAL_MASK: bit `n - 1` blocks signal `n`.
    pub(super) fn mask(&self) -> u64 {
        self.mask
    }

    pub(super) fn kicker(&self) -> Arc<Kick> {
        Arc::clone(&self.shared)
    }

    /// Whether a kick came since the last [`take`](Self::take).
    pub(super) fn is_pending(&self) -> bool {
        self.shared.pending.load(Ordering::SeqCst)
    }

    /// Takes the kick, its flag and its signal: the run that follows is not ended by it.
    pub(super) fn take(&self) {
        self.shared.pending.store(false, Ordering::SeqCst);
        self.set_immediate_exit(0);
        consume();
    }

    /// Sets the flag for the vCPU's own use; a kick stays pending whatever happens to it.
    pub(super) fn set_immediate_exit(&self, value: u8) {
        if let Some(target) = &*self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) {
            target.set_immediate_exit(value);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // From here on nobody sends.
        consume();
        if !self.was_blocked {
            let kick = kick_set();
            // SAFETY: a valid set; the signal is not pending, so that unblocking it delivers
            // nothing.
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const kick, std::ptr::null_mut()) };
        }
    }
}

fn kick_set() -> libc::sigset_t {
    // SAFETY: an all-zero set is valid to be emptied, and the signal's number is in range.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        set
    }
}

/// Takes every kick signal that is pending for this thread. Real-time signals queue.
fn consume() {
    let kick = kick_set();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        // SAFETY: the set and the time are valid, and no information is asked for.
        let result = unsafe { libc::sigtimedwait(&raw const kick, std::ptr::null_mut(), &raw const now) };
        if result < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte() -> (Box<AtomicU8>, NonNull<u8>) {
        let byte = Box::new(AtomicU8::new(0));
        let pointer = NonNull::new(byte.as_ptr()).unwrap();
        (byte, pointer)
    }

    fn kick_is_blocked() -> bool {
        // SAFETY: a null set only asks.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
            libc::sigismember(&raw const set, signal()) == 1
        }
    }

    #[test]
    fn a_kick_is_taken_once_and_kicks_after_the_end_do_nothing() {
        let (flag, pointer) = byte();
        let receiver = Receiver::new(pointer).unwrap();
        assert!(kick_is_blocked());
        let kicker = receiver.kicker();
        let others: Vec<_> = (0..4)
            .map(|_| {
                let kicker = Arc::clone(&kicker);
                std::thread::spawn(move || (0..1000).for_each(|_| kicker.kick()))
            })
            .collect();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(receiver.is_pending());
        assert_eq!(flag.load(Ordering::SeqCst), 1);
        receiver.take();
        assert!(!receiver.is_pending());
        assert_eq!(flag.load(Ordering::SeqCst), 0);
        kicker.kick();
        drop(receiver);
        // Unblocked and alive: the pending signal was taken, and no further one comes.
        assert!(!kick_is_blocked());
        flag.store(7, Ordering::SeqCst);
        kicker.kick();
        assert_eq!(flag.load(Ordering::SeqCst), 7);
    }
}
