//! The library for programs that run containers in machines of their own. `docs/library.md` says
//! which of its three ways costs what.
//!
//! ```no_run
//! # async fn example() -> Result<(), nelly_sandbox::library::Error> {
//! use nelly_sandbox::library::Nelly;
//!
//! let nelly = Nelly::at("/usr")?;
//! let described = nelly.sandbox("builtin:busybox").command(["sleep", "inf"]).memory(256 << 20);
//! let sandbox = described.start().await?;
//! let output = sandbox.exec(["uname", "-r"]).user("nobody").output().await?;
//! assert!(output.success());
//! sandbox.stop(None).await?;
//! # Ok(()) }
//! ```
//!
//! Everything asynchronous needs a tokio runtime with I/O and time; a runtime of one thread will
//! do. What blocks (reading images, starting a keeper) runs on tokio's threads for blocking work.
//! Nothing here installs a signal handler, prints, or keeps global state.

mod builder;
mod capture;
mod error;
mod exec;
mod held;
mod nelly;
mod ports;
mod process;
mod sandbox;
mod start;

pub use builder::Builder;
pub use capture::Output;
pub use error::Error;
pub use exec::Exec;
pub use nelly::{Nelly, connect};
pub use process::{Pipes, Process};
pub use sandbox::Sandbox;

pub use nelly_net::config::Publish;
pub use nelly_net::control::{Port, Traffic};

pub use crate::connect::EndReport;
pub use crate::life::Signal;

/// Does what blocks on a thread for it. It is not interrupted when the caller gives up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    /// Handles are shared by tasks on any thread.
    #[test]
    fn handles_are_send_and_sync() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<super::Nelly>();
        shared::<super::Sandbox>();
        shared::<super::Process>();
        shared::<super::Error>();
    }

    #[test]
    fn futures_are_send() {
        fn sent<T: Send>(_: impl FnOnce(super::Builder) -> T) {}
        fn sent_with<T: Send>(_: impl FnOnce(&'static super::Sandbox) -> T) {}
        sent(super::Builder::start);
        sent(super::Builder::output);
        sent(super::Builder::keep);
        sent_with(|sandbox| sandbox.exec(["true"]).output());
        sent_with(|sandbox| sandbox.exec(["true"]).spawn());
        sent_with(|sandbox| sandbox.stop(None));
        sent_with(super::Sandbox::ports);
        sent_with(|sandbox| sandbox.add_port("0:80".parse().unwrap()));
    }
}
