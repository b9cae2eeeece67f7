//! Compressed and Arrow files, filters, columns, limits, splits and streams: each against what the plain files give.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use proptest::prelude::*;
use serde_json::{Value, json};
use trainer_data::*;

fn spec(path: &Path) -> SourceSpec {
    SourceSpec::paths("s", [path.display().to_string()])
}

fn open(path: &Path) -> Result<Source, DataError> {
    Source::open(spec(path))
}

fn rows(source: &Source) -> Vec<Value> {
    let all: Vec<Row> = source.rows().map(|r| r.unwrap()).collect();
    assert_eq!(source.len(), all.len() as u64);
    if source.random_access() {
        for (i, row) in all.iter().enumerate() {
            assert_eq!(source.read(i as u64).unwrap(), *row);
            let file = row.file.rsplit('/').next().unwrap();
            assert_eq!(source.find_row(Some(file), row.row), Some(i as u64));
        }
    }
    all.iter().map(|r| serde_json::from_str(r.json.as_ref().unwrap()).unwrap()).collect()
}

fn sample(n: usize) -> Vec<Value> {
    let kinds = ["a", "b", "c"];
    (0..n).map(|i| json!({ "n": i as i64, "kind": (kinds[i % 3]), "text": format!("Row {i} ä") })).collect()
}

fn jsonl(rows: &[Value]) -> Vec<u8> {
    rows.iter().flat_map(|r| format!("{r}\n").into_bytes()).collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[test]
fn compressed_text_is_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = sample(50);
    let text = jsonl(&wanted);
    let at = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name)
    };
    let (first, second) = text.split_at(text.iter().position(|b| *b == b'\n').unwrap() + 1);
    let zst = zstd::encode_all(text.as_slice(), 1).unwrap();
    // Several members in one file are one text, as `cat a.gz b.gz` makes them.
    let joined = [gz(first), gz(second)].concat();
    let frames = [zstd::encode_all(first, 1).unwrap(), zstd::encode_all(second, 1).unwrap()].concat();
    for (name, bytes) in
        [("a.jsonl.gz", &gz(&text)), ("b.jsonl.zst", &zst), ("c.jsonl.gz", &joined), ("d.jsonl.zstd", &frames), ("e.jsonl", &zst)]
    {
        let path = at(name, bytes);
        assert_eq!(rows(&open(&path).unwrap()), wanted, "{name}");
        let streamed = SourceSpec { access: Access::Stream { window: 7 }, ..spec(&path) };
        assert_eq!(rows(&Source::open(streamed).unwrap()), wanted, "{name} streamed");
    }
    let csv = at("f.csv.gz", &gz(b"n,text\n1,x\n"));
    assert_eq!(rows(&open(&csv).unwrap()), [json!({ "n": "1", "text": "x" })]);
    let tsv = at("g.tsv.zst", &zstd::encode_all(&b"n\ttext\n1\tx,y\n"[..], 1).unwrap());
    assert_eq!(rows(&open(&tsv).unwrap()), [json!({ "n": "1", "text": "x,y" })]);

    for (name, bytes) in [("cut.jsonl.gz", gz(&text)), ("cut.jsonl.zst", zst)] {
        let cut = at(name, &bytes[..bytes.len() - 9]);
        for access in [Access::Random, Access::Stream { window: 3 }] {
            let error = Source::open(SourceSpec { access, ..spec(&cut) }).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("damaged or cut short"), "{error}");
        }
    }
}

fn batch(rows: &[Value]) -> RecordBatch {
    let text = |name: &str| rows.iter().map(|r| r[name].as_str().unwrap()).collect::<Vec<_>>();
    let kinds: DictionaryArray<Int32Type> = text("kind").into_iter().collect();
    let columns: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r["n"].as_i64().unwrap())))),
        ("kind", Arc::new(kinds)),
        ("text", Arc::new(StringArray::from_iter_values(text("text")))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// As a file and as a stream, in batches of `size` rows.
fn ipc(rows: &[Value], size: usize, compression: Option<CompressionType>) -> [Vec<u8>; 2] {
    let schema = batch(&rows[..1]).schema();
    // Each batch has a dictionary of its own, which a stream may replace.
    let options = || IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let mut stream = StreamWriter::try_new_with_options(Vec::new(), &schema, options()).unwrap();
    rows.chunks(size).for_each(|c| stream.write(&batch(c)).unwrap());
    stream.finish().unwrap();
    // A file may not replace dictionaries, so it gets one batch's rows in parts.
    let mut file = FileWriter::try_new_with_options(Vec::new(), &schema, options()).unwrap();
    let whole = batch(rows);
    (0..rows.len()).step_by(size).for_each(|at| file.write(&whole.slice(at, size.min(rows.len() - at))).unwrap());
    file.finish().unwrap();
    [file.into_inner().unwrap(), stream.into_inner().unwrap()]
}

#[test]
fn arrow_files_and_streams() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = sample(100);
    for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        for (name, bytes) in ["a.feather", "b.arrow"].iter().zip(ipc(&wanted, 32, compression)) {
            let path = dir.path().join(name);
            std::fs::write(&path, &bytes).unwrap();
            let source = open(&path).unwrap();
            assert_eq!(rows(&source), wanted, "{name} {compression:?}");
            assert_eq!((source.files()[0].format, source.files()[0].rows), (Format::Arrow, Some(100)));
            let view = RowView { columns: vec![("t".into(), "text".into())], ..RowView::default() };
            let narrow = rows(&Source::open(SourceSpec { view, ..spec(&path) }).unwrap());
            assert_eq!(narrow[7], json!({ "t": "Row 7 ä" }));
            let view = RowView { columns: vec![("t".into(), "txet".into())], ..RowView::default() };
            let error = Source::open(SourceSpec { view, ..spec(&path) }).unwrap_err().to_string();
            assert!(error.contains("there is no column `txet`; the columns are n, kind, text"), "{error}");
            // Cut anywhere it is refused, or it is whole up to a batch (streams need no end).
            for cut in (0..bytes.len()).step_by(13) {
                std::fs::write(&path, &bytes[..cut]).unwrap();
                if let Ok(source) = open(&path) {
                    assert!(*name == "b.arrow" && rows(&source) == wanted[..source.len() as usize], "{name} cut at {cut}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_arrow_files_are_errors_not_panics(at in 0usize..4000, byte: u8, stream: bool) {
        let mut bytes = ipc(&sample(20), 8, None)[usize::from(stream)].clone();
        let at = at % bytes.len();
        bytes[at] = byte;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.arrow");
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(source) = open(&path) {
            for row in source.rows().take(1000) {
                if row.is_err() { break }
            }
        }
    }
}

fn condition(column: &str, is: &[&str]) -> Filter {
    Filter { column: column.to_owned(), is: is.iter().map(|s| json!(s)).collect(), ..Filter::default() }
}

#[test]
fn views_are_the_same_for_every_format_and_access() {
    let dir = tempfile::tempdir().unwrap();
    let all = sample(300);
    std::fs::write(dir.path().join("a.jsonl"), jsonl(&all)).unwrap();
    std::fs::write(dir.path().join("b.json"), serde_json::to_vec_pretty(&all).unwrap()).unwrap();
    std::fs::write(dir.path().join("c.arrow"), &ipc(&all, 64, None)[0]).unwrap();
    let columns = vec![("question".to_owned(), "text".to_owned()), ("id".to_owned(), "/n".to_owned())];
    let split = |held_out| Some(Holdout { share: 0.3, by: None, held_out });
    let view = |holdout, limit| RowView { filters: vec![condition("kind", &["a", "c"])], holdout, limit, columns: columns.clone() };
    let taken =
        |name: &str, access, view: RowView| rows(&Source::open(SourceSpec { view, access, ..spec(&dir.path().join(name)) }).unwrap());
    let expected: Vec<Value> = all.iter().filter(|r| r["kind"] != "b").map(|r| json!({ "question": r["text"], "id": r["n"] })).collect();
    for access in [Access::Random, Access::Stream { window: 16 }] {
        for name in ["a.jsonl", "b.json", "c.arrow"] {
            assert_eq!(taken(name, access, view(None, None)), expected, "{name} {access:?}");
            assert_eq!(taken(name, access, view(None, Some(11))), expected[..11], "{name} {access:?}");
            // Training and evaluation share the rows between them, the same way whatever the format.
            let (train, held) = (taken(name, access, view(split(false), None)), taken(name, access, view(split(true), None)));
            assert_eq!(train, taken("a.jsonl", Access::Random, view(split(false), None)));
            assert!(held.len() > 30 && held.len() < 90, "{}", held.len());
            let mut both = [train, held].concat();
            both.sort_by_key(|r| r["id"].as_i64());
            assert_eq!(both, expected);
        }
    }
    let refused = |view| Source::open(SourceSpec { view, ..spec(&dir.path().join("a.jsonl")) }).unwrap_err().to_string();
    let error = refused(RowView { filters: vec![condition("kin", &["a"])], ..RowView::default() });
    assert!(error.contains("none of its 300 rows passes the filters and the split; no row has a value at `kin`"), "{error}");
    // A row that is taken away is no row, and a broken one is never filtered out silently.
    let source = Source::open(SourceSpec { view: view(None, None), ..spec(&dir.path().join("a.jsonl")) }).unwrap();
    assert_eq!((source.find_row(None, 1), source.find_row(None, 2), source.find_row(None, 3)), (Some(0), None, Some(1)));
    std::fs::write(dir.path().join("d.jsonl"), "{\"kind\": \"a\"}\n{\"kind\": \n").unwrap();
    let source = Source::open(SourceSpec { view: view(None, None), ..spec(&dir.path().join("d.jsonl")) }).unwrap();
    assert_eq!((source.len(), source.read(1).unwrap().json.is_err()), (2, true));
}

#[test]
fn a_weight_is_seen_by_the_policy_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    std::fs::write(&path, jsonl(&sample(10))).unwrap();
    for (weight, length) in [(1.0, 10), (2.5, 25), (0.25, 3), (0.001, 1)] {
        let source = Source::open(SourceSpec { weight, ..spec(&path) }).unwrap();
        assert_eq!((source.len(), source.mix_length()), (10, length));
    }
    // Which rows there are does not depend on it.
    assert!(Source::open(SourceSpec { weight: f64::NAN, ..spec(&path) }).is_err());
}
