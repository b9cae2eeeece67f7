//! Line charts as SVG that needs nothing else: colours come from the page's variables, values for the pointer from `data-series`.

use std::fmt::Write;

/// Wider than any screen shows apart; longer series are thinned to it.
const MOST_POINTS: usize = 800;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 32.0;

/// Greater values are left out like infinite ones: sums and margins of them would overflow.
const GREATEST: f64 = 1e300;

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// The number of its colour.
    pub color: usize,
    /// Drawn pale, behind the others: the unsmoothed values.
    pub faint: bool,
    /// Step and value, by step.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Unique in the page.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Whether the value axis is logarithmic, where all values allow it.
    pub log: bool,
    /// Whether the value axis begins at 0.
    pub from_zero: bool,
}

/// Text as HTML and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // A page may not hold other control characters, and the eye does not miss them.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A number with about four digits.
pub fn number(x: f64) -> String {
    let size = x.abs();
    let text = match size {
        _ if x == 0.0 => return "0".to_owned(),
        s if !s.is_finite() => return "-".to_owned(),
        s if !(1e-3..1e6).contains(&s) => {
            let text = format!("{x:.2e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            return format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'));
        }
        s if s >= 1000.0 => return format!("{x:.0}"),
        s if s >= 100.0 => format!("{x:.1}"),
        s if s >= 1.0 => format!("{x:.3}"),
        _ => format!("{x:.4}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// An exponential moving average that does not begin at 0: what dashboards call smoothing, from 0 (none) to below 1.
pub fn smooth(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut norm) = (0.0, 0.0);
    points
        .iter()
        .map(|(x, y)| {
            sum = sum * weight + (1.0 - weight) * y;
            norm = norm * weight + (1.0 - weight);
            (*x, sum / norm)
        })
        .collect()
}

/// At most so many points that keep every peak: the least and the greatest of each stretch.
fn thin(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil((most / 2).max(1));
    let mut out = Vec::with_capacity(most + 2);
    for chunk in points.chunks(stretch) {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = chunk.iter().min_by(by).zip(chunk.iter().max_by(by));
        if let Some((low, high)) = ends {
            let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
            out.push(*first);
            if first.0 != second.0 {
                out.push(*second);
            }
        }
    }
    out
}

/// About five round numbers over a range.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if !(span > 0.0 && span.is_finite()) {
        return vec![low];
    }
    let rough = span / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..first + 12).map(|i| i as f64 * step).take_while(|t| *t <= high + step * 1e-9).collect()
}

impl Chart {
    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|s| s.points.is_empty())
    }

    /// A `figure` with the SVG in it.
    pub fn html(&self) -> String {
        let drawn: Vec<(&Series, Vec<(f64, f64)>)> = self
            .series
            .iter()
            .map(|s| {
                let drawable = |v: f64| v.abs() <= GREATEST;
                let points: Vec<_> = s.points.iter().copied().filter(|(x, y)| drawable(*x) && drawable(*y)).collect();
                (s, thin(&points, MOST_POINTS))
            })
            .collect();
        let all = || drawn.iter().flat_map(|(_, points)| points.iter());
        let bounds = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let (x0, x1) = bounds(&mut all().map(|p| p.0));
        let (mut y0, mut y1) = bounds(&mut all().map(|p| p.1));
        let title = escape(&self.title);
        if !x0.is_finite() || !y0.is_finite() {
            return format!(
                "<figure class=\"chart\" id=\"{}\"><figcaption>{title}</figcaption><p class=\"none\">nothing yet</p></figure>\n",
                escape(&self.id)
            );
        }
        let log = self.log && y0 > 0.0;
        if log {
            (y0, y1) = (y0.log10(), y1.log10());
        } else if self.from_zero {
            y0 = y0.min(0.0);
        }
        let margin = if y1 > y0 { (y1 - y0) * 0.05 } else { y1.abs().max(1e-9) * 0.1 };
        let (low, high) = (if self.from_zero && !log { y0 } else { y0 - margin }, y1 + margin);
        let wide = if x1 > x0 { x1 - x0 } else { 1.0 };
        let px = |x: f64| LEFT + (x - x0) / wide * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM);
        let scaled = |y: f64| if log { y.log10() } else { y };
        let mut svg = String::new();
        let last = |s: &Series| s.points.last().map_or_else(String::new, |p| format!("{} {}", s.name, number(p.1)));
        let spoken: Vec<String> = drawn.iter().filter(|(s, _)| !s.faint).map(|(s, _)| last(s)).collect();
        let label = escape(&format!("{}: steps {} to {}; last: {}", self.title, number(x0), number(x1), spoken.join(", ")));
        let _ = write!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
        for tick in ticks(low, high) {
            let y = py(tick);
            let text = if log { number(10f64.powf(tick)) } else { number(tick) };
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" class=\"y\">{text}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0
            );
        }
        for tick in ticks(x0, x0 + wide).into_iter().filter(|t| t.fract() == 0.0) {
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{}\" class=\"x\">{}</text>", px(tick), HEIGHT - 10.0, tick);
        }
        let mut order: Vec<_> = drawn.iter().collect();
        order.sort_by_key(|(s, _)| !s.faint);
        for (s, points) in order {
            let faint = if s.faint { " faint" } else { "" };
            if let [(x, y)] = points.as_slice() {
                let _ =
                    write!(svg, "<circle class=\"s{}{faint}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>", s.color % 8, px(*x), py(scaled(*y)));
                continue;
            }
            let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1} {:.1}", px(*x), py(scaled(*y)))).collect();
            let _ = write!(svg, "<path class=\"line s{}{faint}\" d=\"M{}\"/>", s.color % 8, path.join("L"));
        }
        svg.push_str("<path class=\"cross\" d=\"\"/></svg>");
        let legend: String = drawn
            .iter()
            .filter(|(s, _)| !s.faint)
            .map(|(s, _)| {
                format!(
                    "<li><i class=\"s{}\"></i>{} <b>{}</b></li>",
                    s.color % 8,
                    escape(&s.name),
                    s.points.last().map_or_else(String::new, |p| number(p.1))
                )
            })
            .collect();
        let data: Vec<_> =
            drawn.iter().map(|(s, points)| serde_json::json!({ "name": s.name, "faint": s.faint, "points": points })).collect();
        let frame =
            serde_json::json!({ "x0": x0, "x1": x0 + wide, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM });
        format!(
            "<figure class=\"chart\" id=\"{}\" tabindex=\"0\" data-frame=\"{}\" data-series=\"{}\"><figcaption>{title}</figcaption>{svg}<ul class=\"legend\">{legend}</ul><output></output></figure>\n",
            escape(&self.id),
            escape(&frame.to_string()),
            escape(&serde_json::Value::from(data).to_string()),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        let shown = |low, high| ticks(low, high).into_iter().map(number).collect::<Vec<_>>().join(" ");
        assert_eq!(shown(0.0, 30.0), "0 10 20 30");
        assert_eq!(shown(0.0037, 0.0379), "0.01 0.02 0.03");
        assert_eq!(shown(-1.0, 1.0), "-1 -0.5 0 0.5 1");
        assert_eq!(shown(0.0, 123_456.0), "0 25000 50000 75000 100000");
        assert_eq!(shown(5.0, 5.0), "5");
        assert_eq!(shown(0.0, 2e-4), "0 5e-5 1e-4 1.5e-4 2e-4");
        assert_eq!(number(-1.234e-7), "-1.23e-7");
    }

    #[test]
    fn smoothing_begins_at_the_first_value_and_thinning_keeps_peaks() {
        let flat = smooth(&[(1.0, 3.0), (2.0, 3.0), (3.0, 3.0)], 0.9);
        assert!(flat.iter().all(|p| (p.1 - 3.0).abs() < 1e-12), "{flat:?}");
        let mut points: Vec<_> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        points[70_001].1 = 9.0;
        let thinned = thin(&points, 800);
        assert!(thinned.len() <= 802 && thinned.contains(&(70_001.0, 9.0)), "{}", thinned.len());
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn values_at_the_end_of_the_range_do_not_overflow() {
        for ys in [[0.0, f64::MAX], [f64::MIN, f64::MAX], [0.0, -1e300], [5e-324, 1e300]] {
            for (log, from_zero) in [(false, false), (false, true), (true, false), (true, true)] {
                let points = vec![(0.0, ys[0]), (1.0, ys[1])];
                let series = vec![Series { name: "loss".into(), color: 1, faint: false, points }];
                let html = Chart { id: "a".into(), title: "t".into(), series, log, from_zero }.html();
                assert!(!html.contains("NaN") && !html.contains("inf"), "{ys:?} {html}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_breaks_out_of_the_page(title in ".{0,20}", name in ".{0,20}", ys in prop::collection::vec(any::<f64>(), 0..20), log in any::<bool>(), from_zero in any::<bool>()) {
            let points = ys.iter().enumerate().map(|(i, y)| (i as f64, *y)).collect();
            let series = vec![Series { name: format!("{name}<script>\"'"), color: 1, faint: false, points }];
            let html = Chart { id: "a".into(), title: format!("{title}</figure>"), series, log, from_zero }.html();
            prop_assert!(!html.contains("<script"));
            prop_assert_eq!(html.matches("</figure>").count(), 1);
            prop_assert!(!html.contains("NaN") && !html.contains("inf "), "{}", html);
        }
    }
}
