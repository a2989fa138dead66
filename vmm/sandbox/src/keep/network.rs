//! The user-mode network of a sandbox that is kept: its state is written down, its end is told at
//! once, and its ports come and go.

use std::sync::{Arc, Weak};
use std::time::Duration;

use nelly_net::config::Publish;
use nelly_net::holder::HolderError;
use nelly_protocol::sandbox::messages as m;
use tokio::task::JoinHandle;
use ttrpc::Code;

use super::Keeper;
use super::service::status;
use crate::instance::Sandbox;
use crate::network::{PortError, Usernet};
use crate::state::Timestamp;
use crate::state::record::{NetworkDown, NetworkState};

/// How long a machine may live on after its network ended in order, which it does by the end of its
/// link: with the machine, as a rule.
const WITH_MACHINE: Duration = Duration::from_secs(5);

/// A watch, which ends when it is dropped.
pub(super) struct Watched(JoinHandle<()>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The state of a network that serves.
pub(super) fn state(sandbox: &Sandbox) -> Option<NetworkState> {
    let usernet = sandbox.usernet()?;
    Some(NetworkState { published: usernet.published(), down: None })
}

impl Keeper {
    /// Watches the network of a machine whose container runs: when its process ends before the
    /// machine, it is collected at once, and that is written down.
    pub(super) fn watch_network(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<Watched> {
        // Without a descriptor it goes on unwatched, and `inspect` tells.
        let silence = sandbox.usernet()?.silence().ok()?;
        let keeper = Arc::clone(self);
        // Whoever ends the sandbox is to be the last who holds it.
        let sandbox = Arc::downgrade(sandbox);
        Some(Watched(tokio::spawn(async move {
            let words = silence.await;
            let Some(down) = down(sandbox, |sandbox| sandbox.usernet(), &words, WITH_MACHINE).await else {
                return;
            };
            keeper.change(|state| {
                if let Some(network) = &mut state.network {
                    network.down = Some(down);
                }
            });
        })))
    }

    /// Writes down which ports a network has now, unless its sandbox is another's already.
    fn note_ports(&self, sandbox: &Arc<Sandbox>) {
        let Some(usernet) = sandbox.usernet() else { return };
        if !self.sandbox().as_ref().is_some_and(|now| Arc::ptr_eq(now, sandbox)) {
            return;
        }
        self.change(|state| {
            if let Some(network) = &mut state.network {
                network.published = usernet.published();
            }
        });
    }
}

/// The network that is asked for, while it serves.
fn usernet(sandbox: &Sandbox) -> ttrpc::Result<&Usernet> {
    let usernet = sandbox.usernet().ok_or_else(|| {
        let message = "the sandbox has no user-mode network, which alone publishes ports (--net user)";
        status(Code::FAILED_PRECONDITION, message)
    })?;
    serves(usernet)
}

/// A network, unless it has ended.
fn serves(usernet: &Usernet) -> ttrpc::Result<&Usernet> {
    match usernet.reason() {
        None => Ok(usernet),
        Some(reason) => {
            let message =
                format!("the network of the sandbox is down ({reason}); `nelly restart` makes it anew");
            Err(status(Code::FAILED_PRECONDITION, message))
        }
    }
}

fn refused(error: &PortError) -> ttrpc::Error {
    let code = match error {
        PortError::Equal(_) => Code::ALREADY_EXISTS,
        PortError::None(..) => Code::NOT_FOUND,
        PortError::Zero(_) => Code::INVALID_ARGUMENT,
        // The host or the network is not in the state for it.
        PortError::Listen(_) | PortError::Holder(HolderError::Gone | HolderError::Refused(_)) => {
            Code::FAILED_PRECONDITION
        }
        PortError::Holder(HolderError::Silent(_)) => Code::DEADLINE_EXCEEDED,
        PortError::Holder(HolderError::Garbled(_) | HolderError::System(_)) => Code::INTERNAL,
    };
    status(code, nelly_vmm::text::chain(error))
}

/// The end of a network that has said its last `words`; `None`: whoever holds it has ended, too.
/// One that ended in order is let be for the time `with_machine`: whoever waits for this gives up
/// when the machine ends.
async fn down<H>(
    held: Weak<H>,
    network: fn(&H) -> Option<&Usernet>,
    words: &str,
    with_machine: Duration,
) -> Option<NetworkDown> {
    let gone = network(&*held.upgrade()?)?.collect(words);
    gone.await;
    let (reason, in_order) = {
        let held = held.upgrade()?;
        let usernet = network(&held)?;
        (usernet.reason()?, usernet.ended()?.success())
    };
    let since = Timestamp::now();
    if in_order {
        tokio::time::sleep(with_machine).await;
        held.upgrade()?;
    }
    Some(NetworkDown { since, reason })
}

/// Does something that waits for the network of whoever is `held`, on a thread of its own, of which
/// there is one.
async fn waits<H: Send + Sync + 'static, T: Send + 'static>(
    held: Arc<H>,
    network: fn(&H) -> ttrpc::Result<&Usernet>,
    work: impl FnOnce(&Usernet) -> ttrpc::Result<T> + Send + 'static,
) -> ttrpc::Result<T> {
    let turn = network(&held)?.turn().await;
    let done = tokio::task::spawn_blocking(move || {
        // Held until the end, also where nobody waits for it any more.
        let _turn = turn;
        work(network(&held)?)
    });
    let done = done.await;
    done.unwrap_or_else(|error| Err(status(Code::INTERNAL, error.to_string())))
}

/// Adds a port, or removes one.
pub(super) async fn change(
    keeper: Arc<Keeper>,
    sandbox: Arc<Sandbox>,
    port: String,
    add: bool,
) -> ttrpc::Result<m::PortResponse> {
    let publish: Publish = port.parse().map_err(|why: String| status(Code::INVALID_ARGUMENT, why))?;
    let done = waits(Arc::clone(&sandbox), usernet, move |usernet| {
        let done =
            if add { usernet.add_port(publish) } else { usernet.remove_port(publish).map(|()| publish) };
        done.map_err(|error| refused(&error))
    });
    let publish = done.await?;
    // Here, for the state has one writer.
    keeper.note_ports(&sandbox);
    Ok(m::PortResponse { published: publish.to_string(), ..Default::default() })
}

/// Tells of the ports, and of what was counted.
pub(super) async fn ports(sandbox: Arc<Sandbox>) -> ttrpc::Result<m::PortsResponse> {
    waits(sandbox, usernet, move |usernet| {
        let (ports, traffic) = usernet.ports().map_err(|error| refused(&error.into()))?;
        let port = |one: nelly_net::control::Port| m::PortState {
            published: one.publish.to_string(),
            connections: one.connections,
            refused: one.refused,
            ..Default::default()
        };
        Ok(m::PortsResponse {
            ports: ports.into_iter().map(port).collect(),
            allowed: traffic.allowed,
            denied: traffic.denied,
            names_allowed: traffic.names_allowed,
            names_denied: traffic.names_denied,
            ..Default::default()
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nelly_net::control::{Answer, MAX_MESSAGE, Outcome, Page, Request};
    use rustix::net::{RecvFlags, SendFlags, recv, send};

    use super::*;
    use crate::network::tests::played;

    /// Longer than any test.
    const LONG: Duration = Duration::from_secs(600);

    fn own(usernet: &Usernet) -> Option<&Usernet> {
        Some(usernet)
    }

    fn network(then: &str, patience: Duration) -> (Arc<Usernet>, OwnedFd, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let (usernet, other) = played(directory.path(), then, patience);
        (Arc::new(usernet), other, directory)
    }

    #[tokio::test]
    async fn a_network_that_ends_is_down_and_collected() {
        for (then, with_machine, reason) in [
            ("exit 3", LONG, "exit status: 3"),
            ("echo 'nelly-usernet: ended: ptrace' >&2; exit 159", LONG, "ended: ptrace"),
            // In order, and the machine lives on.
            ("exit 0", Duration::ZERO, "exit status: 0"),
            ("exec 2>/dev/null <&- ; kill -STOP $$", LONG, "signal: 9 (SIGKILL)"),
        ] {
            let (usernet, _other, _directory) = network(then, LONG);
            let words = usernet.silence().unwrap().await;
            let down = down(Arc::downgrade(&usernet), own, &words, with_machine).await.unwrap();
            assert_eq!(down.reason, reason, "{then}");
            assert!(!Path::new(&format!("/proc/{}", usernet.process())).exists(), "a zombie: {then}");
        }
    }

    #[tokio::test]
    async fn one_that_ends_with_its_machine_is_not_down() {
        // Whoever watches is ended with the machine, and hears nothing before.
        let (usernet, _other, _directory) = network("exit 0", LONG);
        let words = usernet.silence().unwrap().await;
        let mut watch = Box::pin(down(Arc::downgrade(&usernet), own, &words, LONG));
        while usernet.ended().is_none() {
            assert!(futures_poll(&mut watch).await.is_none(), "it was told");
            tokio::task::yield_now().await;
        }
        assert!(futures_poll(&mut watch).await.is_none(), "it was told");
        // The machine is let go before the watch.
        let weak = Arc::downgrade(&usernet);
        drop(usernet);
        assert!(down(weak, own, "", Duration::ZERO).await.is_none());
    }

    /// What a future gives at once, if it does.
    async fn futures_poll<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match future.as_mut().poll(context) {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn one_thread_waits_for_a_network_that_does_not_answer() {
        static WAITING: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let (usernet, _other, _directory) = network("read nothing; kill -STOP $$", Duration::from_millis(20));
        let ask = || {
            waits(Arc::clone(&usernet), serves, |usernet| {
                MOST.fetch_max(WAITING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let listed = usernet.ports();
                WAITING.fetch_sub(1, Ordering::SeqCst);
                listed.map_err(|error| refused(&error.into()))
            })
        };
        let calls: Vec<_> = (0..12).map(|_| tokio::spawn(ask())).collect();
        for (at, call) in calls.into_iter().enumerate() {
            if at % 2 == 0 {
                // Its client is gone; its thread, if it has one, goes on.
                call.abort();
                continue;
            }
            let ttrpc::Error::RpcStatus(status) = call.await.unwrap().unwrap_err() else {
                panic!("a status")
            };
            assert_eq!(status.code(), Code::DEADLINE_EXCEEDED);
        }
        assert_eq!(MOST.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn each_refusal_has_the_code_of_the_protocol() {
        let (usernet, other, _directory) = network("read nothing; kill -STOP $$", LONG);
        let publish: Publish = "127.0.0.1:1:80".parse().unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; MAX_MESSAGE];
            let mut outcomes =
                [Outcome::Refused("there are 1024 ports".to_owned()), Outcome::Page(Page::default())]
                    .into_iter();
            while let Ok((len @ 1.., _)) = recv(&other, &mut *buffer, RecvFlags::empty()) {
                let id = Request::parse(&buffer[..len]).unwrap().id;
                let Some(outcome) = outcomes.next() else { return };
                send(&other, &Answer { id, outcome }.to_bytes(), SendFlags::NOSIGNAL).unwrap();
            }
        });
        let listens = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = format!("{}:80", listens.local_addr().unwrap().port());
        for (text, add, code) in [
            ("1:80", true, Code::ALREADY_EXISTS),
            ("2:80", false, Code::NOT_FOUND),
            ("0:80", false, Code::INVALID_ARGUMENT),
            (taken.as_str(), true, Code::FAILED_PRECONDITION),
            // The network refuses it.
            ("0:80", true, Code::FAILED_PRECONDITION),
            // An answer to another question, after which the port is taken back; then it is gone.
            ("0:80", true, Code::INTERNAL),
            ("0:80", true, Code::FAILED_PRECONDITION),
        ] {
            let port: Publish = text.parse().unwrap();
            let done = waits(Arc::clone(&usernet), serves, move |usernet| {
                let done = if add { usernet.add_port(port).map(drop) } else { usernet.remove_port(port) };
                done.map_err(|error| refused(&error))
            });
            let ttrpc::Error::RpcStatus(status) = done.await.unwrap_err() else { panic!("a status") };
            assert_eq!(status.code(), code, "{text}: {}", status.message());
        }
        assert_eq!(usernet.published(), [publish.to_string()]);
    }
}
