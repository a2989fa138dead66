//! Image registries: a blocking client of the OCI distribution protocol, credentials, and images
//! between registries and the local store.
//!
//! [`pull`] and [`push`] are what most callers want. A [`Client`] fetches manifests and blobs of a
//! [`Place`] and uploads them. It finds credentials where docker and podman keep theirs
//! ([`CredentialStore`]), answers challenges, follows mirrors, proxies and redirects, resumes what
//! was cut and tries again what may work later. Everything that a registry says is untrusted: sizes
//! are bounded, bytes are verified, and credentials go to the registry and its token server alone.
//! [`Client::file`] fetches a file of any other server in the same way.

mod cancel;
mod challenge;
mod client;
mod credentials;
mod endpoint;
mod error;
mod file;
mod http;
mod options;
mod program;
mod proxy;
mod pull;
mod push;
mod resolve;
mod retry;
mod tls;
mod transfer;
mod warnings;

pub use cancel::Cancel;
pub use client::{Client, RawManifest};
pub use credentials::{CredentialStore, Credentials, LoginPlace, Logout};
pub use endpoint::Place;
pub use error::RegistryError;
pub use file::{FileCredentials, FileRequest, FileSink, FileUrl, FileVersion, Had};
pub use options::{Environment, HostOptions, Patience, RegistryOptions};
pub use pull::{Pulled, TransferError, pull};
pub use push::{Pushed, push};
pub use transfer::{Step, Transfer, Unwatched, Watch};
