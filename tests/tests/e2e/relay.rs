//! Relays: connections between the host and containers without a network. A relay into the
//! container ends at another one that leads out of it, so that the test has both ends.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nelly_tests::{nelly, scaled, wait};
use serde_json::Value;

use super::LIMIT;
use super::keeper::{Kept, spawn};
use super::relay_programs as programs;

/// Bytes each way: many times what all windows on the way hold.
const MUCH: usize = 32 << 20;

/// What serves at one end of a relay: hears to the end, and says the same back.
fn echoes<S: Read + Write + Send + 'static>(mut accept: impl FnMut() -> Option<S> + Send + 'static) {
    thread::spawn(move || {
        while let Some(mut stream) = accept() {
            thread::spawn(move || {
                let mut all = Vec::new();
                // Who hangs up is not answered.
                if stream.read_to_end(&mut all).is_ok() {
                    let _gone = stream.write_all(&all);
                }
            });
        }
    });
}

fn serve_unix(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    echoes(move || listener.accept().ok().map(|(stream, _)| stream));
}

fn serve_tcp() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    echoes(move || listener.accept().ok().map(|(stream, _)| stream));
    port
}

/// Says `bytes` and its end, and expects to hear the same.
fn echoed(stream: impl Into<OwnedFd>, bytes: &[u8]) {
    // Of a TCP connection it is as good.
    let stream = UnixStream::from(stream.into());
    let patience = Some(scaled(LIMIT));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::with_capacity(bytes.len());
        (&stream).read_to_end(&mut heard).unwrap();
        assert!(heard == bytes, "{} bytes came back of {}, or others", heard.len(), bytes.len());
    });
}

/// A connection that nobody takes ends at once.
fn ends(stream: impl Into<OwnedFd>) {
    let stream = UnixStream::from(stream.into());
    stream.set_read_timeout(Some(scaled(LIMIT))).unwrap();
    match (&stream).read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

fn relays(kept: &Kept) -> Vec<Value> {
    let shown: Value = serde_json::from_str(&kept.out(&["inspect", "box"])).unwrap();
    shown[0]["relays"].as_array().cloned().unwrap_or_default()
}

fn much() -> Vec<u8> {
    let mut state = 1_u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()
    };
    (0..MUCH / 8).flat_map(|_| word()).collect()
}

/// Memory of a process that is its own, in KiB; its program is that of all keepers.
fn private(pid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_Dirty"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn connections_pass_in_both_directions_and_nothing_is_left() {
    let kept = Kept::new();
    let at = |name: &str| kept.0.path().join(name);
    let said = |path: &Path| path.to_str().unwrap().to_owned();
    let (server, agent, enters) = (at("server"), at("agent"), at("enters"));
    serve_unix(&server);
    serve_unix(&agent);
    let port = serve_tcp();
    let flags = [
        format!("--relay={}=/dev/loop", said(&enters)),
        format!("--relay-out=/dev/loop=unix:{}", said(&server)),
        "--relay=0=7000".to_owned(),
        format!("--relay-out=7000={port}"),
        format!("--relay-out=/dev/none=unix:{}", said(&at("none"))),
        "--ssh-agent".to_owned(),
        "--memory=256M".to_owned(),
    ];
    let words: Vec<&str> = ["run", "-d", "--name", "box"]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .chain(["--", "sleep", "100000"])
        .collect();
    let mut command = nelly(kept.0.path(), &words);
    command.env("SSH_AUTH_SOCK", &agent);
    nelly_tests::run(&mut command, b"", LIMIT).expect(0);
    let mode = enters.symlink_metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    let states = relays(&kept);
    assert_eq!(states.len(), 6, "{states:?}");
    let listen = states[1]["listen"].as_str().unwrap().to_owned();
    let free: u16 = listen.strip_prefix("tcp:").unwrap().parse().unwrap();

    let bytes = much();
    echoed(UnixStream::connect(&enters).unwrap(), &bytes);
    echoed(TcpStream::connect((Ipv4Addr::LOCALHOST, free)).unwrap(), &bytes);
    let many: Vec<_> = (0..200).map(|_| UnixStream::connect(&enters).unwrap()).collect();
    for (number, stream) in many.into_iter().enumerate() {
        echoed(stream, format!("one of many: {number}").as_bytes());
    }
    let counts = |what: &str| relays(&kept).iter().map(|one| one[what].as_u64().unwrap()).collect::<Vec<_>>();
    // The keeper counts beside what passes.
    kept.until("all are counted", || counts("connections") == [201, 1, 201, 1, 0, 0]);

    // The agent of the user.
    assert_eq!(
        kept.exec("echo $SSH_AUTH_SOCK; test -S $SSH_AUTH_SOCK && echo seen"),
        "/dev/ssh-agent.sock\nseen"
    );
    let asked = kept.0.feed(&["proxy", "box", "/dev/ssh-agent.sock"], b"list the keys");
    assert_eq!(asked.expect(0).out(), "list the keys");
    // A process of the container reaches the host.
    assert_eq!(kept.exec("echo from the guest | nc 127.0.0.1 7000 | head -n 1"), "from the guest");
    // And the host a process of the container, which is there when it is.
    kept.out(&["exec", "-d", "box", "sh", "-c", "echo from a process | nc -l -p 7001 >/tmp/heard"]);
    let limit = Instant::now() + scaled(LIMIT);
    let answer = loop {
        let done = kept.0.feed(&["proxy", "box", "7001"], b"to a process\n");
        if done.code == 0 {
            break done.out();
        }
        assert!(done.err().contains("port 7001") && done.err().contains("refused"), "{}", done.err());
        assert!(Instant::now() < limit, "nobody listened");
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(answer, "from a process\n");
    kept.until("it has heard", || kept.exec("cat /tmp/heard") == "to a process");

    // Nobody is there.
    let none = kept.0.nelly(&["proxy", "box", "/no/such"]);
    assert!(none.expect(1).err().contains("No such file"), "{}", none.err());
    assert!(kept.0.nelly(&["proxy", "nobody", "80"]).expect(1).err().contains("nobody"));
    assert!(kept.0.nelly(&["proxy", "box", "such"]).expect(2).err().contains("PORT"));
    kept.0.feed(&["proxy", "box", "/dev/none"], b"lost");
    kept.until("it is counted", || counts("failed") == [0, 0, 0, 0, 1, 0]);
    fs::remove_file(&server).unwrap();
    ends(UnixStream::connect(&enters).unwrap());

    // The keeper has held nothing of all that.
    let held = private(kept.pid("holder"));
    assert!(held < 4096, "{held} KiB");
    let open = UnixStream::connect(&enters).unwrap();
    kept.out(&["rm", "-f", "box"]);
    ends(open);
    assert!(!enters.exists());
    TcpListener::bind((Ipv4Addr::LOCALHOST, free)).unwrap();
}

#[test]
fn a_run_in_the_foreground_relays_and_bad_ones_are_refused_before_it() {
    let kept = Kept::new();
    let at = |name: &str| kept.0.path().join(name).to_str().unwrap().to_owned();
    let (server, enters) = (at("server"), at("enters"));
    serve_unix(server.as_ref());
    fs::write(at("file"), "").unwrap();
    for (flag, word) in [
        (format!("--relay={}=80", at("file")), "no socket"),
        (format!("--relay={server}=80"), "already"),
        (format!("--relay={}=80", at("none/s")), "does not exist"),
    ] {
        let done = kept.0.nelly(&["run", "--rm", "--dry-run", &flag, "--", "true"]);
        assert!(done.expect(125).err().contains(word), "{}", done.err());
    }
    let (inward, outward) =
        (format!("--relay={enters}=/dev/loop"), format!("--relay-out=/dev/loop={server}"));
    // Programs of others at both ends of a way through the machine.
    let (web, shell) = (programs::http2_server(kept.0.path()), programs::ssh_server(kept.0.path()));
    let web_in = format!("--relay={}=/dev/web", at("web"));
    let web_out = format!("--relay-out=/dev/web={}", web.port);
    let shell_out = format!("--relay-out=7022={}", shell.port);
    let calls = programs::grpc_server();
    let calls_in = format!("--relay={}=/dev/calls", at("calls"));
    let calls_out = format!("--relay-out=/dev/calls={}", calls.port);
    let flags = ["run", "--rm", "--name", "box", &inward, &outward, &web_in, &web_out, &shell_out];
    let flags = [&flags[..], &[&calls_in, &calls_out]].concat();
    let words = [&flags[..], &["--", "sleep", "100000"]].concat();
    let mut run = spawn(kept.0.path(), &words);
    let limit = Instant::now() + scaled(LIMIT);
    let stream = loop {
        match UnixStream::connect(&enters) {
            Ok(stream) => break stream,
            Err(_) => {
                assert!(Instant::now() < limit && run.try_wait().unwrap().is_none(), "it does not listen")
            }
        }
        thread::sleep(Duration::from_millis(20));
    };
    echoed(stream.as_fd().try_clone_to_owned().unwrap(), b"through the foreground");
    programs::http2(kept.0.path(), &at("web"));
    programs::grpc(&at("calls"));
    programs::ssh(kept.0.path(), kept.0.path(), 7022);
    // Its program does not mind: the machine is killed after five seconds.
    super::keeper::kill("HUP", run.id().into());
    wait(&mut run, scaled(LIMIT));
    assert!(!Path::new(&enters).exists(), "the socket is left");
}
