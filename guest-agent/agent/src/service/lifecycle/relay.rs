//! Connections between the host and containers.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use nelly_protocol::messages as m;
use tokio::io::Interest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{GuestState, ServiceError};
use crate::registry::{ProcessKey, RegistryError, Status};
use crate::relay::{Address, CONNECTIONS_MOST, Entrance, LISTENERS_MOST, RelayError};
use crate::stdio::{StdioError, Stream, join, lock};
use crate::sys;

/// The ways into containers, and who listens there.
pub(super) struct Relays {
    entrances: Mutex<HashMap<String, Arc<Way>>>,
    listeners: Mutex<Listeners>,
    /// Connections that the host makes, and those that containers make.
    connects: Arc<Semaphore>,
    accepts: Arc<Semaphore>,
}

impl Default for Relays {
    fn default() -> Self {
        let most = || Arc::new(Semaphore::new(CONNECTIONS_MOST));
        Self { entrances: Mutex::default(), listeners: Mutex::default(), connects: most(), accepts: most() }
    }
}

/// The way into one container, and its end.
struct Way {
    entrance: Entrance,
    over: watch::Sender<bool>,
}

#[derive(Default)]
struct Listeners {
    last: u32,
    open: HashMap<u32, Arc<Listener>>,
}

struct Listener {
    socket: Stream,
    way: Arc<Way>,
    tcp: bool,
}

impl GuestState {
    /// Connects to an address of a container. Returns the token of the other end.
    pub(in crate::service) async fn connect(
        self: &Arc<Self>,
        id: &str,
        address: &m::ContainerAddress,
    ) -> Result<Vec<u8>, ServiceError> {
        let address = Address::try_from(address).map_err(RelayError::from)?;
        let way = self.way(id, &[Status::Running])?;
        let permit = Arc::clone(&self.relays.connects).try_acquire_owned();
        let permit =
            permit.map_err(|_| RelayError::TooMany("connections to containers", CONNECTIONS_MOST))?;
        let mut over = way.over.subscribe();
        let made = tokio::select! {
            made = way.entrance.connect(&address) => made,
            _ = over.wait_for(|over| *over) => return Err(ServiceError::Ended),
        };
        let stream = made.map_err(|error| RelayError::Connect(address.clone(), error))?;
        if let Address::Port(_) = address {
            // Only latency is lost without.
            let _ = sys::set_no_delay(stream.as_fd());
        }
        self.promise(stream, permit)
    }

    /// Listens at an address of a container. Returns the listener's number.
    pub(in crate::service) async fn listen(
        self: &Arc<Self>,
        id: &str,
        address: &m::ContainerAddress,
    ) -> Result<u32, ServiceError> {
        let address = Address::try_from(address).map_err(RelayError::from)?;
        let way = self.way(id, &[Status::Created, Status::Starting, Status::Running])?;
        let full = || RelayError::TooMany("listeners in containers", LISTENERS_MOST);
        if lock(&self.relays.listeners).open.len() >= LISTENERS_MOST {
            return Err(full().into());
        }
        let tcp = matches!(address, Address::Port(_));
        let socket = way.entrance.listen(&address).await;
        let socket = socket.map_err(|error| RelayError::Listen(address, error))?;
        let mut listeners = lock(&self.relays.listeners);
        // Others may have come meanwhile, and the container may have ended.
        if listeners.open.len() >= LISTENERS_MOST {
            return Err(full().into());
        }
        if *way.over.borrow() {
            return Err(ServiceError::Ended);
        }
        listeners.last = listeners.last.wrapping_add(1);
        let number = listeners.last;
        listeners.open.insert(number, Arc::new(Listener { socket, way, tcp }));
        Ok(number)
    }

    /// Waits for a connection of a container. Returns the token of the other end.
    pub(in crate::service) async fn accept(self: &Arc<Self>, number: u32) -> Result<Vec<u8>, ServiceError> {
        let missing = || RelayError::NoListener(number);
        let listener = lock(&self.relays.listeners).open.get(&number).cloned().ok_or_else(missing)?;
        let mut over = listener.way.over.subscribe();
        let accept = async {
            let permit = Arc::clone(&self.relays.accepts).acquire_owned().await.map_err(|_| missing())?;
            let socket = listener.socket.accept().await.and_then(|socket| {
                if listener.tcp {
                    let _ = sys::set_no_delay(socket.as_fd());
                }
                Stream::new(socket)
            });
            let failed = |error| ServiceError::Kernel("cannot accept a connection".to_owned(), error);
            self.promise(socket.map_err(failed)?, permit)
        };
        tokio::select! {
            accepted = accept => accepted,
            _ = over.wait_for(|over| *over) => Err(missing().into()),
        }
    }

    /// The host does not connect the stream of this token: its other end is closed.
    pub(in crate::service) fn forget(&self, token: &[u8]) {
        self.promises.forget(token);
    }

    /// Joins a container's end with what the host dials with the token that this returns.
    fn promise(&self, stream: Stream, permit: OwnedSemaphorePermit) -> Result<Vec<u8>, ServiceError> {
        let promised = self.promises.promise().map_err(StdioError::Token)?;
        let token = promised.token();
        tokio::spawn(async move {
            if let Some(host) = promised.stream().await {
                join(stream, host).await;
            }
            drop(permit);
        });
        Ok(token)
    }

    /// The way into a container in one of these states.
    fn way(self: &Arc<Self>, id: &str, states: &[Status]) -> Result<Arc<Way>, ServiceError> {
        self.not_ending()?;
        let first = {
            let registry = self.registry();
            let status = registry.summary(id)?.status;
            if !states.contains(&status) {
                let error = RegistryError::State { id: id.to_owned(), status, wanted: "running" };
                return Err(error.into());
            }
            lock(&registry.process(&ProcessKey::new(id, ""))?.pidfd).clone().ok_or(ServiceError::Ended)?
        };
        let mut ways = lock(&self.relays.entrances);
        if let Some(way) = ways.get(id).filter(|way| Arc::ptr_eq(way.entrance.first(), &first)) {
            return Ok(Arc::clone(way));
        }
        let watched = first.try_clone().and_then(|first| sys::watch(first, Interest::READABLE));
        let watched = watched
            .map_err(|error| ServiceError::Kernel("cannot watch the container's end".to_owned(), error))?;
        let way = Arc::new(Way { entrance: Entrance::new(first), over: watch::Sender::new(false) });
        ways.insert(id.to_owned(), Arc::clone(&way));
        drop(ways);
        let (guest, id, ends) = (Arc::downgrade(self), id.to_owned(), Arc::clone(&way));
        tokio::spawn(async move {
            // An error means that nothing can be heard of it any more.
            let _ended = watched.readable().await;
            ends.over.send_replace(true);
            // Its process holds the container's mounts.
            ends.entrance.close().await;
            let Some(guest) = guest.upgrade() else { return };
            lock(&guest.relays.listeners).open.retain(|_, listener| !Arc::ptr_eq(&listener.way, &ends));
            let mut ways = lock(&guest.relays.entrances);
            if ways.get(&id).is_some_and(|way| Arc::ptr_eq(way, &ends)) {
                ways.remove(&id);
            }
        });
        Ok(way)
    }
}
