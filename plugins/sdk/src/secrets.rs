//! Secrets that the user lends for requests. A plugin never sees one: it puts a placeholder into a header or a query parameter, and the host
//! puts the value in its place if the request goes to a server that the secret was granted for.

/// The placeholder of a secret that the plugin's `needs` name. It is another one each time the host starts.
///
/// # Errors
/// How the user can grant the secret. The words are for people.
pub fn placeholder(name: &str) -> Result<String, String> {
    #[cfg(target_arch = "wasm32")]
    return crate::bindings::trainer::http::secrets::placeholder(name);
    // Natively, as in a plugin's tests, there is no host.
    #[cfg(not(target_arch = "wasm32"))]
    Err(format!("there is no host that could lend the secret {name}"))
}
