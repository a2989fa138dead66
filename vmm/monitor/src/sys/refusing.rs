//! For tests: a thread that finds the host without memory.

/// Does `work` on a thread of its own, whose calls to send fail for want of memory (ENOBUFS).
/// `None`, and the work is not done, on a system that cannot have that.
pub(crate) fn cannot_send<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    #[cfg(target_os = "linux")]
    {
        use nelly_confine::program::{Calls, Denial, Speculation, Threads, Ways, compile, install};

        let error = u16::try_from(libc::ENOBUFS).unwrap();
        let mut calls: Calls = (0..1024).map(|number| (number, Ways::All)).collect();
        for number in [libc::SYS_sendmsg, libc::SYS_sendto] {
            calls.insert(u32::try_from(number).unwrap(), Ways::Error(error));
        }
        let program = compile(&calls, Denial::Error).unwrap();
        let confined = || {
            nelly_confine::privilege::keep_down().unwrap();
            install(&program, Threads::This, Speculation::AsTheSystemHasIt).unwrap();
            work()
        };
        Some(std::thread::scope(|scope| scope.spawn(confined).join().unwrap()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        drop(work);
        None
    }
}
