//! What the examples do in a sandbox, whoever holds it: processes with input, output, users, limits
//! of time, and streams.

use std::error::Error;
use std::time::Duration;

use nelly_sandbox::library::{Error as NellyError, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Does it, and fails when something is not as it should be.
pub(crate) async fn use_sandbox(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    // A command with input, and what it wrote.
    let output = sandbox.exec(["sh", "-c", "cat; echo told >&2; exit 7"]).stdin("fed\n").output().await?;
    assert_eq!((output.code, output.reason.as_str(), output.success()), (7, "exited", false));
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"fed\n"[..], &b"told\n"[..]));

    // As another user, elsewhere, with a variable.
    let output = sandbox
        .exec(["sh", "-c", "id -u; pwd; echo $GREETING"])
        .user("65534:65534")
        .cwd("/tmp")
        .env("GREETING", "hi")
        .output()
        .await?;
    assert_eq!(String::from_utf8(output.stdout)?, "65534\n/tmp\nhi\n");

    // More output than is wanted is counted, and the process does not wait for it to be read.
    let flood = sandbox.exec(["head", "-c", "300000", "/dev/zero"]).hold_at_most(1000).output().await?;
    assert_eq!((flood.stdout.len(), flood.lost_bytes, flood.code), (1000, 299_000, 0));

    // A process that takes too long is ended; what it said is there.
    let slow = sandbox.exec(["sh", "-c", "echo begun; exec sleep 1000"]).timeout(Duration::from_secs(2));
    match slow.output().await {
        Err(NellyError::TimedOut { output, .. }) => {
            assert_eq!((output.code, &output.stdout[..]), (129, &b"begun\n"[..]));
        }
        other => return Err(format!("it was to take too long: {other:?}").into()),
    }

    // One that is not there is an error of its start.
    match sandbox.exec(["nosuch"]).output().await {
        Err(NellyError::Program { code: 127, message }) => assert!(message.contains("nosuch"), "{message}"),
        other => return Err(format!("there is no such program: {other:?}").into()),
    }

    // Streams both ways.
    let mut cat = sandbox.exec(["cat"]).piped_stdin().spawn().await?;
    let (mut input, mut output) =
        (cat.pipes.stdin.take().ok_or("an input")?, cat.pipes.stdout.take().ok_or("an output")?);
    for line in ["one\n", "two\n"] {
        input.write_all(line.as_bytes()).await?;
        let mut answer = [0; 4];
        output.read_exact(&mut answer).await?;
        assert_eq!(&answer, line.as_bytes());
    }
    drop(input);
    assert_eq!(cat.wait().await?.exit.code, 0);

    // A process ends with its handle.
    let dropped = sandbox.exec(["sleep", "777"]).spawn().await?;
    drop(dropped);
    let gone = async {
        loop {
            let listed = sandbox.exec(["sh", "-c", "ps | grep '[s]leep 777'"]).output().await?;
            if !listed.success() {
                return Ok::<_, NellyError>(());
            }
        }
    };
    Ok(tokio::time::timeout(Duration::from_secs(60), gone).await??)
}
