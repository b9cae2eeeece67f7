//! `trainer data`: the training data as a whole.

pub mod clean;
mod figures;
pub mod prepare;
pub mod pull;
pub mod stat;
