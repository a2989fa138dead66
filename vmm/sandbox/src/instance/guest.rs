//! What a guest is told at its start, and who serves its network.

use crate::network::Usernet;
use crate::spec::network::GuestNetwork;

/// A guest, beside its machine.
#[derive(Debug, Default)]
pub struct Guest {
    /// Its host name.
    pub hostname: String,
    /// Its network, which is set up with the first call of its agent.
    pub network: Option<GuestNetwork>,
    /// The process of its user-mode network, which ends with the sandbox.
    pub usernet: Option<Usernet>,
}

impl From<&str> for Guest {
    /// A guest without a network.
    fn from(hostname: &str) -> Self {
        Self { hostname: hostname.to_owned(), ..Self::default() }
    }
}

impl From<&String> for Guest {
    fn from(hostname: &String) -> Self {
        Self::from(hostname.as_str())
    }
}
