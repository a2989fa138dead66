//! Two thousand vsock connections at once, each way.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::Sandbox;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::spec::{ContainerSpec, Seccomp};
use nelly_tests::top;

use super::Home;
use super::machine::{container, out_of_process, sandbox};

const COUNT: u64 = 2000;

/// A root file system with the guest half of these tests.
fn image(home: &Home) -> String {
    let root = home.path().join("root");
    for directory in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let helper = top().join("target/nelly/tests/guest-vsock");
    fs::copy(&helper, root.join("bin/guest-vsock"))
        .unwrap_or_else(|error| panic!("{}: {error}", helper.display()));
    format!("rootfs:{}", root.display())
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn start(sandbox: &Sandbox, mode: &str, port: u32) -> UnixStream {
    let script = format!("ulimit -n 4096; exec guest-vsock {mode} {port} {COUNT}");
    // The default profile refuses sockets to the host.
    let spec = ContainerSpec { seccomp: Seccomp::Unconfined, ..container(&["sh", "-c", &script]) };
    let streams = sandbox.run("c", &spec, IMAGE_DEVICE, None).await.unwrap().unwrap();
    // What it says on standard error is worth more in a failure than a broken pipe.
    let mut stderr = streams.stderr.unwrap();
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
    streams.stdout.unwrap()
}

async fn end(sandbox: &Sandbox) -> u32 {
    sandbox.agent().wait(ProcessId { container: "c", exec: "" }).await.unwrap().exit_code
}

#[test]
fn two_thousand_connections_from_the_guest() {
    let home = Home::new();
    run(async {
        let sandbox = sandbox(&home, out_of_process(), Some(&image(&home))).await;
        let listener = sandbox.machine().vsock().listen(7000).unwrap();
        let mut out = start(&sandbox, "dial", 7000).await;
        let mut streams: Vec<UnixStream> = (0..COUNT).map(|_| listener.accept().unwrap()).collect();
        for stream in &mut streams {
            let mut number = [0; 8];
            stream.read_exact(&mut number).unwrap();
            stream.write_all(&(u64::from_le_bytes(number) + 1).to_le_bytes()).unwrap();
        }
        assert_eq!(end(&sandbox).await, 0);
        let mut said = String::new();
        out.read_to_string(&mut said).unwrap();
        assert_eq!(said, format!("ok {COUNT}\n"));
    });
}

#[test]
fn two_thousand_connections_to_the_guest() {
    let home = Home::new();
    run(async {
        let sandbox = sandbox(&home, out_of_process(), Some(&image(&home))).await;
        let mut out = BufReader::new(start(&sandbox, "listen", 7001).await);
        let mut said = String::new();
        out.read_line(&mut said).unwrap();
        assert_eq!(said, "listening\n");
        let vsock = sandbox.machine().vsock();
        let mut streams: Vec<UnixStream> = (0..COUNT).map(|_| vsock.connect(7001).unwrap()).collect();
        for (stream, number) in streams.iter_mut().zip(0u64..) {
            stream.write_all(&number.to_le_bytes()).unwrap();
        }
        for (stream, number) in streams.iter_mut().zip(0u64..) {
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(u64::from_le_bytes(answer), number + 1);
        }
        drop(streams);
        assert_eq!(end(&sandbox).await, 0);
    });
}
