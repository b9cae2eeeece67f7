//! An evaluation in JUnit's XML, which build servers show: a suite for each metric, a test case for each row.

use std::fmt::Write;

use serde_json::Value;
use trainer_eval::{Report, SampleResult};

/// Text of an XML document. Characters that XML cannot hold, however they are written, become U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\r' | '\t' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c if c < ' ' || ('\u{fffe}'..='\u{ffff}').contains(&c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// What became of a row: nothing to say, or an element's name and words.
fn verdict(sample: &SampleResult) -> Option<(&'static str, String)> {
    if let Some(why) = &sample.failed {
        return Some(("error", why.clone()));
    }
    let wrong: Vec<String> = sample
        .scores
        .iter()
        .filter(|s| s.value == Value::Bool(false))
        .map(|s| if s.explanation.is_empty() { s.name.clone() } else { format!("{}: {}", s.name, s.explanation) })
        .collect();
    if !wrong.is_empty() {
        return Some(("failure", wrong.join("; ")));
    }
    let unscored = sample.scores.iter().find(|s| s.value.is_null());
    unscored.map(|s| ("error", format!("{} could not be judged: {}", s.name, s.explanation)))
}

/// The report. Rows that a metric skipped are counted in the suite's properties.
pub fn report(report: &Report, samples: &[SampleResult]) -> String {
    let mut suites = String::new();
    let (mut all, mut all_failures, mut all_errors) = (0usize, 0usize, 0usize);
    for (metric, rows) in &report.rows {
        let (mut cases, mut failures, mut errors, mut tests) = (String::new(), 0usize, 0usize, 0usize);
        for sample in samples.iter().filter(|s| s.metric == *metric) {
            tests += 1;
            let name = sample.id.as_deref().unwrap_or(&sample.row);
            let _ = write!(cases, "    <testcase classname=\"{}\" name=\"{}\"", escape(metric), escape(name));
            match verdict(sample) {
                None => cases.push_str("/>\n"),
                Some((element, words)) => {
                    failures += usize::from(element == "failure");
                    errors += usize::from(element == "error");
                    let outputs = sample.outputs.join("\n");
                    let _ = writeln!(
                        cases,
                        ">\n      <{element} message=\"{}\">{}</{element}>\n    </testcase>",
                        escape(&words),
                        escape(&format!("{}\n{outputs}", sample.row))
                    );
                }
            }
        }
        let mut properties = String::new();
        let mut property = |name: &str, value: &str| {
            let _ = writeln!(properties, "      <property name=\"{}\" value=\"{}\"/>", escape(name), escape(value));
        };
        for (name, value) in report.metrics.iter().filter(|(name, _)| name.strip_prefix(metric).is_some_and(|n| n.starts_with('/'))) {
            property(name, &value.to_string());
        }
        property("rows", &rows.rows.to_string());
        property("bad", &rows.bad.to_string());
        for (reason, n) in &rows.skipped {
            property(&format!("skipped: {reason}"), &n.to_string());
        }
        let _ = writeln!(
            suites,
            "  <testsuite name=\"{}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\">\n    <properties>\n{properties}    </properties>\n{cases}  </testsuite>",
            escape(metric)
        );
        all += tests;
        all_failures += failures;
        all_errors += errors;
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"trainer eval\" tests=\"{all}\" failures=\"{all_failures}\" errors=\"{all_errors}\">\n{suites}</testsuites>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_always_xml() {
        assert_eq!(
            escape("<a href=\"x\">'&'</a>\n\u{1b}\u{0}\u{ffff}é"),
            "&lt;a href=&quot;x&quot;&gt;&apos;&amp;&apos;&lt;/a&gt;&#10;\u{fffd}\u{fffd}\u{fffd}é"
        );
    }
}
