//! What is evened out before texts are compared.

/// See the settings of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normal {
    /// Upper and lower case are the same.
    pub case: bool,
    /// Runs of space are one space, none at the ends.
    pub whitespace: bool,
    /// ASCII punctuation is left out.
    pub punctuation: bool,
    /// The words a, an and the are left out.
    pub articles: bool,
}

impl Normal {
    /// A text as it is compared. In this order: case, punctuation, articles, space.
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if self.case {
            text = text.to_lowercase();
        }
        if self.punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.articles {
            text = without_articles(&text);
        }
        if self.whitespace {
            text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        text
    }
}

/// Each article that stands as a word becomes nothing; what surrounds it stays.
fn without_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let end = |word: &mut String, out: &mut String| {
        if !["a", "an", "the"].iter().any(|article| word.eq_ignore_ascii_case(article)) {
            out.push_str(word);
        }
        word.clear();
    };
    for c in text.chars() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
        } else {
            end(&mut word, &mut out);
            out.push(c);
        }
    }
    end(&mut word, &mut out);
    out
}
