use proptest::prelude::*;
use trainer_plugin_sdk::{Answer, Finish, Item, Metric, Plan, Request, Response, Value};

use crate::compare::{Rules, Verdict, compare};
use crate::{MathEqual, Settings};

fn verdict(a: &str, b: &str) -> Verdict {
    let verdict = compare(a, b, Rules::default());
    assert_eq!(compare(b, a, Rules::default()), verdict, "{b} | {a} and the other way");
    assert_eq!(compare(a, a, Rules::default()), Verdict::Equal, "{a}");
    verdict
}

#[test]
fn the_same_value_in_another_form() {
    for (a, b) in [
        ("14", " 14 "),
        ("14", "14.0"),
        ("14", "$14$"),
        ("14", "\\(14\\)"),
        ("14", "14."),
        ("-3", "−3"),
        ("+3", "3"),
        ("0.5", "\\frac{1}{2}"),
        ("0.5", ".5"),
        ("0.5", "1/2"),
        ("\\frac12", "\\dfrac{1}{2}"),
        ("\\frac{3}{6}", "\\tfrac12"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("2\\frac{1}{2}", "2.5"),
        ("50\\%", "0.5"),
        ("50%", "\\frac{1}{2}"),
        ("12.5\\%", "1/8"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        ("1,234.5", "1234.5"),
        ("\\$1,000", "1000"),
        ("3 \\cdot 4", "12"),
        ("2^{10}", "1024"),
        ("2^{-1}", "0.5"),
        ("1.5e3", "1500"),
        ("5!", "120"),
        ("|-3|", "3"),
        ("\\sqrt{16}", "4"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("\\sqrt8", "2\\sqrt2"),
        ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
        ("\\frac{1}{1+\\sqrt{2}}", "\\sqrt{2}-1"),
        ("\\sqrt[3]{54}", "3\\sqrt[3]{2}"),
        ("2^{1/3}", "\\sqrt[3]{2}"),
        ("\\sqrt{2}\\sqrt{3}", "\\sqrt{6}"),
        ("(1+\\sqrt{5})^2", "6+2\\sqrt{5}"),
        ("\\sqrt{-4}", "2i"),
        ("(1+i)^2", "2i"),
        ("\\frac{1}{i}", "-i"),
        ("\\frac{2\\pi}{4}", "\\frac{\\pi}{2}"),
        ("36\\pi", "36π"),
        ("36pi", "36\\pi"),
        ("(x+1)^2", "x^2+2x+1"),
        ("\\frac{x^2-1}{x-1}", "x+1"),
        ("2xy", "y\\cdot 2x"),
        ("x = 5", "5"),
        ("y=2x+1", "1+2x"),
        ("(1, 2)", "\\left(1,\\,2\\right)"),
        ("(\\frac12, 3)", "(0.5, 6/2)"),
        ("[2, 5)", "[2,5.0)"),
        ("(-\\infty, 3]", "(-∞,3]"),
        ("(-\\infty, 1) \\cup (2, \\infty)", "(2,\\infty)\\cup(-\\infty,1)"),
        ("\\{1, 2, 3\\}", "\\{3, 2, 1\\}"),
        ("1, 2", "2,1"),
        ("1 \\text{ and } 2", "2, 1"),
        ("x=1 \\text{ or } x=2", "x=2, x=1"),
        ("\\pm 3", "3, -3"),
        ("1 \\pm \\sqrt{2}", "1-\\sqrt2, 1+\\sqrt2"),
        ("5", "5\\text{ cm}"),
        ("5 cm", "5\\text{ cm}"),
        ("45^\\circ", "45°"),
        ("45^\\circ", "45"),
        ("\\ln 2", "\\ln{2}"),
        ("2\\ln 2", "\\ln 2 + \\ln(2)"),
        ("\\text{No solution}", "no solution"),
        ("\\text{(C)}", "\\text{(C)}"),
    ] {
        assert_eq!(verdict(a, b), Verdict::Equal, "{a} | {b}");
    }
}

#[test]
fn other_values() {
    for (a, b) in [
        ("14", "15"),
        ("1/3", "0.333"),
        ("1/3", "0.3333333333333333333"),
        ("0.1", "0.10000000000000000001"),
        ("50\\%", "50"),
        ("312", "3, 12"),
        ("1,234", "1235"),
        ("\\sqrt{2}", "1.41421356"),
        ("\\pi", "3.14159"),
        ("\\pi", "\\frac{22}{7}"),
        ("-2^2", "4"),
        ("(1, 2)", "(2, 1)"),
        ("(1, 2)", "[1, 2]"),
        ("(1, 2)", "(1, 2, 3)"),
        ("\\{1, 2\\}", "\\{1, 3\\}"),
        ("1, 2", "1"),
        ("\\pm 3", "3"),
        ("x+1", "x+2"),
        ("x", "y"),
        ("2i", "-2i"),
        ("5\\text{ cm}", "6\\text{ cm}"),
        ("(-\\infty, 3]", "(-\\infty, 3)"),
    ] {
        assert_eq!(verdict(a, b), Verdict::Different, "{a} | {b}");
    }
}

#[test]
fn what_cannot_be_told_is_not_told() {
    for (a, b) in [
        ("\\ln 4", "2\\ln 2"),
        ("\\sin(1)", "0.84"),
        ("5\\text{ cm}", "5\\text{ m}"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "1"),
        ("yes of course", "no"),
        ("1/0", "1"),
        ("\\sqrt{1+\\sqrt{2}}", "1.55"),
        ("x+y=3", "2x+2y=6"),
        ("x < 3", "x < 4"),
        ("1 2", "12"),
        // Two to the first times nothing, or the tenth power: TeX and people differ.
        ("2^10", "1024"),
        ("10^{40}", "10^{39}"),
        ("", "0"),
        ("(1", "1"),
        ("\\frac{1}", "1"),
        ("[1,2] \\cup [2,3]", "[1,3] \\cup [1,2]"),
    ] {
        assert_eq!(verdict(a, b), Verdict::Unknown, "{a} | {b}");
    }
    // A percent sign may be let be optional.
    let optional = Rules { percent_is_optional: true };
    assert_eq!(compare("50\\%", "50", optional), Verdict::Equal);
    assert_eq!(compare("50\\%", "0.5", optional), Verdict::Equal);
    assert_eq!(compare("50\\%", "5", optional), Verdict::Different);
}

#[test]
fn hostile_answers_end() {
    for text in [
        "(".repeat(900),
        "-".repeat(900),
        "{".repeat(900),
        "\\frac".repeat(190),
        "x^".repeat(400),
        format!("({}1)^{{64}}", "x+y+z+w+".repeat(3)),
        "9".repeat(400),
        "((((1+x)^{64})^{64})^{64})^{64}".to_owned(),
        "2^{2^{2^{2^{2^{2}}}}}".to_owned(),
        "\\sqrt{170141183460469231731687303715884105727}".to_owned(),
        "1e999".to_owned(),
        "1".repeat(1 << 20),
    ] {
        assert_eq!(verdict(&text, "1"), Verdict::Unknown, "{}", &text[..text.len().min(40)]);
    }
}

fn metric(settings: &str) -> MathEqual {
    MathEqual::new(serde_json::from_str::<Settings>(settings).unwrap()).unwrap()
}

fn answered(text: &str, finish: Finish) -> Response {
    let text = text.to_owned();
    Response::Answers(vec![Answer { raw: text.clone(), text, reasoning: String::new(), calls: Vec::new(), malformed: Vec::new(), finish }])
}

#[test]
fn rows_are_asked_and_scored() {
    let m = metric("{}");
    let row = r#"{"problem": "p", "expected_answer": 0.5}"#;
    assert!(matches!(m.prepare(row).unwrap(), Plan::Ask(Request::Generate(_))));
    for (row, pointer) in [(r#"{"expected_answer": "1"}"#, "/problem"), (r#"{"problem": "p"}"#, "/expected_answer")] {
        assert_eq!(m.prepare(row).unwrap_err().pointer.to_string(), pointer);
    }
    let score = |response| m.score(&Item { row: row.to_owned(), response }).remove(0);
    let samples = [
        score(answered("\\boxed{1} so \\boxed{\\frac{1}{2}}", Finish::Stop)),
        score(answered("\\boxed{2}", Finish::Stop)),
        score(answered("\\boxed{\\sin 3}", Finish::Stop)),
        score(answered("half", Finish::Length)),
        score(Response::Failed("too long".to_owned())),
    ];
    let values: Vec<&Value> = samples.iter().map(|s| &s.value).collect();
    assert_eq!(values, [&Value::Boolean(true), &Value::Boolean(false), &Value::Unscored, &Value::Boolean(false), &Value::Unscored]);
    assert_eq!(samples[0].explanation, "expected 0.5, found \\frac{1}{2}");
    assert_eq!(samples[2].explanation, "expected 0.5, found \\sin 3; whether they are equal cannot be told");
    assert_eq!(samples[3].explanation, "expected 0.5, found no \\boxed{} before the limit");
    let samples: Vec<_> = samples.into_iter().map(|s| vec![s]).collect();
    let sums = m.aggregate(&samples).unwrap();
    assert_eq!((sums[0].name.as_str(), sums[0].value), ("accuracy", 0.2));
    assert_eq!((sums[1].name.as_str(), sums[1].value, sums[1].higher_is_better), ("unscored_rate", 0.4, Some(false)));
}

/// Expressions as text, with their value at x = 2 where they have one.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0u32..60).prop_map(|n| n.to_string()),
        (0u32..60, 1u32..100).prop_map(|(n, d)| format!("{n}.{d}")),
        (1u32..20, 1u32..20).prop_map(|(n, d)| format!("\\frac{{{n}}}{{{d}}}")),
        (1u32..50).prop_map(|n| format!("\\sqrt{{{n}}}")),
        Just("x".to_owned()),
        Just("\\pi".to_owned()),
    ];
    leaf.prop_recursive(2, 8, 2, |inner| {
        (inner.clone(), inner, 0u32..4).prop_map(|(a, b, op)| match op {
            0 => format!("({a})+({b})"),
            1 => format!("({a})-({b})"),
            2 => format!("({a})({b})"),
            _ => format!("({a})^2"),
        })
    })
}

proptest! {
    #[test]
    fn a_fraction_is_its_decimal(n in -9999i64..9999, twos in 0u32..6, fives in 0u32..6) {
        let under = 2i64.pow(twos) * 5i64.pow(fives);
        // At most six decimals.
        let scaled = i128::from(n) * 1_000_000 / i128::from(under);
        let sign = if scaled < 0 { "-" } else { "" };
        let decimal = format!("{sign}{}.{:06}", scaled.abs() / 1_000_000, scaled.abs() % 1_000_000);
        let exact = i128::from(n) * 1_000_000 % i128::from(under) == 0;
        let expected = if exact { Verdict::Equal } else { Verdict::Different };
        prop_assert_eq!(verdict(&format!("{n}/{under}"), &decimal), expected);
        prop_assert_eq!(verdict(&format!("\\frac{{{n}}}{{{under}}}"), &decimal), expected);
    }

    #[test]
    fn every_expression_equals_itself_rearranged(a in expression(), b in expression()) {
        // Beyond the bounds it may not be told, but never is it different.
        for (left, right) in [
            (format!("({a})+({b})"), format!("({b})+({a})")),
            (format!("({a})({b})"), format!("({b})\\cdot({a})")),
            (format!("({a})-({b})"), format!("-(({b})-({a}))")),
            (format!("(({a})+({b}))^2"), format!("({a})^2+2({a})({b})+({b})^2")),
            (format!("(({a})+1)-1"), a.clone()),
        ] {
            prop_assert_ne!(verdict(&left, &right), Verdict::Different, "{} | {}", left, right);
        }
        prop_assert_ne!(verdict(&format!("({a})+1"), &a), Verdict::Equal);
    }

    #[test]
    fn roots_multiply(m in 1u32..400, n in 1u32..400) {
        prop_assert_eq!(verdict(&format!("\\sqrt{{{m}}}\\sqrt{{{n}}}"), &format!("\\sqrt{{{}}}", m * n)), Verdict::Equal);
        prop_assert_eq!(verdict(&format!("\\frac{{1}}{{\\sqrt{{{m}}}}}"), &format!("\\frac{{\\sqrt{{{m}}}}}{{{m}}}")), Verdict::Equal);
        prop_assert_eq!(verdict(&format!("\\frac{{1}}{{{n}+\\sqrt{{{m}}}}}"), &format!("\\frac{{{n}-\\sqrt{{{m}}}}}{{{n}^2-{m}}}")),
            if n * n == m { Verdict::Unknown } else { Verdict::Equal });
    }

    #[test]
    fn separators_do_not_count(n in 0u64..1_000_000_000_000) {
        let digits = n.to_string();
        let grouped: String = digits.char_indices().flat_map(|(i, c)| {
            let comma = i > 0 && (digits.len() - i) % 3 == 0;
            comma.then_some(',').into_iter().chain([c])
        }).collect();
        prop_assert_eq!(verdict(&digits, &grouped), Verdict::Equal);
        prop_assert_ne!(verdict(&grouped, &(n + 1).to_string()), Verdict::Equal);
    }

    /// Whatever a model writes, there is a verdict, the same both ways, and every text equals itself.
    #[test]
    fn any_text_is_compared(a in "[0-9x.,+*/^(){}=%\\\\ fracsqtpi-]{0,16}", b in "[0-9x.,+*/^(){}=%\\\\ fracsqtpi-]{0,16}") {
        verdict(&a, &b);
    }
}
