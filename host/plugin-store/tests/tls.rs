//! Plugins over TLS: only from servers whose certificate is good.

mod common;
#[path = "common/round_trip.rs"]
mod round_trip;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use common::registry::{ANY, AUTHORITY, Access, Registry, docker_config};
use common::server::{ReadWrite, Reply, Server, WrapStream};
use common::{User, plugin};
use round_trip::{reference, round_trip};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

/// Speaks TLS with a certificate and its key.
fn tls(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> impl WrapStream + Clone {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap());
    move |mut socket: TcpStream, serve: &dyn Fn(&mut dyn ReadWrite) -> io::Result<()>| {
        let mut connection = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
        serve(&mut Stream::new(&mut connection, &mut socket))?;
        connection.send_close_notify();
        connection.complete_io(&mut socket).map(drop)
    }
}

fn secure(bytes: Vec<u8>) -> Server {
    let certificate = CertificateDer::from(include_bytes!("tls/localhost.der").as_slice());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(include_bytes!("tls/localhost.key.der").as_slice()));
    let handle = move |request: &common::server::Request| match request.path.as_str() {
        "/mine.wasm" => Reply::ok(bytes.clone()),
        "/down.wasm" => Reply::new(302).with("location", "http://127.0.0.1:9/mine.wasm"),
        _ => Reply::new(404),
    };
    Server::wrapped(handle, tls(certificate, key))
}

fn secure_registry(access: Access) -> Registry {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/registry.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/registry.key.pem")).unwrap();
    Registry::wrapped(access, ANY, "https", tls(certificate, key))
}

#[test]
fn there_and_back_with_a_registry() {
    for access in [Access::Everybody, Access::Basic, Access::Token] {
        let registry = secure_registry(access);
        round_trip(&registry.name(), access, Some(AUTHORITY));
        assert!(registry.store.requests().iter().all(|r| !r.headers.contains_key("authorization")));
    }
}

#[test]
fn a_registry_that_nobody_vouches_for_is_told_nothing() {
    let registry = secure_registry(Access::Basic);
    let place = format!("oci://{}/a/mine:1.0.0", registry.name());
    // Neither the built-in authorities nor another one of the user's.
    for authorities in [None, Some(include_str!("tls/ca.pem"))] {
        let user = User::trusting(authorities);
        user.write("docker/config.json", docker_config(&registry.name()));
        let file = user.write("mine.wasm", plugin("mine", "1.0.0"));
        let pushed = user.manager().push(file.to_str().unwrap(), &reference(&place), None).unwrap_err().to_string();
        for error in [user.refused(&place), pushed] {
            let server = format!("no answer from https://{}", registry.name());
            assert!(error.starts_with(&server) && error.contains("certificate") && error.contains("SSL_CERT_FILE"), "{error}");
        }
        user.assert_empty();
    }
    assert_eq!(registry.server.requests().len(), 0);
    // A good certificate of another address.
    let other = secure(Vec::new());
    let user = User::trusting(Some(include_str!("tls/ca.pem")));
    let error = user.refused(&format!("oci://{ANY}:{}/a/mine:1.0.0", other.address.port()));
    assert!(error.contains("certificate not valid for name \"0.0.0.0\"") && !error.contains("SSL_CERT_FILE"), "{error}");
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn the_certificate_decides() {
    let server = secure(plugin("mine", "1.0.0"));
    let port = server.address.port();
    let mut user = User::new();
    // Nobody has vouched for this server.
    let error = user.refused(&format!("https://localhost:{port}/mine.wasm"));
    assert!(error.contains("no answer from https://localhost") && error.contains("SSL_CERT_FILE"), "{error}");
    assert_eq!(server.requests().len(), 0);
    user.assert_empty();
    user.settings.authorities = Some(user.write("ca.pem", include_bytes!("tls/ca.pem")));
    user.add(&format!("https://localhost:{port}/mine.wasm")).unwrap();
    assert_eq!(user.installed(), ["mine 1.0.0"]);
    // The certificate is not that of the address, and what is asked for in private is not fetched in the clear.
    let error = user.refused(&format!("https://127.0.0.1:{port}/mine.wasm"));
    assert!(error.contains("no answer from https://127.0.0.1"), "{error}");
    let error = user.refused(&format!("https://localhost:{port}/down.wasm"));
    assert!(error.contains("redirects to http://127.0.0.1:9, which is not followed"), "{error}");
    user.settings.authorities = Some(user.write("empty.pem", ""));
    assert!(user.refused(&format!("https://localhost:{port}/mine.wasm")).contains("SSL_CERT_FILE: it holds no certificate"));
}
