//! Tools that the server executes itself: those of its plugins, offered with every chat.

use std::sync::Arc;

use tokio::sync::Semaphore;
use trainer_tools::Toolbox;

/// Calls that are executed at the same time; each may wait for a network.
pub const MOST_RUNNING: usize = 16;

/// What the server executes; nothing by default.
pub struct ServerTools {
    toolbox: Option<Arc<Toolbox>>,
    /// Their definitions, and their names in the same order.
    offer: Vec<String>,
    names: Vec<String>,
    /// Places of calls that are being executed.
    pub places: Semaphore,
}

impl ServerTools {
    /// The tools of a toolbox.
    pub fn new(toolbox: Option<Arc<Toolbox>>) -> Self {
        let offer = toolbox.as_ref().map(|t| t.offer()).unwrap_or_default();
        let plugins = toolbox.as_ref().map(|t| t.plugins()).unwrap_or_default();
        let names = plugins.into_iter().flat_map(|p| p.tools).map(|t| t.name).collect();
        ServerTools { toolbox: toolbox.filter(|_| !offer.is_empty()), offer, names, places: Semaphore::new(MOST_RUNNING) }
    }

    /// What executes them; none where there are no tools.
    pub fn toolbox(&self) -> Option<&Arc<Toolbox>> {
        self.toolbox.as_ref()
    }

    /// Their definitions in OpenAI's form.
    pub fn offer(&self) -> &[String] {
        &self.offer
    }

    /// Their names.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}
