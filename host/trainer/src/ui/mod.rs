//! What a person sees.

mod banner;
mod diagnosis;
mod plan;
mod progress;
mod text;

pub use banner::{banner, loss_table, summary};
pub use diagnosis::diagnosis;
pub use plan::plan_table;
pub use progress::Progress;
pub use text::{bytes, coloured, count, terminal};
