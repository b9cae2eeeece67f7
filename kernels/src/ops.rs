//! The operations trait.
