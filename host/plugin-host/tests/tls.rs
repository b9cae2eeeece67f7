//! Requests over TLS: the connection goes to the checked address, and the certificate is that of the name.

mod common;
#[path = "common/server.rs"]
mod server;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use common::{compiler, prebuilt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use serde_json::{Value, json};
use server::Names;
use trainer_plugin_host::tools::{Call, Outcome};
use trainer_plugin_host::{Grants, HostOptions, Limits, Network, PluginHost, ToolContext};

const AUTHORITY: &[u8] = include_bytes!("tls/ca.der");

/// A server for `secure.test`; it notes the names that clients ask it for.
fn serve() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let chain = vec![CertificateDer::from(include_bytes!("tls/secure.test.der").as_slice())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(include_bytes!("tls/secure.test.key.der").as_slice()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, names) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let noted = Arc::clone(&names);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = Stream::new(&mut connection, &mut socket);
            // A client that does not trust the server goes away here.
            if stream.read(&mut [0; 8192]).is_ok_and(|n| n > 0) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nsafe").unwrap();
                noted.lock().unwrap().push(connection.server_name().unwrap_or_default().to_owned());
                connection.send_close_notify();
                let _ = connection.complete_io(&mut socket);
            }
        }
    });
    (address, names)
}

fn fetch(name: &str, port: u16, roots: Option<Arc<Vec<Vec<u8>>>>) -> Result<Value, String> {
    let names = Names::new(&[("secure.test", &[&["127.0.0.1"]]), ("other.test", &[&["127.0.0.1"]])]);
    let network = Network { resolver: names, roots };
    let host = PluginHost::new(HostOptions { worker_instances: 1, network, ..HostOptions::new(compiler()) }).unwrap();
    let url = format!("https://{name}:{port}");
    let grants = Grants::parse([format!("http={url}").as_str(), "network=127.0.0.1"], []).unwrap();
    let plugin = host.load_with(&prebuilt("test/evil_tools"), Limits::default(), grants).unwrap();
    let mut session = plugin.tool_session(&ToolContext { settings: json!({}), seed: 1, now_ms: 0 }).unwrap();
    let arguments = json!({ "evil": "fetch", "url": url }).to_string();
    match session.call(&[Call { name: "evil".into(), arguments }]).unwrap().pop().unwrap() {
        Outcome::Ok(json) => Ok(serde_json::from_str(&json).unwrap()),
        Outcome::ToolError(words) => Err(words.replace(&format!(":{port}"), "")),
    }
}

#[test]
fn the_certificate_is_that_of_the_name() {
    let (address, asked) = serve();
    let trusted = || Some(Arc::new(vec![AUTHORITY.to_vec()]));
    let answer = fetch("secure.test", address.port(), trusted()).unwrap();
    assert_eq!(answer["body"], "safe");
    assert_eq!(*asked.lock().unwrap(), ["secure.test"]);
    // Another name at the same address, and an authority that nobody trusts.
    let words = fetch("other.test", address.port(), trusted()).unwrap_err();
    assert!(words.starts_with("unreachable: plugin `evil_tools`: no connection to https://other.test: "), "{words}");
    let words = fetch("secure.test", address.port(), None).unwrap_err();
    assert!(words.starts_with("unreachable: plugin `evil_tools`: no connection to https://secure.test: "), "{words}");
    assert_eq!(asked.lock().unwrap().len(), 1);
}
