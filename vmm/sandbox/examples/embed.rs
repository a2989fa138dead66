//! Three containers at a time, each in a machine of its own, held by one process: the shape of a
//! daemon that embeds Nelly.
//!
//!     cargo run -p nelly-sandbox --example embed -- PREFIX
//!
//! PREFIX is where Nelly is installed: /usr of a package, target/nelly of `make build`.

mod surface;

use std::error::Error;

use nelly_sandbox::library::{Error as NellyError, Nelly};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let prefix = std::env::args_os().nth(1).ok_or("usage: embed PREFIX")?;
    let nelly = Nelly::at(prefix)?;
    let (first, second, third) = tokio::try_join!(once(&nelly), server(&nelly), refused(&nelly))?;
    print!("{first}{second}{third}");
    Ok(())
}

/// Runs a command to its end, in a machine in threads of this process: the handle is the same. The
/// machine is gone when its output is there.
async fn once(nelly: &Nelly) -> Result<String, Box<dyn Error>> {
    let script = "cat; echo from $(hostname) with $(nproc) vCPUs";
    let command = nelly.sandbox("builtin:busybox").command(["sh", "-c", script]);
    let output =
        command.hostname("first").cpus(2).memory(256 << 20).stdin("hello ").in_process().output().await?;
    assert!(output.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Keeps a machine for as long as it has work, and stops it in order.
async fn server(nelly: &Nelly) -> Result<String, Box<dyn Error>> {
    let script = "trap 'exit 3' TERM; sleep 100000 & wait";
    let sandbox = nelly.sandbox("builtin:busybox").command(["sh", "-c", script]).memory(256 << 20);
    let sandbox = sandbox.name("second").start().await?;
    surface::use_sandbox(&sandbox).await?;
    let end = sandbox.stop(None).await?;
    assert_eq!((end.exit.code, sandbox.wait().await.is_err()), (3, true));
    Ok(format!("{} was stopped\n", sandbox.name()))
}

/// What cannot start says why, and leaves nothing.
async fn refused(nelly: &Nelly) -> Result<String, Box<dyn Error>> {
    let describe = || nelly.sandbox("builtin:busybox").memory(256 << 20);
    let missing = describe().command(["nosuch"]).start().await;
    assert!(matches!(missing, Err(NellyError::Program { code: 127, .. })), "{missing:?}");
    let wrong = describe().memory(1000).start().await;
    assert!(matches!(wrong, Err(NellyError::Invalid { what: "memory", .. })), "{wrong:?}");
    Ok("third could not start\n".to_owned())
}
