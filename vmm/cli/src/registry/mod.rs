//! `nelly image pull` and `push`, `login` and `logout`.

pub(crate) mod args;
mod bars;
mod login;
mod password;
mod transfer;

pub(crate) use login::{login, logout};
pub(crate) use transfer::{client, options, pull, pull_for_run, push};
