//! Calls as values.

use serde_json::{Number, Value};

use crate::case::Wanted;

/// The integers that every JSON reader takes exactly lie below this.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Whether two JSON values are equal: keys in any order, numbers by value (`1.0` is `1`).
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => number(a) == number(b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| equal(v, w))),
        _ => a == b,
    }
}

fn number(n: &Number) -> Number {
    match n.as_f64() {
        Some(x) if n.is_f64() && x.fract() == 0.0 && x.abs() < EXACT => Number::from(x as i64),
        _ => n.clone(),
    }
}

/// Whether the calls are those expected.
pub fn same_calls(expected: &[Wanted], made: &[Wanted], any_order: bool) -> bool {
    let same = |a: &Wanted, b: &Wanted| a.name == b.name && equal(&a.arguments, &b.arguments);
    if expected.len() != made.len() {
        return false;
    }
    if !any_order {
        return expected.iter().zip(made).all(|(a, b)| same(a, b));
    }
    // Equality of calls is an equivalence, so taking the first that fits never takes one that another needs.
    let mut left: Vec<&Wanted> = made.iter().collect();
    expected.iter().all(|e| left.iter().position(|m| same(e, m)).map(|at| left.swap_remove(at)).is_some())
}
