//! The client with Debian's docker-registry.

use std::os::unix::fs::PermissionsExt;

use crate::common::{RealOptions, RealRegistry, bytes, client, options, options_with, place};
use nelly_image::Digest;
use nelly_registry::{Client, Credentials, HostOptions, RegistryError};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &[u8] = b"{}";

/// Pushes an image of one layer; its manifest and the layer.
fn push(client: &Client, host: &str) -> (Vec<u8>, Vec<u8>) {
    let place = place(host);
    let layer = bytes(3 << 20);
    for blob in [EMPTY, &layer] {
        let digest = Digest::sha256(blob);
        assert!(!client.has_blob(&place, &digest).unwrap());
        client.upload_blob(&place, &digest, blob.len() as u64, &mut || Some(blob)).unwrap();
        assert!(client.has_blob(&place, &digest).unwrap());
    }
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":{}}}]}}"#,
        Digest::sha256(EMPTY),
        EMPTY.len(),
        Digest::sha256(&layer),
        layer.len()
    );
    client.put_manifest(&place, "1.0", MANIFEST, manifest.as_bytes()).unwrap();
    (manifest.into_bytes(), layer)
}

/// Pulls it again, in two parts.
fn pull(client: &Client, host: &str, (manifest, layer): &(Vec<u8>, Vec<u8>)) {
    let place = place(host);
    let found = client.manifest(&place, "1.0").unwrap();
    assert_eq!((&found.bytes, &found.media_type[..]), (manifest, MANIFEST));
    let by_digest = client.manifest(&place, &found.digest.to_string()).unwrap();
    assert_eq!(by_digest, found);
    let (digest, size) = (Digest::sha256(layer), layer.len() as u64);
    let mut came: Vec<u8> = Vec::new();
    let stopped = client.blob(&place, &digest, size, 0, &mut |bytes| {
        came.extend(bytes);
        came.len() < 1 << 20
    });
    assert!(matches!(stopped, Err(RegistryError::Cancelled)), "{stopped:?}");
    assert!(came.len() < layer.len());
    let offset = came.len() as u64;
    let mut sink = |bytes: &[u8]| {
        came.extend(bytes);
        true
    };
    client.blob(&place, &digest, size, offset, &mut sink).unwrap();
    assert_eq!(&came, layer);
}

#[test]
fn an_image_goes_to_a_plain_registry_and_comes_back() {
    let mut registry = RealRegistry::start(&RealOptions::default());
    let client = client(options());
    let image = push(&client, &registry.host);
    pull(&client, &registry.host, &image);
    let place = place(&registry.host);
    let gone = client.manifest(&place, "2.0").unwrap_err();
    assert!(matches!(gone, RegistryError::NotFound { .. }), "{gone:?}");
    assert!(gone.to_string().contains("test/app:2.0"), "{gone}");
    // Nobody asked for a login, and none was looked at.
    let nobody = Credentials::Basic { user: "user".into(), password: "x".into() };
    assert!(!client.check_login(&registry.host, &nobody).unwrap());
    registry.stop();
    let down = client.manifest(&place, "1.0").unwrap_err();
    assert!(matches!(down, RegistryError::Connect { .. }), "{down:?}");
    assert!(down.to_string().contains(&registry.host), "{down}");
}

#[test]
fn a_password_comes_from_login_or_from_a_helper() {
    let registry = RealRegistry::start(&RealOptions { auth: true, ..RealOptions::default() });
    let directory = tempfile::tempdir().unwrap();
    let auth = directory.path().join("auth.json");
    let anonymous = client(options_with(&auth));
    let denied = anonymous.manifest(&place(&registry.host), "1.0").unwrap_err();
    assert!(matches!(denied, RegistryError::Denied { .. }), "{denied:?}");
    assert!(denied.to_string().contains(&format!("nelly login {}", registry.host)), "{denied}");
    let credentials = |password: &str| Credentials::Basic { user: "user".into(), password: password.into() };
    let wrong = anonymous.check_login(&registry.host, &credentials("wrong")).unwrap_err();
    assert!(matches!(wrong, RegistryError::Denied { .. }), "{wrong:?}");
    assert!(anonymous.check_login(&registry.host, &credentials("secret")).unwrap());

    anonymous.credentials().login(&registry.host, "user", "secret").unwrap();
    let logged_in = client(options_with(&auth));
    let image = push(&logged_in, &registry.host);
    pull(&logged_in, &registry.host, &image);
    anonymous.credentials().logout(&registry.host).unwrap();
    assert!(client(options_with(&auth)).manifest(&place(&registry.host), "1.0").is_err());

    let helper = directory.path().join("docker-credential-nelly-test");
    std::fs::write(&helper, "#!/bin/sh\necho '{\"Username\":\"user\",\"Secret\":\"secret\"}'\n").unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!("{{\"credHelpers\":{{\"{}\":\"nelly-test\"}}}}", registry.host);
    std::fs::write(&auth, config).unwrap();
    pull(&client(options_with(&auth)), &registry.host, &image);
}

#[test]
fn a_certificate_of_an_own_authority_is_trusted_when_it_is_named() {
    let registry = RealRegistry::start(&RealOptions { tls: true, ..RealOptions::default() });
    let distrusted = client(options()).manifest(&place(&registry.host), "1.0").unwrap_err();
    assert!(matches!(distrusted, RegistryError::Connect { .. }), "{distrusted:?}");
    assert!(distrusted.to_string().contains("not trusted"), "{distrusted}");
    let mut trusting = options();
    let host = HostOptions { ca: Some(registry.ca()), ..HostOptions::default() };
    trusting.hosts.insert(registry.host.clone(), host);
    let trusting = client(trusting);
    let image = push(&trusting, &registry.host);
    pull(&trusting, &registry.host, &image);
}
