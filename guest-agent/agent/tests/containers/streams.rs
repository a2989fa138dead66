//! Bytes in and out, pipes and terminals.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use nelly_protocol::messages as m;

use crate::bench::{World, beside, context, dial, reading, spec, writing};

crate::scenarios!(
    stdin_to_its_end,
    close_stdin_ends_it_too,
    much_data_and_a_slow_reader,
    a_closed_output_is_a_broken_pipe,
    a_stdin_that_nobody_reads,
    a_terminal,
    a_terminals_end_of_file,
    a_terminal_without_a_viewer,
    a_first_process_ends_with_the_reader_of_its_output,
    a_first_process_that_minds_goes_on,
    a_reader_that_leaves_changes_nothing_by_itself,
    a_token_is_for_one_stream_of_one_process;
    streams_that_nobody_dials
);

async fn stdin_to_its_end(world: Arc<World>) {
    let streams = world.streams();
    world.create(&world.create_request("a", &spec(&["cat"]), &streams.stdio)).await.unwrap();
    let stdout = reading(streams.stdout());
    let stdin = writing(streams.stdin(), b"hi\n".to_vec(), true);
    world.start("a").await;
    let exit = world.wait("a", "").await;
    assert_eq!((stdout.await.as_str(), exit.exit_code), ("hi\n", 0));
    drop(stdin.await);
}

async fn close_stdin_ends_it_too(world: Arc<World>) {
    let streams = world.streams();
    world.create(&world.create_request("a", &spec(&["cat"]), &streams.stdio)).await.unwrap();
    let _stdin = streams.stdin();
    world.start("a").await;
    let request = m::CloseStdinRequest { container_id: "a".into(), ..Default::default() };
    world.client.close_stdin(context(), &request).await.unwrap();
    assert_eq!(world.wait("a", "").await.exit_code, 0);
}

async fn much_data_and_a_slow_reader(world: Arc<World>) {
    const LENGTH: usize = 8 << 20;
    let bytes: Vec<u8> = (0..LENGTH).map(|n| u8::try_from((n * 7 + n / 251) % 256).unwrap()).collect();
    let streams = world.streams();
    world.create(&world.create_request("a", &spec(&["cat"]), &streams.stdio)).await.unwrap();
    let stdin = writing(streams.stdin(), bytes.clone(), true);
    let mut stdout = streams.stdout();
    let read = beside(move || {
        let (mut all, mut buffer) = (Vec::<u8>::new(), vec![0u8; 100_000]);
        loop {
            match stdout.read(&mut buffer).unwrap() {
                0 => return all,
                n => all.extend(&buffer[..n]),
            }
            if all.len() < LENGTH / 4 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    world.start("a").await;
    let exit = world.wait("a", "").await;
    assert_eq!(exit.exit_code, 0);
    assert!(read.await == bytes, "the bytes changed on their way");
    drop(stdin.await);
}

async fn a_closed_output_is_a_broken_pipe(world: Arc<World>) {
    let streams = world.streams();
    world
        .create(&world.create_request("a", &spec(&["sh", "-c", "yes; echo $? >&2"]), &streams.stdio))
        .await
        .unwrap();
    drop(streams.stdout());
    let stderr = reading(streams.stderr());
    world.start("a").await;
    world.wait("a", "").await;
    assert_eq!(stderr.await, format!("{}\n", 128 + libc::SIGPIPE));
    // The host's end of sending on an output stream is no close: what is said long after it
    // arrives.
    let streams = world.streams();
    world
        .create(&world.create_request("b", &spec(&["sh", "-c", "read line; echo late"]), &streams.stdio))
        .await
        .unwrap();
    let stdout = streams.stdout();
    stdout.shutdown(std::net::Shutdown::Write).unwrap();
    let stdout = reading(stdout);
    world.start("b").await;
    let _stdin = writing(streams.stdin(), b"line\n".to_vec(), false).await;
    world.wait("b", "").await;
    assert_eq!(stdout.await, "late\n");
}

/// Runs a script as a first process until it said `begin` on the stream of that number, then closes
/// the stream.
async fn left_alone(world: &World, id: &str, script: &str, error: bool) -> crate::bench::Streams {
    let streams = world.streams();
    world.create(&world.create_request(id, &spec(&["sh", "-c", script]), &streams.stdio)).await.unwrap();
    let mut output = if error { streams.stderr() } else { streams.stdout() };
    world.start(id).await;
    beside(move || drop(read_until(&mut output, "begin"))).await;
    streams
}

async fn a_first_process_ends_with_the_reader_of_its_output(world: Arc<World>) {
    for (id, script, error) in [
        ("a", "while :; do echo begin; done", false),
        ("b", "while :; do echo begin >&2; done", true),
        // Somebody else could write as well, but does not.
        ("c", "sleep 1000 & while :; do echo begin; done", false),
        ("d", "exec yes begin", false),
    ] {
        let _streams = left_alone(&world, id, script, error).await;
        let exit = world.wait(id, "").await;
        let pipe = libc::SIGPIPE.cast_unsigned();
        assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (128 + pipe, pipe, false), "{script}");
    }
}

async fn a_first_process_that_minds_goes_on(world: Arc<World>) {
    for (id, script, code) in [
        ("a", "trap '' PIPE; while echo begin 2>/dev/null; do :; done; exit 3", 3),
        ("b", "trap : PIPE; while echo begin 2>/dev/null; do :; done; exit 4", 4),
        // A process of the container dies of it, as it does anywhere; the first one wrote nothing.
        ("c", "yes begin; exit 5", 5),
        // Not of its own writing: somebody else's finds that the reader left, and signals.
        (
            "d",
            "trap 'exit 6' TERM; (yes begin; kill -PIPE 1; kill -TERM 1) & while :; do sleep 0.05; done",
            6,
        ),
    ] {
        let _streams = left_alone(&world, id, script, false).await;
        assert_eq!(world.wait(id, "").await.exit_code, code, "{script}");
    }
}

async fn a_reader_that_leaves_changes_nothing_by_itself(world: Arc<World>) {
    let script = "trap 'exit 5' TERM; (yes begin; echo found >&2) & while :; do sleep 0.05; done";
    let streams = left_alone(&world, "a", script, false).await;
    let mut stderr = streams.stderr();
    beside(move || drop(read_until(&mut stderr, "found"))).await;
    // Somebody else has found that the reader left. The first process is as it was, for other
    // signals too.
    for signal in [libc::SIGSTOP, libc::SIGCONT, libc::SIGWINCH, libc::SIGTERM] {
        world.signal("a", "", signal, false).await.unwrap();
    }
    assert_eq!(world.wait("a", "").await.exit_code, 5);
    let streams = left_alone(&world, "b", "echo begin; read line; exit 6", false).await;
    let _stdin = writing(streams.stdin(), b"line\n".to_vec(), false).await;
    assert_eq!(world.wait("b", "").await.exit_code, 6);
}

async fn a_stdin_that_nobody_reads(world: Arc<World>) {
    let streams = world.streams();
    let script = "exec <&-; sleep 1000";
    world.create(&world.create_request("a", &spec(&["sh", "-c", script]), &streams.stdio)).await.unwrap();
    let mut stdin = streams.stdin();
    world.start("a").await;
    let refused = beside(move || (0..1000).any(|_| stdin.write_all(&[b'x'; 4096]).is_err()));
    assert!(refused.await, "the host is not told that nobody reads");
}

/// Reads until a text came.
fn read_until(stream: &mut impl Read, wanted: &str) -> String {
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        match stream.read(&mut byte) {
            Ok(1) => seen.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

async fn a_terminal(world: Arc<World>) {
    let streams = world.terminal(24, 80);
    let mut spec = spec(&[
        "sh",
        "-c",
        "tty; stty size; read line; stty size; echo \"got $line\"; ls -l /dev/console; read x",
    ]);
    spec["process"]["terminal"] = serde_json::json!(true);
    world.create(&world.create_request("a", &spec, &streams.stdio)).await.unwrap();
    let mut terminal = streams.stdin();
    world.start("a").await;
    let (terminal, seen) = beside(move || {
        let seen = read_until(&mut terminal, "24 80\r\n");
        (terminal, seen)
    })
    .await;
    assert!(seen.starts_with("/dev/pts/0\r\n"), "{seen:?}");
    let resize =
        m::ResizePtyRequest { container_id: "a".into(), rows: 40, columns: 100, ..Default::default() };
    world.client.resize_pty(context(), &resize).await.unwrap();
    let mut terminal = terminal;
    let (terminal, seen) = beside(move || {
        terminal.write_all(b"word\n").unwrap();
        let seen = read_until(&mut terminal, "/dev/console\r\n");
        (terminal, seen)
    })
    .await;
    assert!(seen.contains("40 100\r\n") && seen.contains("got word\r\n"), "{seen:?}");
    assert!(seen.contains("136,"), "/dev/console is no terminal: {seen:?}");
    // Ctrl-C reaches the foreground process.
    let mut terminal = terminal;
    let rest = beside(move || {
        terminal.write_all(&[3]).unwrap();
        let mut rest = Vec::new();
        let _ = terminal.read_to_end(&mut rest);
        rest
    });
    let exit = world.wait("a", "").await;
    assert_eq!(exit.exit_code, 130, "{exit:?}");
    rest.await;
}

async fn a_terminals_end_of_file(world: Arc<World>) {
    world.idle("a").await;
    let streams = world.terminal(0, 0);
    let request = world.exec_request("a", "e", &["cat"], &streams.stdio);
    world.exec(&request).await.unwrap();
    let terminal = writing(streams.stdin(), b"begun".to_vec(), true).await;
    let seen = reading(terminal);
    assert_eq!(world.wait("a", "e").await.exit_code, 0);
    assert!(seen.await.contains("begun"));
}

async fn a_terminal_without_a_viewer(world: Arc<World>) {
    let mut streams = world.terminal(0, 0);
    streams.stdio.stdin = false;
    let script = "dd if=/dev/zero bs=1k count=512 2>/dev/null; exit 4";
    world.create(&world.create_request("a", &spec(&["sh", "-c", script]), &streams.stdio)).await.unwrap();
    world.start("a").await;
    assert_eq!(world.wait("a", "").await.exit_code, 4);
}

/// The agent closes a stream without a word.
async fn refused(stream: std::os::unix::net::UnixStream) -> bool {
    reading(stream).await.is_empty()
}

async fn streams_that_nobody_dials(world: Arc<World>) {
    // Each process runs to its end, as if its streams had been closed.
    let piped = m::Stdio { stdin: true, stdout: true, stderr: true, ..Default::default() };
    let terminal = m::Stdio { terminal: true, stdin: true, ..Default::default() };
    for (id, script, stdio) in [
        ("a", "cat; exit 3", &piped),
        ("b", "dd if=/dev/zero bs=1k count=512 & wait $!; exit 3", &piped),
        ("c", "cat; dd if=/dev/zero bs=1k count=512; exit 3", &terminal),
    ] {
        let mut spec = spec(&["sh", "-c", script]);
        spec["process"]["terminal"] = serde_json::json!(stdio.terminal);
        let request = world.create_request(id, &spec, stdio);
        let answer = world.client.create_container(context(), &request).await.unwrap();
        world.start(id).await;
        assert_eq!(world.wait(id, "").await.exit_code, 3);
        let late = answer.streams.as_ref().unwrap();
        for token in [&late.stdin, &late.stdout, &late.stderr].into_iter().filter(|token| !token.is_empty()) {
            assert!(refused(dial(&world.promises, token)).await, "a token is good for ever");
        }
    }
}

async fn a_token_is_for_one_stream_of_one_process(world: Arc<World>) {
    world.idle("a").await;
    // Ten thousand connections that say nothing, or half a token, or a wrong one, come first.
    let mut strangers = Vec::new();
    for n in 0..10_000 {
        strangers.push(dial(&world.promises, &[0; 16][..[0, 8, 16][n % 3]]));
        if strangers.len() > 200 {
            strangers.remove(0);
        }
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let request = |exec: &str, streams: &crate::bench::Streams| {
        world.exec_request("a", exec, &["sh", "-c", "cat; echo done >&2"], &streams.stdio)
    };
    let one = world.streams();
    let answer = world.exec(&request("one", &one)).await.unwrap();
    let two = world.streams();
    let other = world.exec(&request("two", &two)).await.unwrap();
    let tokens = [answer.streams, other.streams].map(|tokens| tokens.unwrap());
    let all = tokens.iter().flat_map(|one| [&one.stdin, &one.stdout, &one.stderr]);
    let different: std::collections::HashSet<_> = all.clone().collect();
    assert!(different.len() == 6 && all.clone().all(|token| token.len() == 16), "{tokens:?}");

    let (out, err) = (reading(one.stdout()), reading(one.stderr()));
    let _stdin = writing(one.stdin(), b"for one\n".to_vec(), true).await;
    assert!(refused(dial(&world.promises, &tokens[0].stdin)).await, "a token is used twice");
    assert_eq!(world.wait("a", "one").await.exit_code, 0);
    assert_eq!((out.await.as_str(), err.await.as_str()), ("for one\n", "done\n"));
    // The other one has heard nothing of it.
    let (out, err) = (reading(two.stdout()), reading(two.stderr()));
    let _stdin = writing(two.stdin(), b"for two\n".to_vec(), true).await;
    assert_eq!(world.wait("a", "two").await.exit_code, 0);
    assert_eq!((out.await.as_str(), err.await.as_str()), ("for two\n", "done\n"));
    drop(strangers);
}
