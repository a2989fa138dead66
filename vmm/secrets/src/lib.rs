//! Puts secrets into the requests of a guest that never has them.
//!
//! A program of its own, `nelly-secrets`, stands between the guest and a named host: it ends the
//! guest's TLS with a certificate of an authority that one machine's containers trust, begins TLS
//! with the host, whose certificate it checks, and puts values for placeholders into the heads of
//! requests. It makes no connection: `nelly-usernet` hands it those that the guest began to a named
//! host, when policy has let them out.
//!
//! [`http`] and [`swap`] are pure. [`authority`] makes certificates, [`trust`] says which ones of
//! hosts are believed, [`link`] is one connection, and [`serve`] all of them.

pub mod authority;
pub mod http;
pub mod link;
pub mod serve;
pub mod swap;
pub mod trust;
