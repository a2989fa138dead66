//! A sandbox that outlives the program that made it: a keeper holds it, and whoever knows its name
//! connects to it.
//!
//!     cargo run -p nelly-sandbox --example keep -- PREFIX
//!
//! PREFIX is where Nelly is installed: /usr of a package, target/nelly of `make build`.

mod surface;

use std::error::Error;
use std::time::Duration;

use nelly_sandbox::library::{Error as NellyError, Nelly, connect};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let prefix = std::env::args_os().nth(1).ok_or("usage: keep PREFIX")?;
    let nelly = Nelly::at(prefix)?;
    let script = "echo up; trap 'exit 3' TERM; sleep 100000 & wait";
    let describe = || nelly.sandbox("builtin:busybox").command(["sh", "-c", script]).name("box");
    // `keep` would do both: made, and started later.
    let id = describe().memory(256 << 20).label("team", "a").create().await?;
    let again = describe().create().await;
    assert!(matches!(again, Err(NellyError::State(_))), "the name is taken: {again:?}");
    let early = nelly.connect("box").await;
    assert!(matches!(early, Err(NellyError::Keeper(_))), "it does not run yet: {early:?}");
    drop(nelly.start("box").await?);

    // Another program, later: it needs no installation, only the user's directories.
    let sandbox = connect(nelly.places(), &id.short()).await?;
    surface::use_sandbox(&sandbox).await?;
    let state = sandbox.directory().ok_or("it has a directory")?.state()?;
    println!(
        "{} is {} and held by process {}",
        sandbox.name(),
        state.status.word(),
        state.holder.map_or(0, |holder| holder.pid)
    );
    let (ended, end) = tokio::join!(sandbox.wait(), sandbox.stop(Some(Duration::from_secs(20))));
    assert_eq!((ended?.exit.code, end?.exit.code), (3, 3));
    sandbox.remove().await?;
    let gone = nelly.connect("box").await;
    assert!(matches!(gone, Err(NellyError::State(_))), "it was removed: {gone:?}");
    println!("box was stopped and removed");
    Ok(())
}
