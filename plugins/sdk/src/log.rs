//! Lines for the host's log.

use crate::bindings::trainer::host::log as host;
pub use host::Level;

/// Writes one line. The host cuts long lines and drops them beyond a count per call.
pub fn write(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    host::write(level, message);
    // Natively, as in a plugin's tests, there is no host.
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Sends a panic's message to the host before the trap, which itself says nothing. Called by the exports; once is enough.
pub(crate) fn install_panic_hook() {
    #[cfg(target_arch = "wasm32")]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| std::panic::set_hook(Box::new(|info| write(Level::Error, &info.to_string()))));
    }
}
