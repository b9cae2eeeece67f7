//! Rows from the front: all of a source once, and, for streamed sources, shuffled within windows without end.

use std::sync::Arc;

use super::select::Selection;
use super::table::TableStream;
use super::text::{TextKind, TextStream};
use super::unpack::Packing;
use super::{Access, Order, Reader, Row, Source};
use crate::error::DataError;
use crate::order::Permutation;

/// Iterates over the rows that are taken, in file order and in bounded memory. After an error (always about a file) it ends.
#[derive(Debug)]
pub struct Rows<'a> {
    source: &'a Source,
    front: Front,
}

impl<'a> Rows<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, front: Front::default() }
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.front.next_taken(self.source).inspect_err(|_| self.front.file = usize::MAX).transpose()
    }
}

/// A place in a source that is read from the front.
#[derive(Debug, Default)]
struct Front {
    file: usize,
    /// Row within the file, for text files with an index.
    row: u64,
    open: Option<Open>,
    /// Rows passed, of all and of those that are taken.
    at: u64,
    taken: u64,
}

#[derive(Debug)]
enum Open {
    Text(TextStream),
    Table(TableStream),
    Indexed,
}

/// Every row of the files as it is, in file order.
pub(super) struct AllRows<'a> {
    source: &'a Source,
    front: Front,
}

impl Iterator for AllRows<'_> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.front.next(self.source).inspect_err(|_| self.front.file = usize::MAX).transpose()
    }
}

impl Source {
    pub(super) fn all_rows(&self) -> AllRows<'_> {
        AllRows { source: self, front: Front::default() }
    }
}

impl Front {
    /// The next row that is taken, as the formatter sees it.
    fn next_taken(&mut self, source: &Source) -> Result<Option<Row>, DataError> {
        while self.taken < source.len() {
            let Some(row) = self.next(source)? else { return Err(shorter(source, self.taken)) };
            let at = self.at;
            self.at += 1;
            let taken = match source.selection() {
                Selection::Passing => source.view().takes(row.json.as_deref().map_err(|_| ())),
                selection => selection.row(self.taken) == at,
            };
            if taken {
                self.taken += 1;
                return Ok(Some(source.shaped(row)));
            }
        }
        Ok(None)
    }

    /// Passes over one row that is taken; false at the end.
    fn skip_taken(&mut self, source: &Source) -> Result<bool, DataError> {
        if self.taken >= source.len() {
            return Ok(false);
        }
        if *source.selection() == Selection::Passing {
            return Ok(self.next_taken(source)?.is_some());
        }
        let target = source.selection().row(self.taken);
        while self.at <= target {
            if !self.skip(source)? {
                return Err(shorter(source, self.taken));
            }
            self.at += 1;
        }
        self.taken += 1;
        Ok(true)
    }

    fn next(&mut self, source: &Source) -> Result<Option<Row>, DataError> {
        while let Some((reader, info)) = source.readers().get(self.file).zip(source.files().get(self.file)) {
            if self.open.is_none() {
                self.row = 0;
                self.open = Some(match reader {
                    Reader::Front(bytes, packing, kind) => Open::Text(stream(source, self.file, bytes, *packing, kind)?),
                    Reader::Table(table) => Open::Table(TableStream::new(Arc::clone(table))),
                    Reader::Text(_) => Open::Indexed,
                });
            }
            let found = match (&mut self.open, reader) {
                (Some(Open::Text(text)), _) => text.next().map_err(|e| source.scan_error(info, e))?,
                (Some(Open::Table(table)), _) => table.next().map_err(|message| source.broken(info, message))?,
                (Some(Open::Indexed), Reader::Text(text)) if self.row < text.len() => {
                    let row = text.read(self.row).map_err(|e| source.io(info, e))?;
                    self.row += 1;
                    Some((text.line(self.row - 1), row))
                }
                _ => None,
            };
            match found {
                Some((row, json)) => return Ok(Some(source.row(info, row, json))),
                None => {
                    self.open = None;
                    self.file += 1;
                }
            }
        }
        Ok(None)
    }

    /// Passes over one row; false at the end.
    fn skip(&mut self, source: &Source) -> Result<bool, DataError> {
        while let Some((reader, info)) = source.readers().get(self.file).zip(source.files().get(self.file)) {
            if self.open.is_none() {
                self.row = 0;
                self.open = Some(match reader {
                    Reader::Front(bytes, packing, kind) => Open::Text(stream(source, self.file, bytes, *packing, kind)?),
                    Reader::Table(table) => Open::Table(TableStream::new(Arc::clone(table))),
                    Reader::Text(_) => Open::Indexed,
                });
            }
            let skipped = match &mut self.open {
                Some(Open::Text(text)) => text.skip().map_err(|e| source.scan_error(info, e))?,
                Some(Open::Table(table)) => table.skip(),
                Some(Open::Indexed) => match reader {
                    Reader::Text(text) if self.row < text.len() => {
                        self.row += 1;
                        true
                    }
                    _ => false,
                },
                None => false,
            };
            if skipped {
                return Ok(true);
            }
            self.open = None;
            self.file += 1;
        }
        Ok(false)
    }
}

fn shorter(source: &Source, row: u64) -> DataError {
    let message = format!("source `{}` has become shorter since it was opened: it ends before row {row} (counting from 0)", source.name());
    DataError::State(message)
}

fn stream(
    source: &Source,
    file: usize,
    bytes: &super::bytes::ByteSource,
    packing: Option<Packing>,
    kind: &TextKind,
) -> Result<TextStream, DataError> {
    TextStream::new(bytes, packing, kind.clone()).map_err(|e| match source.files().get(file) {
        Some(info) => source.scan_error(info, e),
        None => source.no_rows(),
    })
}

/// A streamed source in its windowed shuffle: windows of consecutive rows, each permuted by (seed, name, pass, window). It gives the same
/// rows wherever it begins, so a position is all that a checkpoint needs; getting there again means reading up to its window.
#[derive(Debug)]
pub(crate) struct Windowed {
    source: Arc<Source>,
    seed: u64,
    window: u64,
    pass: u64,
    next: u64,
    front: Front,
    /// The window in memory: its number, its order, its rows.
    loaded: Option<(u64, Permutation, Vec<Option<Row>>)>,
}

impl Windowed {
    /// Stands before row `next` of pass `pass`.
    pub(crate) fn new(source: Arc<Source>, seed: u64, pass: u64, next: u64) -> Result<Self, DataError> {
        let window = match source.access() {
            Access::Stream { window } => u64::from(window).max(1),
            Access::Random => 1,
        };
        let mut front = Front::default();
        for _ in 0..next - next % window {
            if !front.skip_taken(&source)? {
                return Err(shorter(&source, next));
            }
        }
        Ok(Self { source, seed, window, pass, next, front, loaded: None })
    }

    /// The next row, starting over at the end of a pass, and the position after it.
    pub(crate) fn next(&mut self) -> Result<(Row, u64, u64), DataError> {
        loop {
            let number = self.next / self.window;
            if self.loaded.as_ref().is_none_or(|(have, ..)| *have != number) {
                self.loaded = None;
                let mut rows = Vec::new();
                while (rows.len() as u64) < self.window {
                    match self.front.next_taken(&self.source)? {
                        Some(row) => rows.push(Some(row)),
                        None => break,
                    }
                }
                let label = format!("{}\0window {number}", self.source.name());
                self.loaded = Some((number, Permutation::new(self.seed, &label, self.pass, rows.len() as u64), rows));
            }
            let Some((_, order, rows)) = &mut self.loaded else { continue };
            let within = self.next % self.window;
            let at = if self.source.order() == Order::Shuffled { order.get(within) } else { within };
            if let Some(row) = usize::try_from(at).ok().and_then(|at| rows.get_mut(at)).and_then(Option::take) {
                self.next += 1;
                return Ok((row, self.pass, self.next));
            }
            // Past the last row: the next pass. An empty pass means that the files were emptied after they were opened.
            if self.next == 0 {
                return Err(self.source.no_rows());
            }
            (self.pass, self.next) = (self.pass.saturating_add(1), 0);
            (self.front, self.loaded) = (Front::default(), None);
        }
    }
}
