//! A preview as one page that needs nothing else: no script, no file beside it, nothing from a network.

use std::fmt::Write;

use super::report::{Packing, Preview, RowView, SampleView, TokenView};

const STYLE: &str = include_str!("page.css");

/// The page.
pub fn page(preview: &Preview) -> String {
    let mut out = String::new();
    // Should something slip through the escaping, the page still may load and run nothing.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>Preview</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>What training will see</h1>\n"
    );
    let _ = writeln!(
        out,
        "<p>Model {}, template {}, train_on {}, max_seq_length {} (longer ones: {}). trainer {}.</p>",
        escape(&preview.model),
        escape(&preview.template),
        escape(&preview.train_on),
        preview.max_seq_length,
        escape(&preview.too_long),
        preview.trainer
    );
    out.push_str(
        "<p class=\"legend\">Tokens: <span class=\"t on\">learned</span> <span class=\"t part\">learned with another weight than 1</span> \
         <span class=\"t\">context only</span> <span class=\"t cut\">cut off</span>. Hover over a token, or open the table below a text.</p>\n",
    );
    if !preview.warnings.is_empty() {
        out.push_str("<h2>Warnings</h2>\n<ul class=\"warnings\">\n");
        for warning in &preview.warnings {
            let place = warning.row.as_ref().map(|r| format!("<b>{}</b>: ", escape(r))).unwrap_or_default();
            let _ = writeln!(out, "<li>{place}{} <code>{}</code></li>", escape(&warning.message), warning.kind);
        }
        out.push_str("</ul>\n");
    }
    for row in &preview.rows {
        row_part(&mut out, row);
    }
    if let Some(packing) = &preview.packing {
        packing_part(&mut out, packing);
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn row_part(out: &mut String, row: &RowView) {
    let draw = row.draw.map_or_else(|| "Row".to_owned(), |d| format!("Draw {d}"));
    let _ = writeln!(out, "<section>\n<h2>{draw}: {}:{} <small>source {}</small></h2>", escape(&row.file), row.row, escape(&row.source));
    if let Some(reason) = &row.reason {
        let _ = writeln!(out, "<p class=\"warn\">{}: {}</p>", row.outcome, escape(reason));
    }
    for sample in &row.samples {
        sample_part(out, sample, row);
    }
    out.push_str("</section>\n");
}

fn role(row: &RowView, token: &TokenView) -> String {
    token.message.map_or_else(
        || "template".to_owned(),
        |m| {
            let role = usize::try_from(m).ok().and_then(|m| row.messages.get(m)).map_or("", |m| m.role.as_str());
            format!("{m} {role}")
        },
    )
}

fn sample_part(out: &mut String, sample: &SampleView, row: &RowView) {
    let name = sample.index.map_or_else(|| "Sample".to_owned(), |i| format!("Sample {i}"));
    let _ = writeln!(
        out,
        "<h3>{name}: {} tokens, {} of them targets, weight {}{}</h3>",
        sample.length,
        sample.targets,
        sample.target_weight,
        sample.left_out.as_ref().map(|r| format!(", <span class=\"warn\">left out: {}</span>", escape(r))).unwrap_or_default()
    );
    out.push_str("<pre class=\"text\">");
    for (i, token) in sample.tokens.iter().enumerate() {
        let text = match &token.bytes {
            Some(bytes) => format!("\u{27e8}{bytes}\u{27e9}"),
            None => escape(&token.text),
        };
        let title = format!("token {i}, id {}, weight {}, segment {}, message {}", token.id, token.weight, token.segment, role(row, token));
        let _ = write!(out, "<span class=\"t{}\" title=\"{}\">{text}</span>", class(token), escape(&title));
    }
    out.push_str("</pre>\n<details><summary>Every token</summary>\n<table>\n<tr><th>token</th><th>id</th><th>weight</th><th>segment</th><th>message</th><th>text</th></tr>\n");
    for (i, token) in sample.tokens.iter().enumerate() {
        let text = token.bytes.as_ref().map_or_else(|| escape(&format!("{:?}", token.text)), |b| format!("bytes {b}"));
        let weight = if token.kept { token.weight.to_string() } else { "cut off".to_owned() };
        let _ = writeln!(
            out,
            "<tr class=\"r{}\"><td>{i}</td><td>{}</td><td>{weight}</td><td>{}</td><td>{}</td><td><code>{text}</code></td></tr>",
            class(token),
            token.id,
            token.segment,
            escape(&role(row, token))
        );
    }
    out.push_str("</table>\n</details>\n");
}

fn class(token: &TokenView) -> &'static str {
    match token.weight {
        _ if !token.kept => " cut",
        w if w <= 0.0 => "",
        w if (w - 1.0).abs() < 1e-6 => " on",
        _ => " part",
    }
}

fn packing_part(out: &mut String, packing: &Packing) {
    let holds = packing.max_tokens.map_or_else(|| "one sample each".to_owned(), |n| format!("up to {n} tokens each"));
    let _ = writeln!(
        out,
        "<section>\n<h2>Packing</h2>\n<p>The first {} of a step's {} samples as micro-batches, {holds}.</p>\n<table>\n\
         <tr><th>micro-batch</th><th>tokens</th><th>samples (tokens)</th></tr>",
        packing.samples, packing.samples_per_step
    );
    for (i, batch) in packing.batches.iter().enumerate() {
        let parts: Vec<String> = batch.samples.iter().zip(&batch.lengths).map(|(s, l)| format!("{s} ({l})")).collect();
        let _ = writeln!(out, "<tr><td>{i}</td><td>{}</td><td>{}</td></tr>", batch.tokens, parts.join(", "));
    }
    out.push_str("</table>\n</section>\n");
}

/// Text that is text wherever it stands in a page.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // A page may not hold these, not even as references.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn markup_in_data_is_text() {
        assert_eq!(escape("<b a='x' c=\"y\">&\u{0}\r\n"), "&lt;b a=&#39;x&#39; c=&quot;y&quot;&gt;&amp;\u{fffd}\u{fffd}\n");
    }
}
