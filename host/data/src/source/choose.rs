//! Looking at every row of a source to find those that are taken: on all cores, with the result of one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use super::stream::AllRows;
use super::{Reader, Row, RowView, Source};
use crate::error::DataError;

/// Rows that a thread looks at before it says what it found.
const UNIT: u64 = 2048;
/// More threads than this would wait for the disk, and hold a decoded group of a table each.
const MAX_THREADS: usize = 16;
/// Units under way for each thread.
const AHEAD: usize = 2;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Places of the rows that are taken, if they were wanted.
    pub(super) taken: Vec<u64>,
    /// How many are taken.
    pub(super) count: u64,
    /// For each filter, whether a row had a value at its column. Only of meaning where all rows were looked at.
    pub(super) known: Vec<bool>,
}

/// Threads for it on this machine.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS)
}

/// Some rows, from a place among all rows on.
struct Unit {
    at: u64,
    rows: Rows,
}

enum Rows {
    /// Of a text file with an index or of a table's chunk: rows of file `file`.
    Of { file: usize, rows: Range<u64> },
    /// Read from the front.
    Read(Vec<Row>),
}

/// What was found among a unit's rows.
#[derive(Default)]
struct Found {
    taken: Vec<u64>,
    known: Vec<bool>,
    /// An unreadable file ends the search, unless the limit is reached before it.
    error: Option<DataError>,
}

/// Finds the rows that a source's view takes, the first `limit` of them; `places`: whether their places are wanted.
pub(super) fn choose(source: &Source, limit: u64, places: bool, threads: usize) -> Result<Choice, DataError> {
    let mut gather = Gather { limit, places, next: 0, waiting: BTreeMap::new(), choice: Choice::default() };
    gather.choice.known = vec![false; source.view().filters.len()];
    let mut units = Units { source, file: 0, row: 0, at: 0, front: None, failed: None };
    let known = source.readers().iter().map(|r| if let Reader::Front(..) = r { u64::MAX } else { 0 }).max();
    let small = source.files().iter().map(|f| f.rows.unwrap_or(u64::MAX)).fold(known.unwrap_or(0), u64::saturating_add) <= UNIT;
    if threads < 2 || small {
        let mut number = 0;
        while let Some(unit) = units.next()? {
            if gather.take(number, look(source, unit))? {
                break;
            }
            number += 1;
        }
        return Ok(gather.choice);
    }
    let (jobs, incoming) = channel::<(u64, Unit)>();
    let (results, found) = channel();
    let incoming = Mutex::new(incoming);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (incoming, results) = (&incoming, results.clone());
            scope.spawn(move || work(source, incoming, &results));
        }
        drop(results);
        drive(&mut units, &mut gather, jobs, &found, threads)
    })?;
    Ok(gather.choice)
}

/// Hands units out and takes what was found in them, until all is seen or enough is taken. Dropping `jobs` ends the threads.
fn drive(
    units: &mut Units<'_>,
    gather: &mut Gather,
    jobs: Sender<(u64, Unit)>,
    found: &Receiver<(u64, Found)>,
    threads: usize,
) -> Result<(), DataError> {
    let lost = || DataError::Worker("a thread that looks through the rows has ended".to_owned());
    let (mut sent, mut received, mut more) = (0u64, 0u64, true);
    let mut failed = None;
    loop {
        while more && sent - received < (threads * AHEAD) as u64 {
            match units.next() {
                Ok(Some(unit)) => {
                    jobs.send((sent, unit)).map_err(|_| lost())?;
                    sent += 1;
                }
                Ok(None) => more = false,
                // What was read before it comes first.
                Err(error) => {
                    failed = Some(error);
                    more = false;
                }
            }
        }
        if received == sent {
            return failed.map_or(Ok(()), Err);
        }
        let (number, what) = found.recv().map_err(|_| lost())?;
        received += 1;
        if gather.take(number, what)? {
            return Ok(());
        }
    }
}

fn work(source: &Source, incoming: &Mutex<Receiver<(u64, Unit)>>, results: &Sender<(u64, Found)>) {
    loop {
        let job = incoming.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, unit)) = job else { return };
        if results.send((number, look(source, unit))).is_err() {
            return;
        }
    }
}

/// Puts what was found into the order of the rows.
struct Gather {
    limit: u64,
    places: bool,
    next: u64,
    waiting: BTreeMap<u64, Found>,
    choice: Choice,
}

impl Gather {
    /// Whether enough is taken.
    fn take(&mut self, number: u64, found: Found) -> Result<bool, DataError> {
        self.waiting.insert(number, found);
        while let Some(found) = self.waiting.remove(&self.next) {
            self.next += 1;
            let choice = &mut self.choice;
            choice.known.iter_mut().zip(found.known).for_each(|(known, more)| *known |= more);
            for place in found.taken {
                if choice.count == self.limit {
                    break;
                }
                choice.count += 1;
                if self.places {
                    choice.taken.push(place);
                }
            }
            if choice.count == self.limit {
                return Ok(true);
            }
            if let Some(error) = found.error {
                return Err(error);
            }
        }
        Ok(false)
    }
}

fn look(source: &Source, unit: Unit) -> Found {
    let mut found = Found { known: vec![false; source.view().filters.len()], ..Found::default() };
    let mut at = unit.at;
    let mut see = |row: &Row| {
        let json = row.json.as_deref().map_err(|_| ());
        if let Ok(json) = json {
            for (filter, known) in source.view().filters.iter().zip(&mut found.known) {
                *known = *known || RowView::has_value(json, &filter.column);
            }
        }
        if source.view().takes(json) {
            found.taken.push(at);
        }
        at += 1;
    };
    match unit.rows {
        Rows::Read(rows) => rows.iter().for_each(see),
        Rows::Of { file, rows } => {
            if let Err(error) = source.each_of(file, rows, &mut see) {
                found.error = Some(error);
            }
        }
    }
    found
}

/// Cuts a source into units, in the order of its rows.
struct Units<'a> {
    source: &'a Source,
    file: usize,
    row: u64,
    at: u64,
    front: Option<AllRows<'a>>,
    /// What ended the reading, for when the rows before it have been given.
    failed: Option<DataError>,
}

impl Units<'_> {
    fn next(&mut self) -> Result<Option<Unit>, DataError> {
        while let Some(reader) = self.source.readers().get(self.file) {
            let rows = match reader {
                Reader::Front(..) => {
                    let front = self.front.get_or_insert_with(|| self.source.all_rows_of(self.file));
                    let mut rows = Vec::new();
                    while (rows.len() as u64) < UNIT
                        && let Some(row) = front.next()
                    {
                        match row {
                            Ok(row) => rows.push(row),
                            // The rows before it come first; they may be enough.
                            Err(error) => {
                                self.failed = Some(error);
                                break;
                            }
                        }
                    }
                    (!rows.is_empty()).then_some((rows.len() as u64, Rows::Read(rows)))
                }
                Reader::Text(text) => {
                    let rows = self.row..self.row.saturating_add(UNIT).min(text.len());
                    (!rows.is_empty()).then(|| (rows.end - rows.start, Rows::Of { file: self.file, rows }))
                }
                // A chunk is decoded as a whole.
                Reader::Table(table) => table.chunk_from(self.row).map(|rows| (rows.end - rows.start, Rows::Of { file: self.file, rows })),
            };
            match rows {
                Some((count, rows)) => {
                    // After an error there is nothing more to read: the next call tells of it.
                    let unit = Unit { at: self.at, rows };
                    self.row = self.row.saturating_add(count);
                    self.at = self.at.saturating_add(count);
                    return Ok(Some(unit));
                }
                None => {
                    if let Some(error) = self.failed.take() {
                        self.file = usize::MAX;
                        return Err(error);
                    }
                    self.file += 1;
                    (self.row, self.front) = (0, None);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Access, Filter, Format, Holdout, SourceSpec};

    fn filter(column: &str) -> Filter {
        Filter { column: column.to_owned(), min: Some(3.0), ..Filter::default() }
    }

    #[test]
    fn threads_find_what_one_finds() {
        let folder = tempfile::tempdir().unwrap();
        let text = |from: usize, n: usize| -> String {
            (from..from + n)
                .map(|i| if i % 997 == 5 { "broken\n\n".to_owned() } else { format!("{{\"n\": {}, \"i\": {i}}}\n", i % 7) })
                .collect()
        };
        std::fs::write(folder.path().join("a.jsonl"), text(0, 9000)).unwrap();
        std::fs::write(folder.path().join("b.jsonl"), "").unwrap();
        std::fs::write(folder.path().join("c.jsonl"), text(9000, 5000)).unwrap();
        let gz = std::fs::File::create(folder.path().join("d.jsonl.gz")).unwrap();
        let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, text(14_000, 6000).as_bytes()).unwrap();
        gz.finish().unwrap();
        for access in [Access::Random, Access::Stream { window: 10 }] {
            let mut spec = SourceSpec::paths("s", [folder.path().display().to_string()]);
            spec.access = access;
            let mut source = Source::open(spec).unwrap();
            source.view = RowView {
                filters: vec![filter("n"), Filter { present: Some(false), ..filter("gone") }],
                holdout: Some(Holdout { share: 0.3, by: None, held_out: false }),
                ..RowView::default()
            };
            source.view.filters[1].min = None;
            for limit in [1, 2047, 2048, 2049, 5000, u64::MAX] {
                let one = choose(&source, limit, true, 1).unwrap();
                assert_eq!(one.count, one.taken.len() as u64);
                assert!(one.count == limit || (limit == u64::MAX && one.count > 7000), "{limit}: {}", one.count);
                assert!(one.taken.windows(2).all(|w| w[0] < w[1]));
                for threads in [2, 3, 8] {
                    let many = choose(&source, limit, true, threads).unwrap();
                    assert_eq!((&many.taken, many.count), (&one.taken, one.count), "{access:?}, {limit}, {threads} threads");
                }
            }
            let all = choose(&source, u64::MAX, false, 4).unwrap();
            assert_eq!((all.taken.len(), all.known), (0, vec![true, false]));
        }
    }

    #[test]
    fn a_file_that_breaks_counts_only_where_it_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let good: String = (0..6000).map(|i| format!("{{\"n\": {i}}},")).collect();
        let path = folder.path().join("a.json");
        let whole = format!("[{good}{{\"n\": 1}}]");
        std::fs::write(&path, &whole).unwrap();
        let mut spec = SourceSpec::paths("s", [path.display().to_string()]);
        (spec.format, spec.access) = (Some(Format::Json), Access::Stream { window: 4 });
        let mut source = Source::open(spec).unwrap();
        source.view.filters = vec![Filter { column: "n".to_owned(), min: Some(0.0), ..Filter::default() }];
        // Shorter than when it was opened: an array that does not end.
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        for threads in [1, 4] {
            assert_eq!(choose(&source, 5000, true, threads).unwrap().count, 5000);
            assert!(choose(&source, u64::MAX, true, threads).is_err(), "{threads} threads");
        }
    }
}
