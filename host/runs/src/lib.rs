//! Run directories for those who look at them: the records that a run writes, reading them, also while it goes on, lists, comparisons, and
//! their HTML.

pub mod chart;
pub mod html;
mod overview;
mod read;
pub mod records;
mod shelf;
mod tail;
mod time;

pub use overview::{Comparison, Difference, Overview, compare, flat};
pub use read::{Evaluation, Run, RunError, State, all_below, find};
pub use shelf::Shelf;
pub use tail::{Piece, Tail, read_lines};
pub use time::{for_people, stamp};
