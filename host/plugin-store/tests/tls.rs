//! Plugins over TLS: only from servers whose certificate is good.

mod common;

use std::sync::Arc;

use common::server::{Reply, Server};
use common::{User, plugin};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

fn secure(bytes: Vec<u8>) -> Server {
    let chain = vec![CertificateDer::from(include_bytes!("tls/localhost.der").as_slice())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(include_bytes!("tls/localhost.key.der").as_slice()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let handle = move |request: &common::server::Request| match request.path.as_str() {
        "/mine.wasm" => Reply::ok(bytes.clone()),
        "/down.wasm" => Reply::new(302).with("location", "http://127.0.0.1:9/mine.wasm"),
        _ => Reply::new(404),
    };
    Server::wrapped(handle, move |mut socket, serve| {
        let mut connection = ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
        serve(&mut Stream::new(&mut connection, &mut socket))?;
        connection.send_close_notify();
        connection.complete_io(&mut socket).map(drop)
    })
}

#[test]
fn the_certificate_decides() {
    let server = secure(plugin("mine", "1.0.0"));
    let port = server.address.port();
    let mut user = User::new();
    // Nobody has vouched for this server.
    let error = user.refused(&format!("https://localhost:{port}/mine.wasm"));
    assert!(error.contains("no answer from https://localhost"), "{error}");
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
