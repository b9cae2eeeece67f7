//! What a person sees.

mod banner;
mod diagnosis;
mod plan;
mod progress;
mod safe;
mod text;
mod transfer;

pub use banner::{banner, loss_table, summary};
pub use diagnosis::diagnosis;
pub use plan::plan_table;
pub use progress::{Pace, Progress};
pub use safe::{safe, shown};
pub use text::{bytes, colors, count, terminal};
pub use transfer::Transfer;
