//! The host's routes, of systems that are not asked for them.

use std::net::IpAddr;

/// The host's routes.
#[derive(Debug)]
pub struct Routes(());

impl Routes {
    /// None are known.
    #[must_use]
    pub fn open() -> Self {
        Self(())
    }

    /// `false`: the system does not say. The addresses of the host's interfaces are known besides.
    #[expect(clippy::unused_self, reason = "as on Linux")]
    pub fn is_own(&mut self, _: IpAddr) -> bool {
        false
    }
}
