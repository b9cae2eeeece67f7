//! Typed clients, one per kind: they call, check what comes back, and isolate rows that fail.

pub(crate) mod formatter;
pub(crate) mod metric;
pub(crate) mod mixer;
pub(crate) mod template;
pub(crate) mod tools;
