//! Ports that are published while the network runs. The socket is made here, by whoever holds the
//! machine: its process can look who has a port that is taken, and may have rights that the
//! network has given up.

use nelly_net::config::Publish;
use nelly_net::control::{Port, Traffic};
use nelly_net::holder::HolderError;
use nelly_net::shell::{ListenError, bind};

use super::{Usernet, held};

/// Why a port is not published, or still is.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The network has it already.
    #[error("{0} is published already")]
    Equal(Publish),
    /// The network has it not.
    #[error("{0} is not published{1}")]
    None(Publish, String),
    /// Port 0 is none to remove.
    #[error("{0}: name the port of this host that is to be removed, not 0")]
    Zero(Publish),
    /// The host refuses it.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The network refuses it, or cannot be asked.
    #[error(transparent)]
    Holder(#[from] HolderError),
}

impl Usernet {
    /// Publishes a port; port 0 is a free one. Gives where it listens. May wait for some seconds.
    ///
    /// # Errors
    /// See [`PortError`].
    pub fn add_port(&self, publish: Publish) -> Result<Publish, PortError> {
        if publish.bind.port() != 0
            && let Some(equal) = self.find(&publish)
        {
            return Err(PortError::Equal(equal));
        }
        let bound = bind(publish)?;
        let publish = bound.publish;
        if let Err(error) = self.holder.add(bound) {
            if matches!(error, HolderError::Silent(_) | HolderError::Garbled(_)) {
                // What it may do later is to be undone after that, whether it answers or not.
                let _ = self.holder.remove(publish);
            }
            return Err(error.into());
        }
        self.change(|published| published.push(publish.to_string()));
        Ok(publish)
    }

    /// Publishes a port no more. Its connections go on. May wait for some seconds.
    ///
    /// # Errors
    /// See [`PortError`].
    pub fn remove_port(&self, publish: Publish) -> Result<(), PortError> {
        if publish.bind.port() == 0 {
            return Err(PortError::Zero(publish));
        }
        match self.find(&publish) {
            Some(found) if found == publish => {}
            Some(found) => {
                return Err(PortError::None(publish, format!(": this port leads to {}", found.guest)));
            }
            None => return Err(PortError::None(publish, String::new())),
        }
        match self.holder.remove(publish) {
            // It refuses what it has not: an earlier request was done after nobody waited for it.
            Ok(()) | Err(HolderError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.change(|published| published.retain(|port| *port != publish.to_string()));
        Ok(())
    }

    /// Its ports, and what it counted. May wait for some seconds.
    ///
    /// # Errors
    /// See [`HolderError`].
    pub fn ports(&self) -> Result<(Vec<Port>, Traffic), HolderError> {
        self.holder.list()
    }

    /// The port that is published at this port of the host.
    fn find(&self, publish: &Publish) -> Option<Publish> {
        let published = self.published();
        let mut ports = published.iter().filter_map(|port| port.parse::<Publish>().ok());
        ports.find(|port| (port.bind, port.protocol) == (publish.bind, publish.protocol))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<String>)) {
        if let Some(ready) = held(&self.ready).as_mut() {
            change(&mut ready.published);
        }
    }
}
