//! `trainer data`: the training data as a whole.

mod figures;
pub mod stat;
