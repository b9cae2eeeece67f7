//! The reference data sets: layouts equal to their jsonl, dirty files row by row.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use trainer_data::*;
use trainer_test_support as support;

fn open(path: &str) -> Result<Source, DataError> {
    Source::open(SourceSpec::paths("reference", [support::reference_file(path).display().to_string()]))
}

fn rows(source: &Source) -> Vec<Row> {
    source.rows().map(|r| r.unwrap()).collect()
}

fn values(path: &str) -> Vec<serde_json::Value> {
    rows(&open(path).unwrap()).iter().map(|r| serde_json::from_str(r.json.as_ref().unwrap()).unwrap()).collect()
}

/// Files of a folder of the reference data, as paths in it.
fn list(folder: &str) -> Vec<String> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(support::reference_file(folder)).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty());
    names.iter().filter(|p| p.is_file()).map(|p| format!("{folder}/{}", p.file_name().unwrap().to_str().unwrap())).collect()
}

/// What the plain JSON reader of the test support sees; the order of keys counts too.
fn written(values: &[serde_json::Value]) -> Vec<String> {
    values.iter().map(|v| v.to_string()).collect()
}

#[test]
fn reference_jsonl_rows_are_the_lines() {
    for path in list("dataset").iter().filter(|p| p.ends_with(".jsonl")) {
        let source = open(path).unwrap();
        let text = support::text(path);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(source.len(), lines.len() as u64);
        for row in rows(&source) {
            assert_eq!(row.json.as_deref(), Ok(lines[row.row as usize - 1]), "{path}:{}", row.row);
        }
    }
}

#[test]
fn reference_layouts_equal_their_jsonl() {
    let mut compared = 0;
    for path in list("dataset").into_iter().chain(list("dataset/layouts")).filter(|p| p.ends_with(".parquet")) {
        let base = path.rsplit('/').next().unwrap().split('.').next().unwrap();
        let expected = written(&support::jsonl(&format!("dataset/{base}.jsonl")));
        assert_eq!(written(&values(&path)), expected, "{path}");
        // At random too, from the back, through the cache.
        let source = open(&path).unwrap();
        for (i, expected) in expected.iter().enumerate().rev() {
            let row = source.read(i as u64).unwrap();
            assert_eq!(row.row, i as u64 + 1);
            let value: serde_json::Value = serde_json::from_str(&row.json.unwrap()).unwrap();
            assert_eq!(value.to_string(), *expected, "{path}:{}", i + 1);
        }
        compared += 1;
    }
    assert!(compared >= 2);
}

/// What a line must become, found independently of the reader: by serde_json, which builds the value and so sees lone surrogates.
fn acceptable(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(line).is_ok()
}

#[test]
fn reference_dirty_lines_each_give_a_row_or_a_placed_error() {
    for path in list("dataset/dirty").iter().filter(|p| p.ends_with(".jsonl") && !p.ends_with("peer_results.jsonl")) {
        let mut bytes = support::bytes(path);
        if bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        let lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
        let source = open(path).unwrap();
        let rows = rows(&source);
        let blank = lines.iter().filter(|l| l.iter().all(u8::is_ascii_whitespace)).count();
        let trailing = usize::from(bytes.ends_with(b"\n"));
        assert_eq!(rows.len() + blank, lines.len(), "{path}: every line is a row or blank");
        assert_eq!(source.files()[0].blank_lines as usize, blank - trailing, "{path}");
        for row in &rows {
            let line = lines[row.row as usize - 1];
            match &row.json {
                Ok(json) => {
                    assert!(acceptable(line), "{path}:{} was accepted", row.row);
                    assert_eq!(json.as_bytes(), line.trim_ascii(), "{path}:{} passes through as written", row.row);
                }
                Err(bad) => {
                    assert!(!acceptable(line), "{path}:{} was refused: {bad}", row.row);
                    assert!(bad.to_string().contains(&format!("{}:{}: invalid", row.file, row.row)), "{bad}");
                    let utf8 = std::str::from_utf8(line).is_ok();
                    assert_eq!(bad.kind, if utf8 { BadKind::InvalidJson } else { BadKind::InvalidUtf8 }, "{bad}");
                    let place = if utf8 { "column " } else { "byte " };
                    assert!(bad.message.contains(place), "{bad}");
                }
            }
        }
    }
}

#[test]
fn reference_dirty_parquet_gives_rows_or_an_error_about_the_file() {
    for path in list("dataset/dirty").iter().filter(|p| p.ends_with(".parquet")) {
        let name = path.rsplit('/').next().unwrap();
        match open(path) {
            Ok(source) => {
                assert!(!name.contains("cut_short") && !name.contains("no_rows"), "{path} opened");
                let rows = rows(&source);
                assert_eq!(rows.len() as u64, source.len());
                for (i, row) in rows.iter().enumerate() {
                    let value: serde_json::Value = serde_json::from_str(row.json.as_ref().unwrap()).unwrap();
                    assert!(value.is_object() && row.row == i as u64 + 1);
                    assert!(!name.contains("no_problem_column") || value.get("problem").is_none());
                }
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(name), "{error}");
                assert!(name.contains("cut_short") || name.contains("no_rows"), "{error}");
                assert!(error.contains("cut short") || error.contains("has no rows"), "{error}");
            }
        }
    }
}

/// The rows of a dirty parquet file are those of the dirty jsonl as far as a table can hold them: every string of a parquet row is in the jsonl.
#[test]
fn reference_dirty_parquet_rows_come_from_the_jsonl() {
    for path in list("dataset/dirty").iter().filter(|p| p.ends_with("_dirty.parquet")) {
        let jsonl = path.replace(".parquet", ".jsonl");
        let source = open(&jsonl).unwrap();
        let known: Vec<serde_json::Value> =
            rows(&source).iter().filter_map(|r| r.json.as_ref().ok()).map(|j| serde_json::from_str(j).unwrap()).collect();
        let mut strings = std::collections::HashSet::new();
        fn collect<'a>(v: &'a serde_json::Value, into: &mut Vec<&'a str>) {
            match v {
                serde_json::Value::String(s) => into.push(s),
                serde_json::Value::Array(a) => a.iter().for_each(|v| collect(v, into)),
                serde_json::Value::Object(o) => o.values().for_each(|v| collect(v, into)),
                _ => {}
            }
        }
        for v in &known {
            let mut found = Vec::new();
            collect(v, &mut found);
            strings.extend(found);
        }
        let parquet = values(path);
        let (mut shared, mut total) = (0usize, 0usize);
        for v in &parquet {
            let mut found = Vec::new();
            collect(v, &mut found);
            total += found.len();
            shared += found.iter().filter(|s| strings.contains(**s)).count();
        }
        assert!(total > 0 && shared * 10 >= total * 9, "{path}: {shared} of {total} strings are known");
    }
}
