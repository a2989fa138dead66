//! The user-mode network of a sandbox that is kept: its state is written down, its end is told at
//! once, and its ports come and go.

use std::sync::Arc;

use nelly_net::config::Publish;
use nelly_protocol::sandbox::messages as m;
use tokio::task::JoinHandle;
use ttrpc::Code;

use super::Keeper;
use super::service::status;
use crate::instance::Sandbox;
use crate::network::{PortError, Usernet};
use crate::state::Timestamp;
use crate::state::record::{NetworkDown, NetworkState};

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
            let Some(sandbox) = sandbox.upgrade() else { return };
            let Some(reason) = sandbox.usernet().and_then(|usernet| usernet.collect(&words)) else { return };
            drop(sandbox);
            let down = Some(NetworkDown { since: Timestamp::now(), reason });
            keeper.change(|state| {
                if let Some(network) = &mut state.network {
                    network.down = down;
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
        PortError::Listen(_) => Code::FAILED_PRECONDITION,
        PortError::Holder(_) => Code::INTERNAL,
    };
    status(code, nelly_vmm::text::chain(error))
}

/// Does something that waits for the network, on a thread of its own, of which there is one.
async fn waits<T: Send + 'static>(
    sandbox: Arc<Sandbox>,
    work: impl FnOnce(&Usernet) -> ttrpc::Result<T> + Send + 'static,
) -> ttrpc::Result<T> {
    let turn = usernet(&sandbox)?.turn().await;
    let done = tokio::task::spawn_blocking(move || {
        // Held until the end, also where nobody waits for it any more.
        let _turn = turn;
        work(usernet(&sandbox)?)
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
    let done = waits(Arc::clone(&sandbox), move |usernet| {
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
    waits(sandbox, move |usernet| {
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
