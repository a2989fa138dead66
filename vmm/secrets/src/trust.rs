//! Which certificates of hosts are believed.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::client::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{RootCertStore, pki_types};

use crate::authority::PROTOCOL;

/// Where distributions have the authorities that this host trusts.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Most bytes of one file.
const MOST: u64 = 16 << 20;

/// Reads the authorities of this host; none where it has none.
///
/// # Errors
/// The file that cannot be read.
pub fn of_host() -> Result<Vec<u8>, String> {
    let Some(path) = BUNDLES.iter().map(Path::new).find(|path| path.exists()) else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// TLS with hosts whose certificates these authorities vouch for: those of this host, of which some
/// may be of no use, and `own`, all of which must be.
///
/// # Errors
/// There is no certificate in one of `own`, or in all of them.
pub fn client(of_host: &[u8], own: &[String]) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(of_host).filter_map(Result::ok);
    roots.add_parsable_certificates(certificates);
    for text in own {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let certificate =
                certificate.map_err(|error: pki_types::pem::Error| format!("--secret-ca: {error}"))?;
            roots.add(certificate).map_err(|error| format!("--secret-ca: {error}"))?;
        }
        if roots.len() == before {
            return Err("--secret-ca: it holds no certificate in PEM form".to_owned());
        }
    }
    if roots.is_empty() {
        return Err(
            "this host has no certificates of authorities to check those of hosts with; install the \
                    package ca-certificates, or name a file with --secret-ca"
                .to_owned(),
        );
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    #[test]
    fn authorities_of_ones_own_must_be_some() {
        let pem = Authority::new(["example"]).unwrap().pem();
        assert!(client(b"", std::slice::from_ref(&pem)).is_ok());
        assert!(client(pem.as_bytes(), &[]).is_ok());
        let words = |of_host: &[u8], own: &str| client(of_host, &[own.to_owned()]).err().unwrap_or_default();
        assert!(words(b"", "no PEM").contains("holds no certificate"));
        let broken = pem.replace("MII", "AAA");
        assert!(words(b"", &broken).contains("--secret-ca"), "{}", words(b"", &broken));
        assert!(client(b"", &[]).err().unwrap_or_default().contains("ca-certificates"));
    }
}
