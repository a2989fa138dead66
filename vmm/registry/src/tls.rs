//! Whom to trust: certificates of authorities.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::error::RegistryError;
use crate::options::Environment;

/// Where distributions have their bundles.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where docker and podman look for certificates of one registry.
const DIRECTORIES: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];
/// Most bytes of one file.
const MOST: u64 = 16 << 20;

/// The authorities that the host trusts: of `$SSL_CERT_FILE`, else of the system's bundle.
pub(crate) fn system(environment: &Environment) -> Result<Vec<Certificate<'static>>, RegistryError> {
    if let Some(path) = environment.path("SSL_CERT_FILE") {
        return read(&path);
    }
    BUNDLES.iter().map(Path::new).find(|path| path.exists()).map_or(Ok(Vec::new()), read)
}

/// Further authorities for the registry `host`, of a configured file and of docker's directories.
pub(crate) fn of_host(host: &str, ca: Option<&Path>) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let mut found = ca.map_or(Ok(Vec::new()), read)?;
    found.extend(in_directories(host, &DIRECTORIES.map(Path::new))?);
    Ok(found)
}

fn in_directories(host: &str, all: &[&Path]) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let mut found = Vec::new();
    for directory in all.iter().map(|directory| directory.join(host)) {
        let Ok(entries) = directory.read_dir() else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
        paths.sort();
        for path in paths {
            found.extend(read(&path)?);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let unusable = |problem: String| RegistryError::Credentials { path: path.to_owned(), problem };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST).read_to_end(&mut bytes))
        .map_err(|error: io::Error| unusable(error.to_string()))?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

/// TLS that trusts `authorities`.
pub(crate) fn config(authorities: Vec<Certificate<'static>>) -> TlsConfig {
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(authorities)))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing looks into what stands there before a connection does.
    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn directories_of_a_registry_have_its_authorities() {
        let work = tempfile::tempdir().unwrap();
        let (docker, podman) = (work.path().join("docker"), work.path().join("podman"));
        let write = |directory: &Path, name: &str, text: &str| {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join(name), text).unwrap();
        };
        let count = |host: &str| in_directories(host, &[&docker, &podman]).map(|found| found.len());
        assert_eq!(count("registry:5000").unwrap(), 0);
        write(&docker.join("registry:5000"), "ca.crt", &PEM.repeat(2));
        write(&docker.join("registry:5000"), "client.key", "a key");
        write(&docker.join("registry:5000"), "client.cert", "what docker shows to the registry");
        write(&podman.join("registry:5000"), "other.crt", PEM);
        write(&podman.join("other"), "ca.crt", "nothing");
        assert_eq!(count("registry:5000").unwrap(), 3);
        assert_eq!(count("registry").unwrap(), 0, "another port is another registry");
        let error = count("other").unwrap_err().to_string();
        assert!(error.contains("other/ca.crt") && error.contains("no certificate"), "{error}");
    }
}
