//! Answers as they are typeset: values, lists, tuples and intervals, equations, words.
//!
//! The reader takes LaTeX and plain text, character by character. What it does not understand it refuses, so that nothing is judged that was
//! not read.

use crate::exact::{Exact, Ratio};

/// The longest answer that is read.
const MAX_LENGTH: usize = 1000;
/// The deepest nesting that is read.
const MAX_DEPTH: u32 = 40;

/// An answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A number or expression.
    Value(Value),
    /// Parts in order between brackets: a tuple or an interval.
    Group(char, Vec<Answer>, char),
    /// Parts whose order does not matter: a set, a list without brackets, or the two values of `±`.
    Set(Vec<Answer>),
    /// Parts joined by `∪`.
    Union(Vec<Answer>),
    /// What a symbol is equal to.
    Named(String, Box<Answer>),
    /// Any other equation.
    Equation(Box<Answer>, Box<Answer>),
    /// Words.
    Words(String),
}

/// A number or expression.
#[derive(Clone, Debug)]
pub struct Value {
    /// The value, without a percent sign.
    pub exact: Exact,
    /// It holds functions, such as a logarithm, of which only the name is known.
    pub opaque: bool,
    /// It is followed by a percent sign.
    pub percent: bool,
    /// What it is a number of.
    pub unit: Option<String>,
}

impl From<Exact> for Value {
    fn from(exact: Exact) -> Self {
        Self { exact, opaque: false, percent: false, unit: None }
    }
}

/// The readings of a text: commas between groups of three digits may separate thousands or the parts of a list.
pub fn readings(text: &str) -> Vec<Answer> {
    let plain = plain(text);
    if plain.chars().count() > MAX_LENGTH {
        return Vec::new();
    }
    let read = |thousands: bool| {
        let one = |minus: bool| Reader::new(&plain, thousands, minus).whole();
        let (plus, signs) = one(false)?;
        Some(if signs { Answer::Set(vec![plus, one(true)?.0]) } else { plus })
    };
    let mut readings: Vec<Answer> = read(true).into_iter().collect();
    if has_thousands(&plain) || readings.is_empty() {
        readings.extend(read(false));
    }
    readings
}

fn has_thousands(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    (1..bytes.len()).any(|i| bytes.get(i) == Some(&b',') && digit(i - 1) && digit(i + 1))
}

/// The text with one way to write each thing, and without what is only for the eye.
pub fn plain(text: &str) -> String {
    let mut text = text.trim().to_owned();
    loop {
        let inner = [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")]
            .iter()
            .find_map(|(open, close)| text.strip_prefix(open)?.strip_suffix(close).map(|t| t.trim().to_owned()));
        match inner {
            Some(inner) => text = inner,
            None => break,
        }
    }
    if let Some(sentence) = text.strip_suffix('.') {
        text = sentence.to_owned();
    }
    for (from, to) in [
        ("\\left", ""),
        ("\\right", ""),
        ("\\displaystyle", " "),
        ("\\!", ""),
        ("{,}", ","),
        ("\\,", " "),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("~", " "),
        ("\\qquad", " "),
        ("\\quad", " "),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
        ("\\$", ""),
        ("$", ""),
        ("\\%", "%"),
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("\\div", "/"),
        ("×", "*"),
        ("·", "*"),
        ("÷", "/"),
        ("−", "-"),
        ("–", "-"),
        ("^{\\circ}", "°"),
        ("^\\circ", "°"),
        ("\\degree", "°"),
        ("\\lbrace", "\\{"),
        ("\\rbrace", "\\}"),
        ("\\infty", "∞"),
        ("\\cup", "∪"),
        ("\\pm", "±"),
        ("\\mp", "∓"),
        ("\\pi", "π"),
        ("\\dots", "…"),
        ("\\ldots", "…"),
    ] {
        text = text.replace(from, to);
    }
    text.trim().to_owned()
}

/// Names of functions whose values are not known exactly.
const FUNCTIONS: [&str; 16] =
    ["arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "lg", "exp"];
/// Units of two letters; of more letters any word is one, of one letter none.
const UNITS: [&str; 16] = ["cm", "mm", "km", "dm", "kg", "mg", "ml", "mL", "ft", "in", "yd", "mi", "hr", "kJ", "Hz", "cc"];

struct Reader<'t> {
    text: &'t str,
    at: usize,
    thousands: bool,
    /// Whether `±` is read as minus.
    minus: bool,
    signs: bool,
    opaque: bool,
    depth: u32,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str, thousands: bool, minus: bool) -> Self {
        Self { text, at: 0, thousands, minus, signs: false, opaque: false, depth: 0 }
    }

    /// The whole text as an answer, and whether there was a `±` in it.
    fn whole(mut self) -> Option<(Answer, bool)> {
        let answer = match self.words_only() {
            Some(words) => words,
            None => self.list()?,
        };
        self.space();
        self.rest().is_empty().then_some((answer, self.signs))
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take(&mut self, word: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }

    /// Runs a part one level deeper.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.depth += 1;
        let result = if self.depth > MAX_DEPTH { None } else { read(self) };
        self.depth -= 1;
        result
    }

    /// Words and nothing else, in `\text{}` or plain.
    fn words_only(&mut self) -> Option<Answer> {
        let start = self.at;
        let words = match self.text_command() {
            Some(words) => words,
            None => {
                let words = self.rest().trim();
                let letters = words.chars().all(|c| c.is_alphabetic() || c == ' ' || c == '\'');
                let word = words.split(' ').any(|w| w.chars().count() > 3) || words.split(' ').count() > 2;
                let known = words.split(' ').any(|w| FUNCTIONS.contains(&w) || w == "sqrt");
                self.at = self.text.len();
                if letters && word && !known { words.to_owned() } else { String::new() }
            }
        };
        self.space();
        if words.is_empty() || !self.rest().is_empty() {
            self.at = start;
            return None;
        }
        Some(Answer::Words(words.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    /// `\text{...}` and its like.
    fn text_command(&mut self) -> Option<String> {
        self.space();
        let start = self.at;
        if !["\\text{", "\\mathrm{", "\\textbf{", "\\mbox{", "\\mathbf{", "\\textit{"].iter().any(|c| self.take(c)) {
            return None;
        }
        let words = self.rest().split_once('}').map(|(words, _)| words.to_owned());
        match words {
            Some(words) if !words.contains(['{', '\\']) => {
                self.at += words.len() + 1;
                Some(words.trim().to_owned())
            }
            _ => {
                self.at = start;
                None
            }
        }
    }

    /// Items between commas, or between `and` and `or`.
    fn list(&mut self) -> Option<Answer> {
        let mut items = vec![self.item()?];
        while self.separator() {
            items.push(self.item()?);
        }
        if items.len() == 1 { items.pop() } else { Some(Answer::Set(items)) }
    }

    fn separator(&mut self) -> bool {
        let comma = self.take(",") || self.take(";");
        let start = self.at;
        let word = match self.text_command() {
            Some(word) => matches!(word.as_str(), "and" | "or" | ", and" | ", or"),
            None => self.take("and ") || self.take("or "),
        };
        if !word {
            self.at = start;
        }
        comma || word
    }

    /// A union, or an equation.
    fn item(&mut self) -> Option<Answer> {
        let start = self.at;
        let left = self.union()?;
        let name = self.text.get(start..self.at)?.trim();
        if !self.take("=") {
            return Some(left);
        }
        let right = self.union()?;
        if name.chars().count() == 1 && name.chars().all(char::is_alphabetic) {
            return Some(Answer::Named(name.to_owned(), Box::new(right)));
        }
        Some(Answer::Equation(Box::new(left), Box::new(right)))
    }

    fn union(&mut self) -> Option<Answer> {
        let mut parts = vec![self.measured()?];
        while self.take("∪") {
            parts.push(self.measured()?);
        }
        if parts.len() == 1 { parts.pop() } else { Some(Answer::Union(parts)) }
    }

    /// A value with its unit, or a group.
    fn measured(&mut self) -> Option<Answer> {
        let outer = std::mem::take(&mut self.opaque);
        let answer = self.sum()?;
        let opaque = std::mem::replace(&mut self.opaque, outer);
        let Answer::Value(mut value) = answer else { return Some(answer) };
        value.opaque |= opaque;
        value.percent = self.take("%");
        value.unit = self.unit();
        Some(Answer::Value(value))
    }

    fn unit(&mut self) -> Option<String> {
        let mut unit = String::new();
        if self.take("°") {
            unit.push('°');
        }
        loop {
            let start = self.at;
            let word = match self.text_command() {
                Some(word) if matches!(word.as_str(), "and" | "or") => {
                    self.at = start;
                    break;
                }
                Some(word) => word,
                None => match self.word() {
                    Some(word) if !matches!(word.as_str(), "and" | "or") => word,
                    _ => {
                        self.at = start;
                        break;
                    }
                },
            };
            unit.push_str(&word.to_lowercase());
            // Square and cubic units.
            for power in ["^2", "^{2}", "²", "^3", "^{3}", "³"] {
                if self.take(power) {
                    unit.push(if power.contains(['2', '²']) { '2' } else { '3' });
                }
            }
        }
        (!unit.is_empty()).then_some(unit)
    }

    /// A word that is no product of symbols.
    fn word(&mut self) -> Option<String> {
        self.space();
        let word: String = self.rest().chars().take_while(|c| c.is_alphabetic()).collect();
        if is_word(&word) {
            self.at += word.len();
            return Some(word);
        }
        None
    }

    fn sum(&mut self) -> Option<Answer> {
        let first = self.product()?;
        let Answer::Value(Value { exact: mut sum, .. }) = first else { return Some(first) };
        loop {
            let minus = if self.take("+") {
                false
            } else if self.take("-") {
                true
            } else if self.take("±") {
                self.signs = true;
                self.minus
            } else if self.take("∓") {
                self.signs = true;
                !self.minus
            } else {
                return Some(Answer::Value(sum.into()));
            };
            let Answer::Value(Value { exact, .. }) = self.product()? else { return None };
            sum = if minus { sum.minus(&exact)? } else { sum.plus(&exact)? };
        }
    }

    fn product(&mut self) -> Option<Answer> {
        let first = self.signed()?;
        let Answer::Value(Value { exact: mut product, .. }) = first else { return Some(first) };
        loop {
            let divide = if self.take("*") {
                false
            } else if self.take("/") {
                true
            } else if self.factor_follows() {
                let Answer::Value(Value { exact, .. }) = self.power()? else { return None };
                product = product.times(&exact)?;
                continue;
            } else {
                return Some(Answer::Value(product.into()));
            };
            let Answer::Value(Value { exact, .. }) = self.signed()? else { return None };
            product = if divide { product.over(&exact)? } else { product.times(&exact)? };
        }
    }

    /// Whether what comes next is multiplied without a sign.
    fn factor_follows(&mut self) -> bool {
        self.space();
        match self.peek() {
            Some('(' | '{' | 'π' | '√') => true,
            Some('\\') => {
                let known = |c: &str| self.rest().starts_with(c);
                known("\\frac") || known("\\sqrt") || self.function().is_some() || self.greek().is_some()
            }
            Some(c) if c.is_alphabetic() => {
                let word: String = self.rest().chars().take_while(|c| c.is_alphabetic()).collect();
                !is_word(&word) && !matches!(word.as_str(), "and" | "or")
            }
            _ => false,
        }
    }

    fn signed(&mut self) -> Option<Answer> {
        let minus = if self.take("+") {
            false
        } else if self.take("-") {
            true
        } else if self.take("±") {
            self.signs = true;
            self.minus
        } else {
            return self.power();
        };
        let Answer::Value(Value { exact, .. }) = self.deeper(Self::signed)? else { return None };
        Some(Answer::Value(if minus { exact.negated()? } else { exact }.into()))
    }

    fn power(&mut self) -> Option<Answer> {
        let base = self.primary()?;
        let Answer::Value(Value { exact: mut base, .. }) = base else { return Some(base) };
        while self.take("!") {
            base = base.factorial()?;
        }
        if self.take("^") {
            let exponent = match self.deeper(Self::argument)? {
                Argument::Group(exact) | Argument::Digit(exact) => exact,
            };
            base = base.power(&exponent)?;
        }
        for (sign, exponent) in [("²", 2), ("³", 3)] {
            if self.take(sign) {
                base = base.power(&Exact::whole(exponent))?;
            }
        }
        Some(Answer::Value(base.into()))
    }

    /// What a command takes: a group in braces, or one digit, letter or command.
    fn argument(&mut self) -> Option<Argument> {
        self.space();
        match self.peek()? {
            '{' => {
                self.at += 1;
                let exact = self.value()?;
                self.take("}").then_some(Argument::Group(exact))
            }
            digit @ '0'..='9' => {
                self.at += 1;
                Some(Argument::Digit(Exact::whole(i128::from(digit.to_digit(10)?))))
            }
            '-' => {
                self.at += 1;
                let (Argument::Group(exact) | Argument::Digit(exact)) = self.deeper(Self::argument)?;
                Some(Argument::Group(exact.negated()?))
            }
            _ => match self.primary()? {
                Answer::Value(Value { exact, .. }) => Some(Argument::Group(exact)),
                _ => None,
            },
        }
    }

    fn argument_value(&mut self) -> Option<Exact> {
        match self.deeper(Self::argument)? {
            Argument::Group(exact) | Argument::Digit(exact) => Some(exact),
        }
    }

    /// An expression.
    fn value(&mut self) -> Option<Exact> {
        match self.deeper(Self::sum)? {
            Answer::Value(Value { exact, .. }) => Some(exact),
            _ => None,
        }
    }

    fn primary(&mut self) -> Option<Answer> {
        self.space();
        let value = |exact: Exact| Some(Answer::Value(exact.into()));
        match self.peek()? {
            '0'..='9' | '.' => self.number(),
            open @ ('(' | '[') => self.deeper(|r| r.group(open)),
            '{' => {
                self.at += 1;
                let exact = self.value()?;
                self.take("}").then(|| value(exact))?
            }
            '|' => {
                self.at += 1;
                let inner = self.value()?;
                let number = inner.as_number().filter(|_| self.take("|"))?;
                value(if number < Ratio::whole(0) { inner.negated()? } else { inner })
            }
            'π' => {
                self.at += 'π'.len_utf8();
                value(Exact::symbol("π"))
            }
            '∞' => {
                self.at += '∞'.len_utf8();
                value(Exact::symbol("∞"))
            }
            '√' => {
                self.at += '√'.len_utf8();
                let radicand = match self.peek()? {
                    '0'..='9' => match self.number()? {
                        Answer::Value(v) => v.exact,
                        _ => return None,
                    },
                    _ => self.argument_value()?,
                };
                value(radicand.root(2)?)
            }
            '\\' => self.command(),
            c if c.is_alphabetic() => self.letters(),
            _ => None,
        }
    }

    /// A number, and a fraction right after a whole one: a mixed number.
    fn number(&mut self) -> Option<Answer> {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole = digits(self.rest());
        let mut text = self.rest().get(..whole)?.to_owned();
        self.at += whole;
        // Groups of three digits, after one of one to three.
        while self.thousands && (1..=3).contains(&whole) && self.rest().starts_with(',') && digits(self.rest().get(1..)?) == 3 {
            text.push_str(self.rest().get(1..4)?);
            self.at += 4;
        }
        let is_whole = !self.rest().starts_with('.');
        let mut decimals = 0;
        if !is_whole {
            let count = digits(self.rest().get(1..)?);
            if count == 0 && whole == 0 {
                return None;
            }
            text.push_str(self.rest().get(1..=count)?);
            self.at += 1 + count;
            decimals = count;
        }
        let mut exponent = 0i32;
        if let Some(power) = self.rest().strip_prefix(['e', 'E']) {
            let sign = power.len() - power.trim_start_matches(['+', '-']).len();
            let count = digits(power.get(sign..)?);
            if sign <= 1 && (1..=3).contains(&count) {
                exponent = power.get(..sign + count)?.parse().ok()?;
                self.at += 1 + sign + count;
            }
        }
        let ten = |n: u32| 10i128.checked_pow(n);
        let shift = exponent.checked_sub(i32::try_from(decimals).ok()?)?;
        let digits: i128 = text.parse().ok()?;
        let number = if shift >= 0 {
            Ratio::whole(digits.checked_mul(ten(shift.unsigned_abs())?)?)
        } else {
            Ratio::new(digits, ten(shift.unsigned_abs())?)?
        };
        let exact = Exact::number(number);
        if is_whole && exponent == 0 {
            let start = self.at;
            if let Some(fraction) = self.plain_fraction() {
                return Some(Answer::Value(exact.plus(&fraction)?.into()));
            }
            self.at = start;
        }
        Some(Answer::Value(exact.into()))
    }

    /// `\frac` of two whole numbers.
    fn plain_fraction(&mut self) -> Option<Exact> {
        if !self.take("\\frac") {
            return None;
        }
        let (over, under) = (self.argument_value()?, self.argument_value()?);
        let whole = |exact: &Exact| exact.as_number()?.as_whole();
        let (n, d) = (whole(&over)?, whole(&under)?);
        (0 < n && n < d).then(|| over.over(&under))?
    }

    /// What stands in brackets: an expression, or parts between commas.
    fn group(&mut self, open: char) -> Option<Answer> {
        self.at += open.len_utf8();
        let mut parts = vec![self.union()?];
        while self.take(",") || self.take(";") {
            parts.push(self.union()?);
        }
        let close = if self.take(")") { ')' } else { self.take("]").then_some(']')? };
        match (parts.len(), open, close) {
            (1, '(', ')') | (1, '[', ']') => parts.pop(),
            (1, ..) => None,
            _ => Some(Answer::Group(open, parts, close)),
        }
    }

    fn command(&mut self) -> Option<Answer> {
        let value = |exact: Exact| Some(Answer::Value(exact.into()));
        if self.take("\\frac") {
            let (over, under) = (self.argument_value()?, self.argument_value()?);
            return value(over.over(&under)?);
        }
        if self.take("\\sqrt") {
            let mut degree = 2;
            if self.take("[") {
                let written = self.value()?.as_number()?.as_whole()?;
                degree = u32::try_from(written).ok().filter(|d| *d >= 2)?;
                if !self.take("]") {
                    return None;
                }
            }
            return value(self.argument_value()?.root(degree)?);
        }
        if self.take("\\{") {
            let mut parts = vec![self.deeper(Self::item)?];
            while self.take(",") || self.take(";") {
                parts.push(self.deeper(Self::item)?);
            }
            return self.take("\\}").then_some(Answer::Set(parts));
        }
        if let Some(name) = self.function() {
            self.at += 1 + name.len();
            return self.application(name);
        }
        let name = self.greek()?;
        self.at += 1 + name.len();
        self.subscripted(name)
    }

    /// The function that a command names.
    fn function(&self) -> Option<&'static str> {
        let name = self.rest().strip_prefix('\\')?;
        FUNCTIONS.into_iter().find(|f| name.starts_with(f))
    }

    /// The letter that a command names.
    fn greek(&self) -> Option<&'t str> {
        const LETTERS: [&str; 14] =
            ["alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "rho", "sigma", "tau", "phi", "omega", "ell"];
        let name = self.rest().strip_prefix('\\')?;
        let length = name.bytes().take_while(u8::is_ascii_alphabetic).count();
        name.get(..length).filter(|n| LETTERS.contains(n))
    }

    /// A function's name with what it is applied to, as one symbol.
    fn application(&mut self, name: &str) -> Option<Answer> {
        self.opaque = true;
        let start = self.at;
        for mark in ["_", "^"] {
            if self.take(mark) {
                self.argument_value()?;
            }
        }
        match self.deeper(Self::power)? {
            Answer::Value(_) => {}
            _ => return None,
        }
        let argument: String = self.text.get(start..self.at)?.chars().filter(|c| !matches!(c, ' ' | '{' | '}' | '(' | ')')).collect();
        Some(Answer::Value(Exact::symbol(format!("{name} {argument}")).into()))
    }

    fn letters(&mut self) -> Option<Answer> {
        let word: String = self.rest().chars().take_while(|c| c.is_alphabetic()).collect();
        if let Some(function) = FUNCTIONS.into_iter().find(|f| word == *f) {
            self.at += function.len();
            return self.application(function);
        }
        if word == "sqrt" {
            self.at += word.len();
            return Some(Answer::Value(self.argument_value()?.root(2)?.into()));
        }
        if word == "pi" {
            self.at += word.len();
            return Some(Answer::Value(Exact::symbol("π").into()));
        }
        if is_word(&word) {
            return None;
        }
        let letter = word.chars().next()?;
        self.at += letter.len_utf8();
        if letter == 'i' && !self.rest().starts_with('_') {
            return Some(Answer::Value(Exact::imaginary().into()));
        }
        self.subscripted(&letter.to_string())
    }

    fn subscripted(&mut self, name: &str) -> Option<Answer> {
        let start = self.at;
        if self.take("_") {
            self.argument_value()?;
        }
        let index: String = self.text.get(start..self.at)?.chars().filter(|c| !matches!(c, ' ' | '{' | '}')).collect();
        Some(Answer::Value(Exact::symbol(format!("{name}{index}")).into()))
    }
}

enum Argument {
    Group(Exact),
    Digit(Exact),
}

/// Whether letters are a word or a unit, and no product of symbols.
fn is_word(letters: &str) -> bool {
    match letters.chars().count() {
        0 | 1 => false,
        2 => UNITS.contains(&letters),
        _ => !FUNCTIONS.contains(&letters) && letters != "sqrt",
    }
}
