//! Run directories for those who look at them: the records that a run writes, reading them, also while it goes on, lists, comparisons, and
//! their HTML.

pub mod chart;
pub mod html;
mod overview;
mod read;
pub mod records;
mod tail;
mod time;

pub use overview::{Comparison, Difference, Overview, compare, flat};
pub use read::{Evaluation, Run, RunError, State, find};
pub use tail::{Tail, read_lines};
pub use time::stamp;
