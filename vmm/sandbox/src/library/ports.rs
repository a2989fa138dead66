//! Published ports that come and go while a sandbox runs.

use std::sync::Arc;

use nelly_net::config::Publish;
use nelly_net::control::{Port, Traffic};

use super::{Error, blocking};
use crate::connect::Connection;
use crate::instance::Sandbox as Running;
use crate::network::{PortError, Usernet};

/// What a machine without the user-mode network is told.
fn none(what: &'static str) -> Error {
    Error::invalid(what)("the sandbox has no user-mode network, which alone publishes ports".into())
}

/// The network of a machine of this process.
fn usernet<'a>(machine: &'a Running, what: &'static str) -> Result<&'a Usernet, Error> {
    machine.usernet().ok_or_else(|| none(what))
}

/// Does something that waits for the network, in its turn, on a thread for it.
async fn in_turn<T: Send + 'static>(
    machine: &Arc<Running>,
    what: &'static str,
    work: impl FnOnce(&Usernet) -> Result<T, PortError> + Send + 'static,
) -> Result<T, Error> {
    let turn = usernet(machine, what)?.turn().await;
    let machine = Arc::clone(machine);
    blocking(move || {
        // Held until the end, also where nobody waits for it any more.
        let _turn = turn;
        Ok(work(usernet(&machine, what)?)?)
    })
    .await
}

/// A port as the keeper names it.
fn parsed(text: &str) -> Result<Publish, Error> {
    let what = "use what the keeper answers";
    text.parse().map_err(|why: String| Error::host(what)(std::io::Error::other(why)))
}

/// See [`super::Sandbox::add_port`].
pub(super) async fn add(machine: &Arc<Running>, port: Publish) -> Result<Publish, Error> {
    in_turn(machine, "add_port", move |usernet| usernet.add_port(port)).await
}

/// See [`super::Sandbox::remove_port`].
pub(super) async fn remove(machine: &Arc<Running>, port: Publish) -> Result<(), Error> {
    in_turn(machine, "remove_port", move |usernet| usernet.remove_port(port)).await
}

/// See [`super::Sandbox::ports`].
pub(super) async fn list(machine: &Arc<Running>) -> Result<(Vec<Port>, Traffic), Error> {
    in_turn(machine, "ports", |usernet| Ok(usernet.ports()?)).await
}

/// The same of what a keeper holds.
pub(super) async fn add_kept(keeper: &Connection, port: &Publish) -> Result<Publish, Error> {
    parsed(&keeper.add_port(port).await?)
}

/// The same of what a keeper holds.
pub(super) async fn list_kept(keeper: &Connection) -> Result<(Vec<Port>, Traffic), Error> {
    let told = keeper.ports().await?;
    let port = |one: crate::connect::PortState| {
        let publish = parsed(&one.published)?;
        Ok(Port { publish, connections: one.connections, refused: one.refused })
    };
    let traffic = Traffic {
        allowed: told.allowed,
        denied: told.denied,
        names_allowed: told.names_allowed,
        names_denied: told.names_denied,
    };
    Ok((told.ports.into_iter().map(port).collect::<Result<_, Error>>()?, traffic))
}
