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

/// The same, keeping the source open.
#[derive(Debug)]
pub(crate) struct OwnedRows {
    source: Arc<Source>,
    front: Front,
}

impl OwnedRows {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Self { source, front: Front::default() }
    }

    /// The next row; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Row>, DataError> {
        self.front.next_taken(&self.source)
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

/// Every row of files as it is, in file order.
pub(super) struct AllRows<'a> {
    source: &'a Source,
    front: Front,
    /// The first file that is not among them.
    end: usize,
}

impl Iterator for AllRows<'_> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.front.next_before(self.source, self.end).inspect_err(|_| self.front.file = usize::MAX).transpose()
    }
}

impl Source {
    /// Every row of one file from the front.
    pub(super) fn all_rows_of(&self, file: usize) -> AllRows<'_> {
        AllRows { source: self, front: Front { file, ..Front::default() }, end: file.saturating_add(1) }
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
        self.next_before(source, usize::MAX)
    }

    /// The next row of files before `end`.
    fn next_before(&mut self, source: &Source, end: usize) -> Result<Option<Row>, DataError> {
        while let Some((reader, info)) = source.readers().get(self.file).zip(source.files().get(self.file)) {
            if self.file >= end {
                break;
            }
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
    /// The window at hand: its number, its order, its rows.
    loaded: Option<(u64, Permutation, Window)>,
    /// Whether only the places of rows are wanted, for which nothing is read.
    places: bool,
}

/// A row of a streamed source.
#[derive(Debug)]
pub(crate) enum Drawn {
    /// Read.
    Row(Box<Row>),
    /// By its place in file order.
    Place(u64),
}

#[derive(Debug)]
enum Window {
    Rows(Vec<Option<Row>>),
    /// The first place and how many there are.
    Places(u64, u64),
}

impl Window {
    fn len(&self) -> u64 {
        match self {
            Self::Rows(rows) => rows.len() as u64,
            Self::Places(_, n) => *n,
        }
    }

    fn take(&mut self, at: u64) -> Option<Drawn> {
        match self {
            Self::Rows(rows) => rows.get_mut(usize::try_from(at).ok()?)?.take().map(|row| Drawn::Row(Box::new(row))),
            Self::Places(first, n) => (at < *n).then(|| Drawn::Place(first.saturating_add(at))),
        }
    }
}

impl Windowed {
    /// Stands before row `next` of pass `pass`. With `places` it gives the places of rows and reads none.
    pub(crate) fn new(source: Arc<Source>, seed: u64, pass: u64, next: u64, places: bool) -> Result<Self, DataError> {
        let window = match source.access() {
            Access::Stream { window } => u64::from(window).max(1),
            Access::Random => 1,
        };
        let mut front = Front::default();
        for _ in 0..if places { 0 } else { next - next % window } {
            if !front.skip_taken(&source)? {
                return Err(shorter(&source, next));
            }
        }
        Ok(Self { source, seed, window, pass, next, front, loaded: None, places })
    }

    /// The next row, starting over at the end of a pass, and the position after it.
    pub(crate) fn next(&mut self) -> Result<(Drawn, u64, u64), DataError> {
        loop {
            let number = self.next / self.window;
            if self.loaded.as_ref().is_none_or(|(have, ..)| *have != number) {
                self.loaded = None;
                let rows = self.window_at(number)?;
                let label = format!("{}\0window {number}", self.source.name());
                self.loaded = Some((number, Permutation::new(self.seed, &label, self.pass, rows.len()), rows));
            }
            let Some((_, order, rows)) = &mut self.loaded else { continue };
            let within = self.next % self.window;
            let at = if self.source.order() == Order::Shuffled { order.get(within) } else { within };
            if let Some(row) = rows.take(at) {
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

    fn window_at(&mut self, number: u64) -> Result<Window, DataError> {
        if self.places {
            let first = number.saturating_mul(self.window);
            return Ok(Window::Places(first, self.source.len().saturating_sub(first).min(self.window)));
        }
        let mut rows = Vec::new();
        while (rows.len() as u64) < self.window {
            match self.front.next_taken(&self.source)? {
                Some(row) => rows.push(Some(row)),
                None => break,
            }
        }
        Ok(Window::Rows(rows))
    }
}
