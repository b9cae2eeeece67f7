//! Sources of every format against each other, and against files that are not what they should be.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use trainer_data::*;

fn open(path: impl AsRef<Path>) -> Result<Source, DataError> {
    Source::open(SourceSpec::paths("s", [path.as_ref().display().to_string()]))
}

fn write(name: &str, bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// Every row by iterating, checked equal to reading at random and to reading from the front.
fn all(source: &Source) -> Vec<Row> {
    let rows: Vec<Row> = source.rows().map(|r| r.unwrap()).collect();
    assert_eq!(source.len(), rows.len() as u64);
    for (i, row) in rows.iter().enumerate().rev() {
        assert_eq!(source.read(i as u64).unwrap(), *row);
    }
    assert!(source.read(rows.len() as u64).is_err());
    rows
}

fn json(rows: &[Row]) -> Vec<serde_json::Value> {
    rows.iter().map(|r| serde_json::from_str(r.json.as_ref().unwrap()).unwrap()).collect()
}

#[test]
fn json_passes_through_as_written() {
    let text = r#"{"z": 1.0, "a": 12345678901234567890, "e": 1E5, "u": "\u00e9"}"#;
    for (name, whole) in [
        ("a.jsonl", format!("\u{feff}{text}\r\n\n{text}")),
        ("a.json", format!("[\n{text} ,\n\n{text}]")),
        ("b.json", format!("{text}\n\n{text}")),
    ] {
        let (_dir, path) = write(name, whole);
        let rows = all(&open(&path).unwrap());
        assert!(rows.iter().all(|r| r.json.as_deref() == Ok(text)), "{name}");
        assert_eq!(rows.iter().map(|r| r.row).collect::<Vec<_>>(), if name == "a.json" { [2, 4] } else { [1, 3] }, "{name}");
    }
}

#[test]
fn csv_rows_are_objects_of_strings() {
    let (_dir, path) = write("a.csv", "\u{feff}q,\"a, b\"\r\n1,\"x\ny\"\r\n\n2\n3,\"say \"\"hi\"\"\"\n");
    let rows = all(&open(&path).unwrap());
    assert_eq!(rows[0].json.as_deref(), Ok(r#"{"q":"1","a, b":"x\ny"}"#));
    assert_eq!((rows[0].row, rows[1].row, rows[2].row), (2, 5, 6));
    let bad = rows[1].json.as_ref().unwrap_err();
    assert!(bad.to_string().contains("a.csv:5: invalid record: 1 fields where the header has 2"), "{bad}");
    assert_eq!(rows[2].json.as_deref(), Ok(r#"{"q":"3","a, b":"say \"hi\""}"#));
    let (_dir, path) = write("a.tsv", "q\ta\n1\t2,3\n");
    assert_eq!(json(&all(&open(&path).unwrap())), [serde_json::json!({ "q": "1", "a": "2,3" })]);
    let (_dir, path) = write("d.csv", "q,q\n1,2\n");
    assert!(open(&path).unwrap_err().to_string().contains("two columns are called `q`"));
    let (_dir, path) = write("e.csv", "q,a\n");
    assert!(open(&path).unwrap_err().to_string().contains("has no rows"));
}

#[test]
fn folders_join_files_and_keep_provenance() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b.jsonl"), "{\"n\": 2}\n{\"n\": 3}\n").unwrap();
    std::fs::write(dir.path().join("a.json"), "[]").unwrap();
    std::fs::write(dir.path().join("c.csv"), "n\n4\n").unwrap();
    let source = open(dir.path()).unwrap();
    let rows = all(&source);
    let places: Vec<(bool, u64)> = rows.iter().map(|r| (r.file.ends_with("b.jsonl"), r.row)).collect();
    assert_eq!(places, [(true, 1), (true, 2), (false, 2)]);
    let sums: Vec<&str> = source.files().iter().map(|f| f.sha256.as_str()).collect();
    // The SHA-256 of `[]`, as sha256sum prints it.
    assert_eq!(sums[0], "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945");
    assert!(sums.iter().all(|s| s.len() == 64));
}

#[test]
fn embedded_equals_the_file() {
    let bytes: &'static [u8] = b"{\"a\": 1}\n\n{\"a\": 2}\n";
    let (_dir, path) = write("x.jsonl", bytes);
    let (file, inside) = (open(&path).unwrap(), Source::open(SourceSpec::embedded("s", "x.jsonl", bytes)).unwrap());
    assert_eq!(json(&all(&file)), json(&all(&inside)));
    assert_eq!(file.files()[0].sha256, inside.files()[0].sha256);
    assert_eq!(inside.files()[0].blank_lines, 1);
}

#[test]
fn broken_files_are_named() {
    for (name, bytes, words) in [
        ("a.parquet", &b"PAR1 not really PAR1"[..], "is not a readable parquet file"),
        ("b.parquet", b"", "the file is empty"),
        ("c.json", b"[{\"a\": 1},\n{\"a\": ", "line 2: the row that begins here is never closed"),
        ("d.json", b"[{}", "never closed"),
        ("e.jsonl", b"\n\n", "has no rows"),
        ("f.txt", b"{}", "the ending tells no format"),
        ("g.csv", b"a,b\n\"1,2\n", "line 2: a quoted field"),
    ] {
        let (_dir, path) = write(name, bytes);
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("source `s`"), "{name}: {error}");
    }
    assert!(open("/nowhere/at/all.jsonl").unwrap_err().to_string().contains("/nowhere/at/all.jsonl"));
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let (_dir, path) = write("a.jsonl", "{\"a\": 1}\n{\"a\": 2}\n");
    let source = open(&path).unwrap();
    std::fs::write(&path, "{}").unwrap();
    assert!(source.read(1).unwrap_err().to_string().contains("shorter"));
}

proptest::proptest! {
    /// Any bytes under any ending: rows or errors, never a panic, and the same rows at random as from the front.
    #[test]
    fn any_bytes(bytes in "[\\x00-\\x7fé\u{feff}]{0,60}", cut in 0usize..60, ending in 0usize..4) {
        let name = ["x.jsonl", "x.json", "x.csv", "x.parquet"][ending];
        let mut bytes = bytes.into_bytes();
        bytes.truncate(cut);
        let (_dir, path) = write(name, &bytes);
        if let Ok(source) = open(&path) { all(&source); }
    }
}
