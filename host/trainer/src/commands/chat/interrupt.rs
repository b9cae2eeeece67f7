//! Ctrl-C in a conversation: it stops the answer, and the program only where there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const WANTED: u8 = 2;

/// What Ctrl-C means now.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicU8>);

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// The system does not let it.
    pub fn listen() -> Result<Self> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let seen = state.clone();
        // The second one during an answer, and any other, ends the program: nothing is lost that was not said.
        ctrlc::set_handler(move || {
            if seen.compare_exchange(ANSWERING, WANTED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                std::process::exit(130);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self(state))
    }

    /// An answer begins or has ended.
    pub fn answering(&self, on: bool) {
        self.0.store(if on { ANSWERING } else { IDLE }, Ordering::SeqCst);
    }

    /// Whether the answer is to stop.
    pub fn wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst) == WANTED
    }
}
