//! Numbers: exact fractions as long as they fit, floating point beyond.

use std::fmt;

/// A number. Fractions are in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// `0 / 1`.
    Fraction(i128, i128),
    /// Where a fraction does not fit.
    Float(f64),
}

use Number::{Float, Fraction};

impl Number {
    /// A whole number.
    pub fn whole(n: i128) -> Self {
        Fraction(n, 1)
    }

    /// A decimal such as `12.50` or `1e3`; none if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (text.get(..at)?, text.get(at + 1..)?.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.is_empty() && decimals.is_empty() || !whole.bytes().chain(decimals.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let exact = || {
            let digits: i128 = format!("{whole}{decimals}").parse().ok()?;
            let shift = exponent.checked_sub(i32::try_from(decimals.len()).ok()?)?;
            let ten = 10i128.checked_pow(shift.unsigned_abs())?;
            if shift >= 0 { Some(Fraction(digits.checked_mul(ten)?, 1)) } else { fraction(digits, ten) }
        };
        exact().or_else(|| text.parse().ok().map(Float))
    }

    /// As floating point.
    pub fn float(self) -> f64 {
        match self {
            Fraction(n, d) => n as f64 / d as f64,
            Float(f) => f,
        }
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        matches!(self, Fraction(0, _)) || self == Float(0.0)
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.exactly(other, |a, b, c, d| fraction(a.checked_mul(d)?.checked_add(c.checked_mul(b)?)?, b.checked_mul(d)?), |x, y| x + y)
    }

    /// The product.
    #[must_use]
    pub fn times(self, other: Self) -> Self {
        self.exactly(other, |a, b, c, d| fraction(a.checked_mul(c)?, b.checked_mul(d)?), |x, y| x * y)
    }

    /// The quotient; none for a division by zero.
    pub fn over(self, other: Self) -> Option<Self> {
        if other.is_zero() {
            return None;
        }
        Some(self.exactly(other, |a, b, c, d| fraction(a.checked_mul(d)?, b.checked_mul(c)?), |x, y| x / y))
    }

    /// The number with the other sign.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Fraction(n, d) => n.checked_neg().map_or(Float(-self.float()), |n| Fraction(n, d)),
            Float(f) => Float(-f),
        }
    }

    /// The power; none for zero to a negative power and for fractional powers of negative numbers.
    pub fn power(self, exponent: Self) -> Option<Self> {
        if let Fraction(e, 1) = exponent {
            if e < 0 && self.is_zero() {
                return None;
            }
            let exact = || {
                let Fraction(n, d) = self else { return None };
                let size = u32::try_from(e.unsigned_abs()).ok()?;
                let (n, d) = (n.checked_pow(size)?, d.checked_pow(size)?);
                if e < 0 { fraction(d, n) } else { fraction(n, d) }
            };
            if let Some(exact) = exact() {
                return Some(exact);
            }
        }
        let float = self.float().powf(exponent.float());
        (!float.is_nan()).then_some(Float(float))
    }

    fn exactly(self, other: Self, exact: impl Fn(i128, i128, i128, i128) -> Option<Self>, float: impl Fn(f64, f64) -> f64) -> Self {
        let exact = match (self, other) {
            (Fraction(a, b), Fraction(c, d)) => exact(a, b, c, d),
            _ => None,
        };
        exact.unwrap_or_else(|| Float(float(self.float(), other.float())))
    }
}

/// In lowest terms; none if it does not fit.
fn fraction(n: i128, d: i128) -> Option<Number> {
    let (mut a, mut b) = (n.unsigned_abs(), d.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let divisor = i128::try_from(a.max(1)).ok()?;
    let (n, d) = (n / divisor, d / divisor);
    if d < 0 { Some(Fraction(n.checked_neg()?, d.checked_neg()?)) } else { Some(Fraction(n, d)) }
}

impl fmt::Display for Number {
    /// Whole numbers and finite decimals exactly, all else as the shortest decimal that gives the same floating-point number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fraction(n, d) = *self else {
            return write!(f, "{}", self.float());
        };
        if d == 1 {
            return write!(f, "{n}");
        }
        // A fraction ends as a decimal if some power of ten is a multiple of its denominator.
        let scaled = (1..=18u32).find_map(|places| {
            let ten = 10i128.checked_pow(places)?;
            (ten % d == 0).then(|| Some((n.checked_mul(ten / d)?, places)))?
        });
        match scaled {
            Some((digits, places)) => {
                let text = format!("{:0width$}", digits.unsigned_abs(), width = places as usize + 1);
                let (whole, decimals) = text.split_at(text.len() - places as usize);
                write!(f, "{}{whole}.{decimals}", if digits < 0 { "-" } else { "" })
            }
            None => write!(f, "{}", self.float()),
        }
    }
}
