//! Which rows of a source are taken: found once, when it is opened, so that its length is known and every pass has the same rows.

use super::choose::{Choice, choose, threads};
use super::{Access, Source};
use crate::error::DataError;

/// The rows that are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// All.
    All,
    /// The first ones.
    First,
    /// These places among all rows, ascending: 8 bytes a row.
    These(Vec<u64>),
    /// Those that pass, looked at anew in each pass of a source that is read from the front.
    Passing,
}

impl Selection {
    /// The place among all rows of the `i`-th that is taken.
    pub(crate) fn row(&self, i: u64) -> u64 {
        match self {
            Self::These(rows) => usize::try_from(i).ok().and_then(|i| rows.get(i)).copied().unwrap_or(u64::MAX),
            Self::All | Self::First | Self::Passing => i,
        }
    }

    /// The other way round; none for a row that is not taken.
    pub(crate) fn place(&self, row: u64) -> Option<u64> {
        match self {
            Self::These(rows) => rows.binary_search(&row).ok().map(|i| i as u64),
            Self::All | Self::First | Self::Passing => Some(row),
        }
    }

    /// How many of the rows before `row` are taken.
    fn before(&self, row: u64) -> u64 {
        match self {
            Self::These(rows) => rows.partition_point(|r| *r < row) as u64,
            Self::All | Self::First | Self::Passing => row,
        }
    }
}

impl Source {
    /// Finds the rows that are taken, and how many there are.
    pub(super) fn select(&mut self) -> Result<(), DataError> {
        let limit = self.view.limit.unwrap_or(u64::MAX);
        let all = self.len;
        if !self.view.selects() {
            self.len = all.min(limit);
            self.selection = if self.len < all { Selection::First } else { Selection::All };
        } else {
            let streamed = matches!(self.access, Access::Stream { .. });
            let Choice { taken, count, known } = choose(self, limit, !streamed, threads())?;
            if count == 0 {
                let unknown: Vec<String> =
                    self.view.filters.iter().zip(&known).filter(|(_, k)| !**k).map(|(f, _)| format!("`{}`", f.column)).collect();
                let why = if unknown.is_empty() { String::new() } else { format!("; no row has a value at {}", unknown.join(", ")) };
                let message = format!("none of its {all} rows passes the filters and the split{why}");
                return Err(DataError::Source { source_name: self.name.to_string(), message });
            }
            self.len = count;
            self.selection = if streamed { Selection::Passing } else { Selection::These(taken) };
        }
        if self.len == 0 {
            let message = "its limit is 0; leave the source out instead".to_owned();
            return Err(DataError::Source { source_name: self.name.to_string(), message });
        }
        // The order within groups is over the rows that are taken.
        if let Some(shards) = &mut self.shards {
            for shard in shards.iter_mut() {
                let start = self.selection.before(shard.start).min(self.len);
                let end = self.selection.before(shard.start.saturating_add(shard.rows)).min(self.len);
                (shard.start, shard.rows) = (start, end - start);
            }
            shards.retain(|s| s.rows > 0);
        }
        Ok(())
    }
}
