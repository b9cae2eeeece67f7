//! What a person sees.

mod banner;
mod progress;
mod text;

pub use banner::{banner, loss_table, summary};
pub use progress::Progress;
pub use text::{bytes, count, terminal};
