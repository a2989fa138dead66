//! Machines with networks: one whose ports and rules are set and changed while it runs, one without
//! any way out, and one that is on a network of machines, if its name is given.
//!
//!     cargo run -p nelly-sandbox --example network -- PREFIX [NETWORK]
//!
//! PREFIX is where Nelly is installed: /usr of a package, target/nelly of `make build`. NETWORK is
//! one that `nelly network create` made.

use std::error::Error;
use std::net::SocketAddr;

use nelly_sandbox::library::{Error as NellyError, Nelly, Sandbox};
use nelly_sandbox::spec::RelayAddress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Answers each caller at port 80.
const SERVER: &str = "mkdir /www; echo hello > /www/index.html; exec httpd -f -h /www -p 80";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args_os().skip(1);
    let nelly = Nelly::at(words.next().ok_or("usage: network PREFIX [NETWORK]")?)?;
    served(&nelly).await?;
    alone(&nelly).await?;
    if let Some(network) = words.next() {
        named(&nelly, network.to_str().ok_or("the name of a network")?).await?;
    }
    refused(&nelly).await
}

/// A server in a machine whose guest reaches one address alone, with a prefix of its own.
async fn served(nelly: &Nelly) -> Result<(), Box<dyn Error>> {
    let described = nelly.sandbox("builtin:busybox").command(["sh", "-c", SERVER]).memory(256 << 20);
    let sandbox = described
        .net("user,default=deny,prefix=10.77.0.0/24")
        .allow("192.0.2.1:443")
        .publish("0:80")
        .start()
        .await?;
    let (ports, _) = sandbox.ports().await?;
    assert_eq!(ask(&sandbox, ports[0].publish.bind).await?, "hello\n");
    let address = sandbox.exec(["sh", "-c", "ip -4 -o addr show scope global | grep -o '10.77.0.15/24'"]);
    assert!(address.output().await?.success());

    // A port that comes and goes.
    let added = sandbox.add_port("0:80".parse()?).await?;
    assert_eq!(ask(&sandbox, added.bind).await?, "hello\n");
    assert!(matches!(sandbox.add_port(added).await, Err(NellyError::Port(_))), "it is published already");
    sandbox.remove_port(added).await?;
    assert!(TcpStream::connect(added.bind).await.is_err());

    // What no rule allows is refused, and counted.
    assert!(!sandbox.exec(["nc", "-w", "5", "192.0.2.2", "80"]).output().await?.success());
    let (ports, traffic) = sandbox.ports().await?;
    assert_eq!((ports.len(), ports[0].connections > 0, traffic.denied > 0), (1, true, true));

    // The same server without the network, over vsock.
    let mut stream = sandbox.connect(&RelayAddress::Tcp(80)).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert!(answer.ends_with("hello\n"), "{answer}");
    sandbox.stop(None).await?;
    println!("a server was reached by its ports and by vsock");
    Ok(())
}

/// Asks the server at a published port; until it listens, callers are refused, which the connecting
/// itself says if the refusal comes soon.
async fn ask(sandbox: &Sandbox, at: SocketAddr) -> Result<String, Box<dyn Error>> {
    loop {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(at).await
            && stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.is_ok()
            && stream.read_to_string(&mut answer).await.is_ok()
            && let Some((_, body)) = answer.split_once("\r\n\r\n")
        {
            return Ok(body.to_owned());
        }
        // A round through the guest, in which the server gets on.
        sandbox.exec(["true"]).output().await?;
    }
}

/// No network, which is what is not asked for.
async fn alone(nelly: &Nelly) -> Result<(), Box<dyn Error>> {
    let command = nelly.sandbox("builtin:busybox").command(["sh", "-c", "ls /sys/class/net"]);
    let output = command.memory(256 << 20).output().await?;
    assert_eq!((output.code, &output.stdout[..]), (0, &b"lo\n"[..]));
    println!("a machine was alone");
    Ok(())
}

/// Two machines on a network, one of which is kept; they find each other by name.
async fn named(nelly: &Nelly, network: &str) -> Result<(), Box<dyn Error>> {
    let describe = || nelly.sandbox("builtin:busybox").memory(256 << 20).net(network);
    let server = describe().name("box").network_alias("store").command(["sh", "-c", SERVER]).keep().await?;
    let added = server.add_port("0:80".parse()?).await?;
    assert_eq!(ask(&server, added.bind).await?, "hello\n");
    let client = describe().command(["wget", "-qO-", "http://store/"]).output().await?;
    assert_eq!((client.code, &client.stdout[..]), (0, &b"hello\n"[..]), "{client:?}");
    server.remove_port(added).await?;
    assert!(matches!(server.remove_port(added).await, Err(NellyError::Keeper(_))), "it is gone already");
    server.remove().await?;
    println!("two machines met on {network}");
    Ok(())
}

/// A wrong value names its method, and nothing is started.
async fn refused(nelly: &Nelly) -> Result<(), Box<dyn Error>> {
    let describe = || nelly.sandbox("builtin:busybox").command(["true"]);
    let wrong = describe().net("none").publish("80:80").start().await;
    assert!(matches!(wrong, Err(NellyError::Invalid { what: "publish", .. })), "{wrong:?}");
    let wrong = describe().net("user,prefix=10.0.0.0/31").output().await;
    assert!(matches!(wrong, Err(NellyError::Invalid { what: "net", .. })), "{wrong:?}");
    let missing = describe().net("nosuch").output().await;
    assert!(matches!(missing, Err(NellyError::Machine(_))), "{missing:?}");
    println!("wrong networks were refused");
    Ok(())
}
