//! Forced exits (`hv_vcpus_exit`): from any thread, and none is lost.
//!
//! A forced exit is noted, then a signal is sent to the vCPU's thread, which blocks it everywhere
//! but within KVM_RUN (KVM_SET_SIGNAL_MASK): there it ends the run, or, if it came before, does not
//! let it begin. The note is looked at before each run.
#![allow(unsafe_code, reason = "signals of a thread, and a call of KVM without a wrapper")]

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::answer::Answer;

/// KVM_SET_SIGNAL_MASK: `_IOW(0xae, 0x8b, struct kvm_signal_mask)`, whose mask lies behind it.
const SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b;

/// Real-time, so that it has no meaning to anyone; another than Nelly's back end for KVM has.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

/// What those who force exits know of a vCPU.
#[derive(Debug)]
struct Target {
    thread: libc::pid_t,
    forced: Arc<AtomicBool>,
}

/// Those that exist, by their handle. One that ends takes itself out first, on its own thread.
static TARGETS: Mutex<BTreeMap<u64, Target>> = Mutex::new(BTreeMap::new());

fn targets() -> MutexGuard<'static, BTreeMap<u64, Target>> {
    TARGETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forces all of these out, or none if one of them does not exist.
pub(super) fn force(vcpus: &[u64]) -> Result<(), Answer> {
    let targets = targets();
    let found: Vec<&Target> =
        vcpus.iter().map(|vcpu| targets.get(vcpu).ok_or(Answer::BadArgument)).collect::<Result<_, _>>()?;
    for target in found {
        target.forced.store(true, Ordering::SeqCst);
        // SAFETY: the thread lives as long as its vCPU is in the table, which is held here, and
        // blocks the signal.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), target.thread, signal()) };
    }
    Ok(())
}

/// The vCPU's own end, on its thread.
#[derive(Debug)]
pub(super) struct Receiver {
    vcpu: u64,
    forced: Arc<AtomicBool>,
    was_blocked: bool,
    thread: PhantomData<*const ()>,
}

/// `struct kvm_signal_mask`, with its mask.
#[repr(C)]
struct SignalMask {
    len: u32,
    mask: [u8; 8],
}

fn set_of_signal() -> libc::sigset_t {
    // SAFETY: an all-zero set is one to be emptied; the signal's number is in range.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        set
    }
}

impl Receiver {
    /// The vCPU of this handle and of this descriptor of KVM's, on the calling thread.
    pub(super) fn new(vcpu: u64, fd: BorrowedFd<'_>) -> Result<Self, Answer> {
        let set = set_of_signal();
        // SAFETY: both sets are valid, and only this thread's mask changes.
        let before = unsafe {
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
            before
        };
        // SAFETY: the set was filled above.
        let blocked = |number| unsafe { libc::sigismember(&raw const before, number) } == 1;
        let others = (1..=64).filter(|number| *number != signal() && blocked(*number));
        let mask = others.fold(0u64, |mask, number| mask | 1 << (number - 1));
        let forced = Arc::new(AtomicBool::new(false));
        // SAFETY: asks for nothing.
        let thread = unsafe { libc::gettid() };
        targets().insert(vcpu, Target { thread, forced: Arc::clone(&forced) });
        let receiver = Self { vcpu, forced, was_blocked: blocked(signal()), thread: PhantomData };
        let mask = SignalMask { len: 8, mask: mask.to_ne_bytes() };
        // SAFETY: the kernel reads the header and the eight bytes behind it.
        if unsafe { libc::ioctl(fd.as_raw_fd(), SET_SIGNAL_MASK, &raw const mask) } != 0 {
            return Err(Answer::Error);
        }
        Ok(receiver)
    }

    /// Whether an exit was forced since it was last asked.
    pub(super) fn take(&self) -> bool {
        self.forced.swap(false, Ordering::SeqCst)
    }

    /// Takes what signals came.
    pub(super) fn consume(&self) {
        let (set, now) = (set_of_signal(), libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: set and time are valid, and nothing is asked for.
        while unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) } > 0 {}
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        targets().remove(&self.vcpu);
        self.consume();
        if !self.was_blocked {
            let set = set_of_signal();
            // SAFETY: the set is valid, no such signal is pending, and none comes any more.
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
        }
    }
}
