//! Connections between the host and containers, in both directions.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nelly_protocol::messages as m;
use ttrpc::Code;

use crate::bench::{World, beside, context, dial, reading, refusal, spec, writing};

crate::scenarios!(
    the_host_reaches_a_unix_socket_of_a_container,
    the_host_reaches_a_port_of_a_container,
    what_nobody_serves_is_refused_and_links_lead_nowhere_else,
    a_container_reaches_the_host_through_a_socket,
    listeners_are_refused_where_they_would_be_in_the_way,
    a_containers_end_ends_its_connections,
);

fn path(path: &str) -> m::ContainerAddress {
    m::ContainerAddress { path: path.into(), ..Default::default() }
}

async fn connect(world: &World, address: m::ContainerAddress) -> ttrpc::Result<UnixStream> {
    let request =
        m::ConnectRequest { container_id: "a".into(), address: Some(address).into(), ..Default::default() };
    let token = world.client.connect(context(), &request).await?.token;
    Ok(dial(&world.promises, &token))
}

async fn listen(world: &World, address: m::ContainerAddress) -> ttrpc::Result<u32> {
    let request =
        m::ListenRequest { container_id: "a".into(), address: Some(address).into(), ..Default::default() };
    Ok(world.client.listen(context(), &request).await?.listener)
}

async fn accept(world: &World, listener: u32) -> ttrpc::Result<UnixStream> {
    let request = m::AcceptRequest { listener, ..Default::default() };
    let token = world.client.accept(context(), &request).await?.token;
    Ok(dial(&world.promises, &token))
}

/// A container that stays, and a path of it as the test reaches it.
async fn idle(world: &World) -> impl Fn(&str) -> PathBuf + use<> {
    world.create(&world.create_request("a", &spec(&["sleep", "1000"]), &m::Stdio::new())).await.unwrap();
    let pid = world.start("a").await.pid;
    move |path| PathBuf::from(format!("/proc/{pid}/root{path}"))
}

async fn the_host_reaches_a_unix_socket_of_a_container(world: Arc<World>) {
    const LENGTH: usize = 3 << 20;
    let at = idle(&world).await;
    let deep = format!("/data/{}", "d".repeat(120));
    fs::create_dir(at(&deep)).unwrap();
    // Longer than an address of a socket: the test binds it where it is short.
    let listener = UnixListener::bind(at("/data/s")).unwrap();
    fs::rename(at("/data/s"), at(&format!("{deep}/s"))).unwrap();
    let host = connect(&world, path(&format!("{deep}/s"))).await.unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let bytes: Vec<u8> = (0..LENGTH).map(|n| u8::try_from((n * 7 + n / 251) % 256).unwrap()).collect();
    let (sent, wanted) = (bytes.clone(), bytes.clone());
    let served = beside(move || {
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        server.write_all(&got[..10]).unwrap();
        got == wanted
    });
    let host = writing(host, sent, true).await;
    assert!(served.await, "the bytes changed on their way");
    assert_eq!(reading(host).await.len(), 10);
}

async fn the_host_reaches_a_port_of_a_container(world: Arc<World>) {
    let serve = ["nc", "-l", "-p", "7000", "-e", "cat"];
    world.create(&world.create_request("a", &spec(&serve), &m::Stdio::new())).await.unwrap();
    world.start("a").await;
    let port = || m::ContainerAddress { port: 7000, ..Default::default() };
    // It listens when it does.
    let host = loop {
        match connect(&world, port()).await {
            Ok(host) => break host,
            refused => {
                let (code, text) = refusal(refused);
                assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
                assert!(text.contains("port 7000") && text.contains("refused"), "{text}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let host = writing(host, b"through the loopback\n".to_vec(), true).await;
    assert_eq!(reading(host).await, "through the loopback\n");
}

async fn what_nobody_serves_is_refused_and_links_lead_nowhere_else(world: Arc<World>) {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("s");
    let _outside = UnixListener::bind(&outside).unwrap();
    let missing = refusal(connect(&world, path("/data/none")).await);
    assert_eq!(missing.0, Code::NOT_FOUND, "{missing:?}");
    let at = idle(&world).await;
    symlink(format!("../../../../../../../../../..{}", outside.display()), at("/data/away")).unwrap();
    drop(UnixListener::bind(at("/data/left")).unwrap());
    for (name, word) in [
        ("/data/none", "No such file"),
        ("/data/left", "refused"),
        ("/data/plain", "refused"),
        ("/data/plain/s", "Not a directory"),
        ("/data/away", "No such file"),
        ("/no/such/directory", "No such file"),
    ] {
        let (code, text) = refusal(connect(&world, path(name)).await);
        assert_eq!(code, Code::FAILED_PRECONDITION, "{name}: {text}");
        assert!(text.contains(name) && text.contains(word), "{name}: {text}");
    }
    for bad in ["", "data/s", "/data/s/", "/"] {
        assert_eq!(refusal(connect(&world, path(bad)).await).0, Code::INVALID_ARGUMENT, "{bad}");
    }
}

async fn a_container_reaches_the_host_through_a_socket(world: Arc<World>) {
    world.create(&world.create_request("a", &spec(&["sleep", "1000"]), &m::Stdio::new())).await.unwrap();
    // Before its program runs.
    let listener = listen(&world, path("/dev/agent")).await.unwrap();
    let pid = world.start("a").await.pid;
    let socket = PathBuf::from(format!("/proc/{pid}/root/dev/agent"));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    for round in 0..50 {
        let mut inside = UnixStream::connect(&socket).unwrap();
        inside.write_all(format!("question {round}").as_bytes()).unwrap();
        inside.shutdown(Shutdown::Write).unwrap();
        let host = accept(&world, listener).await.unwrap();
        let (asked, answers) = (host.try_clone().unwrap(), host);
        assert_eq!(reading(asked).await, format!("question {round}"));
        drop(writing(answers, b"answer".to_vec(), true).await);
        assert_eq!(reading(inside).await, "answer");
    }
    // A host that has nobody to connect to closes its end.
    let inside = UnixStream::connect(&socket).unwrap();
    drop(accept(&world, listener).await.unwrap());
    assert_eq!(reading(inside).await, "");
    // Or says so, and the container's is closed long before the token expires.
    let inside = UnixStream::connect(&socket).unwrap();
    let request = m::AcceptRequest { listener, ..Default::default() };
    let token = world.client.accept(context(), &request).await.unwrap().token;
    for token in [vec![], vec![1; 16], token] {
        let request = m::ForgetRequest { token, ..Default::default() };
        world.client.forget(context(), &request).await.unwrap();
    }
    assert_eq!(reading(inside).await, "");

    let port = m::ContainerAddress { port: 7000, ..Default::default() };
    let listener = listen(&world, port).await.unwrap();
    let asks = world.exec_sh("a", "e", "echo hello | nc 127.0.0.1 7000");
    let serves = async {
        let host = accept(&world, listener).await.unwrap();
        drop(writing(host, b"welcome\n".to_vec(), true).await);
    };
    assert_eq!(tokio::join!(asks, serves).0.stdout, "welcome\n");
}

async fn listeners_are_refused_where_they_would_be_in_the_way(world: Arc<World>) {
    let at = idle(&world).await;
    drop(UnixListener::bind(at("/dev/left")).unwrap());
    let _served = UnixListener::bind(at("/dev/served")).unwrap();
    listen(&world, path("/dev/left")).await.unwrap();
    for (name, word) in [
        ("/dev/served", "in use"),
        ("/dev/left", "in use"),
        ("/data/plain", "exists"),
        ("/proc/x", "No such file"),
        ("/none/x", "No such file"),
    ] {
        let (code, text) = refusal(listen(&world, path(name)).await);
        assert_eq!(code, Code::FAILED_PRECONDITION, "{name}: {text}");
        assert!(text.contains(name) && text.contains(word), "{name}: {text}");
    }
    for number in 1..64 {
        listen(&world, path(&format!("/dev/{number}"))).await.unwrap();
    }
    assert_eq!(refusal(listen(&world, path("/dev/more")).await).0, Code::RESOURCE_EXHAUSTED);
}

async fn a_containers_end_ends_its_connections(world: Arc<World>) {
    let at = idle(&world).await;
    let served = UnixListener::bind(at("/data/s")).unwrap();
    let listener = listen(&world, path("/dev/agent")).await.unwrap();
    let host = connect(&world, path("/data/s")).await.unwrap();
    let accepting = {
        let world = world.clone();
        tokio::spawn(async move { accept(&world, listener).await })
    };
    tokio::task::yield_now().await;
    world.signal("a", "", libc::SIGKILL, false).await.unwrap();
    world.wait("a", "").await;
    assert_eq!(refusal(accepting.await.unwrap()).0, Code::NOT_FOUND);
    assert_eq!(refusal(accept(&world, listener).await).0, Code::NOT_FOUND);
    // A server that is gone, as those of a container are after its end.
    drop(served.accept().unwrap());
    assert_eq!(reading(host).await, "");
    let gone = refusal(connect(&world, path("/data/s")).await);
    assert_eq!(gone.0, Code::FAILED_PRECONDITION, "{gone:?}");
    let error = UnixStream::connect(at("/dev/agent")).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused), "{error}");
}
