//! Expressions: a recursive-descent parser that evaluates as it goes.
//!
//! ```text
//! sum     = product (("+" | "-") product)*
//! product = signed (("*" | "/") signed)*
//! signed  = ("+" | "-") signed | power
//! power   = atom (("^" | "**") signed)?        right to left, and stronger than the sign before it: -2^2 = -4
//! atom    = number | "(" sum ")"
//! ```

use std::iter::Peekable;
use std::str::CharIndices;

use crate::number::Number;

/// The longest expression in bytes.
pub const MAX_LENGTH: usize = 4096;
/// The deepest nesting of parentheses, signs and powers.
pub const MAX_DEPTH: usize = 100;

/// Evaluates an expression; an error is in words that the model can use.
pub fn evaluate(expression: &str) -> Result<Number, String> {
    if expression.len() > MAX_LENGTH {
        return Err(format!("the expression has {} bytes; at most {MAX_LENGTH} are allowed", expression.len()));
    }
    let mut parser = Parser { text: expression, rest: expression.char_indices().peekable(), depth: 0 };
    let value = parser.sum()?;
    match parser.peek() {
        Some(c) => Err(parser.unexpected(c)),
        None if value.float().is_finite() => Ok(value),
        None => Err("the result is too large".to_owned()),
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
    depth: usize,
}

impl Parser<'_> {
    /// The next character that is no space, with typographic operators made plain.
    fn peek(&mut self) -> Option<char> {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        self.rest.peek().map(|(_, c)| match c {
            '×' | '·' | '⋅' => '*',
            '÷' => '/',
            '−' | '–' => '-',
            c => *c,
        })
    }

    fn take(&mut self, wanted: char) -> bool {
        let is = self.peek() == Some(wanted);
        if is {
            self.rest.next();
        }
        is
    }

    fn unexpected(&mut self, c: char) -> String {
        let at = self.rest.peek().map_or(self.text.len(), |(at, _)| *at);
        let place = self.text.get(..at).map_or(0, |before| before.chars().count()) + 1;
        format!("unexpected {c:?} at character {place} of the expression; numbers, + - * / ^ and parentheses are known")
    }

    fn nested(&mut self, inner: impl FnOnce(&mut Self) -> Result<Number, String>) -> Result<Number, String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("the expression is nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let value = inner(self);
        self.depth -= 1;
        value
    }

    fn sum(&mut self) -> Result<Number, String> {
        let mut value = self.product()?;
        loop {
            if self.take('+') {
                value = value.plus(self.product()?);
            } else if self.take('-') {
                value = value.plus(self.product()?.negated());
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<Number, String> {
        let mut value = self.signed()?;
        loop {
            if self.take('*') {
                value = value.times(self.signed()?);
            } else if self.take('/') {
                value = value.over(self.signed()?).ok_or("division by zero")?;
            } else {
                return Ok(value);
            }
        }
    }

    fn signed(&mut self) -> Result<Number, String> {
        if self.take('-') {
            return Ok(self.nested(Self::signed)?.negated());
        }
        if self.take('+') {
            return self.nested(Self::signed);
        }
        self.power()
    }

    fn power(&mut self) -> Result<Number, String> {
        let base = self.atom()?;
        if self.take('^') || self.take_double_star() {
            let exponent = self.nested(Self::signed)?;
            return base.power(exponent).ok_or_else(|| format!("{base} to the power {exponent} is not defined"));
        }
        Ok(base)
    }

    fn take_double_star(&mut self) -> bool {
        if self.peek() != Some('*') {
            return false;
        }
        let mut ahead = self.rest.clone();
        ahead.next();
        let double = matches!(ahead.next(), Some((_, '*')));
        if double {
            self.rest = ahead;
        }
        double
    }

    fn atom(&mut self) -> Result<Number, String> {
        if self.take('(') {
            let value = self.nested(Self::sum)?;
            return if self.take(')') { Ok(value) } else { Err(self.end_or("a parenthesis is not closed")) };
        }
        match self.peek() {
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) => Err(self.unexpected(c)),
            None => Err("the expression ends where a number belongs".to_owned()),
        }
    }

    fn end_or(&mut self, at_end: &str) -> String {
        match self.peek() {
            Some(c) => self.unexpected(c),
            None => at_end.to_owned(),
        }
    }

    fn number(&mut self) -> Result<Number, String> {
        let mut digits = String::new();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E')) {
            digits.push(c);
            if matches!(c, 'e' | 'E')
                && let Some((_, sign)) = self.rest.next_if(|(_, c)| matches!(c, '+' | '-'))
            {
                digits.push(sign);
            }
        }
        Number::parse(&digits).ok_or_else(|| format!("{digits:?} is no number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(expression: &str) -> String {
        match evaluate(expression) {
            Ok(value) => value.to_string(),
            Err(reason) => format!("error: {reason}"),
        }
    }

    #[test]
    fn arithmetic() {
        for (expression, value) in [
            ("38-64+32", "6"),
            ("12*7+5", "89"),
            ("2+3*4", "14"),
            ("(2+3)*4", "20"),
            ("7/2", "3.5"),
            ("6/3", "2"),
            ("1/3", "0.3333333333333333"),
            ("-7/4", "-1.75"),
            ("0.1+0.2", "0.3"),
            ("1/8/5", "0.025"),
            ("-2^2", "-4"),
            ("(-2)^2", "4"),
            ("2^3^2", "512"),
            ("2**-2", "0.25"),
            ("2*-3", "-6"),
            ("--5", "5"),
            ("3 × 4 − 1", "11"),
            (" 10 ÷ 4 ", "2.5"),
            ("2^0.5", "1.4142135623730951"),
            ("1e3+.5", "1000.5"),
            ("123456789012345678901234567890*10", "1234567890123456789012345678900"),
            ("9007199254740993+0", "9007199254740993"),
            ("-0.05", "-0.05"),
            ("0^0", "1"),
        ] {
            assert_eq!(shown(expression), value, "{expression}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (expression, part) in [
            ("", "ends where a number belongs"),
            ("1+", "ends where a number belongs"),
            ("1/0", "division by zero"),
            ("1/(2-2)", "division by zero"),
            ("0^-1", "not defined"),
            ("(-8)^(1/3)", "not defined"),
            ("(1+2", "not closed"),
            ("1+2)", "unexpected ')' at character 4"),
            ("2 x 3", "unexpected 'x'"),
            ("1.2.3", "no number"),
            ("1,000", "unexpected ','"),
            ("import os", "unexpected 'i' at character 1"),
            ("10^1000", "too large"),
        ] {
            let error = evaluate(expression).unwrap_err();
            assert!(error.contains(part), "{expression}: {error}");
        }
        assert!(evaluate(&"(".repeat(1000)).unwrap_err().contains("deep"));
        assert!(evaluate(&"-".repeat(1000)).unwrap_err().contains("deep"));
        assert!(evaluate(&"2^".repeat(1000)).unwrap_err().contains("deep"));
        assert!(evaluate(&"1+".repeat(4000)).unwrap_err().contains("bytes"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "[0-9.eE+*/^() −×-]{0,60}") {
            let _ = evaluate(&text);
        }

        #[test]
        fn whole_numbers_are_exact(a in -1_000_000_000i64..1_000_000_000, b in -1_000_000_000i64..1_000_000_000) {
            proptest::prop_assert_eq!(shown(&format!("{a}*({b})+({a})-{b}*2")), (i128::from(a) * i128::from(b) + i128::from(a) - i128::from(b) * 2).to_string());
        }
    }
}
