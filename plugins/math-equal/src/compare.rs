//! Whether two answers are the same.

use crate::answer::{Answer, Value, plain, readings};
use crate::exact::{Exact, Ratio};

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are equal.
    Equal,
    /// They are different.
    Different,
    /// It cannot be told.
    Unknown,
}

use Verdict::{Different, Equal, Unknown};

impl From<Option<bool>> for Verdict {
    fn from(equal: Option<bool>) -> Self {
        match equal {
            Some(true) => Equal,
            Some(false) => Different,
            None => Unknown,
        }
    }
}

/// How percent signs are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A percent sign that only one of two values has may also be left out: `50%` is then 1/2 and 50.
    pub percent_is_optional: bool,
}

/// Compares two answers in LaTeX or plain text.
pub fn compare(a: &str, b: &str, rules: Rules) -> Verdict {
    if squeezed(&plain(a)) == squeezed(&plain(b)) {
        return Equal;
    }
    let (ours, theirs) = (readings(a), readings(b));
    let verdicts: Vec<Verdict> = ours.iter().flat_map(|a| theirs.iter().map(move |b| answers(a, b, rules))).collect();
    match () {
        () if verdicts.contains(&Equal) => Equal,
        () if verdicts.is_empty() || verdicts.contains(&Unknown) => Unknown,
        () => Different,
    }
}

/// Without space, except between letters and digits, where it may mean something.
fn squeezed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if out.ends_with(char::is_alphanumeric) && word.starts_with(char::is_alphanumeric) {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

fn answers(a: &Answer, b: &Answer, rules: Rules) -> Verdict {
    match (a, b) {
        (Answer::Value(a), Answer::Value(b)) => values(a, b, rules),
        (Answer::Named(a, x), Answer::Named(b, y)) if a == b => answers(x, y, rules),
        (Answer::Named(_, x), Answer::Named(_, y)) => match answers(x, y, rules) {
            Equal => Unknown,
            other => other,
        },
        (Answer::Named(_, x), y) | (y, Answer::Named(_, x)) if !matches!(y, Answer::Equation(..)) => answers(x, y, rules),
        (Answer::Group(open, a, close), Answer::Group(o, b, c)) => match (open == o && close == c, in_order(a, b, rules)) {
            (true, verdict) => verdict,
            (false, _) => Different,
        },
        (Answer::Set(a), Answer::Set(b)) => in_any_order(a, b, rules),
        // Unions can be cut into parts in several ways.
        (Answer::Union(a), Answer::Union(b)) => match in_any_order(a, b, rules) {
            Equal => Equal,
            _ => Unknown,
        },
        (Answer::Equation(a, b), Answer::Equation(c, d)) => {
            let same = |x, y| answers(x, y, rules) == Equal;
            if same(a, c) && same(b, d) || same(a, d) && same(b, c) { Equal } else { Unknown }
        }
        (Answer::Words(a), Answer::Words(b)) if a == b => Equal,
        (Answer::Value(_) | Answer::Set(_), Answer::Group(..)) | (Answer::Group(..), Answer::Value(_) | Answer::Set(_)) => Different,
        (Answer::Value(_), Answer::Set(parts)) | (Answer::Set(parts), Answer::Value(_)) if parts.len() != 1 => Different,
        _ => Unknown,
    }
}

fn values(a: &Value, b: &Value, rules: Rules) -> Verdict {
    let hundredth = |exact: &Exact| exact.times(&Exact::number(Ratio::new(1, 100)?));
    let equal = |scale_a: bool, scale_b: bool| {
        let value = |v: &Value, scale: bool| if scale { hundredth(&v.exact) } else { Some(v.exact.clone()) };
        value(a, scale_a)?.equals(&value(b, scale_b)?)
    };
    let mut verdict = equal(a.percent, b.percent);
    if rules.percent_is_optional && a.percent != b.percent && verdict != Some(true) {
        verdict = equal(false, false);
    }
    match (verdict, &a.unit, &b.unit) {
        // Of functions only the names are known, so that two expressions may be equal unseen.
        (Some(false), ..) if a.opaque || b.opaque => Unknown,
        // Units can be converted, which is not done here.
        (_, Some(x), Some(y)) if x != y => Unknown,
        (verdict, ..) => verdict.into(),
    }
}

fn in_order(a: &[Answer], b: &[Answer], rules: Rules) -> Verdict {
    if a.len() != b.len() {
        return Different;
    }
    let verdicts: Vec<Verdict> = a.iter().zip(b).map(|(a, b)| answers(a, b, rules)).collect();
    match () {
        () if verdicts.contains(&Different) => Different,
        () if verdicts.contains(&Unknown) => Unknown,
        () => Equal,
    }
}

/// Each part has its own partner; equality tells which.
fn in_any_order(a: &[Answer], b: &[Answer], rules: Rules) -> Verdict {
    if a.len() != b.len() {
        return Different;
    }
    let mut left: Vec<&Answer> = b.iter().collect();
    let mut unknown = false;
    for part in a {
        let verdicts: Vec<Verdict> = left.iter().map(|other| answers(part, other, rules)).collect();
        match verdicts.iter().position(|v| *v == Equal) {
            Some(at) => {
                left.remove(at);
            }
            None if verdicts.contains(&Unknown) => unknown = true,
            None => return Different,
        }
    }
    if unknown { Unknown } else { Equal }
}
