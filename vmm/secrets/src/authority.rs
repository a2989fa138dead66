//! The authority of one machine, whose key stays here, and the certificates of hosts that it makes.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The most hosts whose certificates are kept.
const MOST: usize = 64;
/// The only version of HTTP that is spoken.
pub const PROTOCOL: &[u8] = b"http/1.1";

/// An authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The key of every host: it never leaves this process either.
    key: KeyPair,
    provider: Arc<CryptoProvider>,
    made: VecDeque<(String, Arc<ServerConfig>)>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It is not made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// It is of no use for TLS.
    #[error("cannot use a certificate")]
    Use(#[from] rustls::Error),
}

impl Authority {
    /// A new one, which nobody knows yet. It can vouch for these domains and what is below them,
    /// and for nobody else.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn new<'a>(domains: impl IntoIterator<Item = &'a str>) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "Nelly: secrets of this machine");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let permitted = domains.into_iter().map(|name| GeneralSubtree::DnsName(name.to_owned())).collect();
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() });
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        let provider = Arc::new(ring::default_provider());
        Ok(Self { issuer, key: KeyPair::generate()?, provider, made: VecDeque::new() })
    }

    /// Its certificate, as a text.
    #[must_use]
    pub fn pem(&self) -> String {
        let text = STANDARD.encode(self.issuer.der());
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// What TLS with a guest needs that wants to speak with `name`, and with nobody else.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn server(&mut self, name: &str) -> Result<Arc<ServerConfig>, AuthorityError> {
        if let Some((_, config)) = self.made.iter().find(|(made, _)| made == name) {
            return Ok(Arc::clone(config));
        }
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "Nelly");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.key, &self.issuer)?;
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let key = self.provider.key_provider.load_private_key(key.into())?;
        let certified = Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key));
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::new(For { name: name.to_owned(), certified }));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Nothing is kept of a connection that has ended.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        if self.made.len() >= MOST {
            self.made.pop_front();
        }
        self.made.push_back((name.to_owned(), Arc::clone(&config)));
        Ok(config)
    }
}

/// The certificate of one host, for whoever asks for that host by its name.
#[derive(Debug)]
struct For {
    name: String,
    certified: Arc<CertifiedKey>,
}

impl ResolvesServerCert for For {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name()?;
        let asked = asked.strip_suffix('.').unwrap_or(asked);
        asked.eq_ignore_ascii_case(&self.name).then(|| Arc::clone(&self.certified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_and_bounded() {
        let mut authority = Authority::new(["example"]).unwrap();
        let first = authority.server("n0.example").unwrap();
        assert!(Arc::ptr_eq(&first, &authority.server("n0.example").unwrap()));
        for number in 1..=MOST {
            authority.server(&format!("n{number}.example")).unwrap();
        }
        assert_eq!(authority.made.len(), MOST);
        assert!(!Arc::ptr_eq(&first, &authority.server("n0.example").unwrap()));
        let pem = authority.pem();
        assert!(pem.lines().all(|line| line.len() <= 64) && pem.ends_with("-----END CERTIFICATE-----\n"));
        assert_ne!(pem, Authority::new(["example"]).unwrap().pem());
    }
}
