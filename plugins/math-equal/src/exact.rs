//! Exact numbers and expressions: fractions of sums of terms, each a rational number times roots of primes, the imaginary unit and symbols.
//!
//! Products of roots of different primes, with exponents between 0 and 1, are linearly independent over the rational numbers. So a sum is zero
//! only if each of its coefficients is, and two fractions are equal exactly if their cross products are: no rounding is anywhere. What would
//! take numbers or sums beyond the bounds here is refused, not approximated.

use std::collections::BTreeMap;

/// More terms than answers have.
const MAX_TERMS: usize = 64;
/// The largest power that is multiplied out.
const MAX_POWER: u32 = 64;
/// Numbers under a root are taken apart by trying divisors up to this.
const MAX_DIVISOR: i128 = 1_000_000;

/// A fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio {
    over: i128,
    under: i128,
}

impl Ratio {
    const ZERO: Self = Self { over: 0, under: 1 };
    const ONE: Self = Self { over: 1, under: 1 };

    /// A whole number.
    pub const fn whole(n: i128) -> Self {
        Self { over: n, under: 1 }
    }

    /// A fraction; none if it does not fit or the denominator is zero.
    pub fn new(over: i128, under: i128) -> Option<Self> {
        if under == 0 {
            return None;
        }
        let (mut a, mut b) = (over.unsigned_abs(), under.unsigned_abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = i128::try_from(a).ok()?;
        let (over, under) = (over.checked_div(divisor)?, under.checked_div(divisor)?);
        Some(if under < 0 { Self { over: over.checked_neg()?, under: under.checked_neg()? } } else { Self { over, under } })
    }

    /// The whole number that it is, if it is one.
    pub fn as_whole(self) -> Option<i128> {
        (self.under == 1).then_some(self.over)
    }

    fn plus(self, other: Self) -> Option<Self> {
        let over = self.over.checked_mul(other.under)?.checked_add(other.over.checked_mul(self.under)?)?;
        Self::new(over, self.under.checked_mul(other.under)?)
    }

    fn times(self, other: Self) -> Option<Self> {
        Self::new(self.over.checked_mul(other.over)?, self.under.checked_mul(other.under)?)
    }

    fn inverse(self) -> Option<Self> {
        Self::new(self.under, self.over)
    }

    fn negated(self) -> Option<Self> {
        Some(Self { over: self.over.checked_neg()?, ..self })
    }

    fn power(self, exponent: u32) -> Option<Self> {
        Some(Self { over: self.over.checked_pow(exponent)?, under: self.under.checked_pow(exponent)? })
    }

    /// The largest whole number that is not above it.
    fn floor(self) -> i128 {
        self.over.div_euclid(self.under)
    }
}

/// What a term has beside its coefficient.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Factors {
    /// The imaginary unit.
    imaginary: bool,
    /// Primes with exponents between 0 and 1.
    roots: BTreeMap<i128, Ratio>,
    /// Symbols with exponents of at least 1.
    symbols: BTreeMap<String, u32>,
}

/// A sum of terms; no coefficient is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum(BTreeMap<Factors, Ratio>);

impl Sum {
    fn of(coefficient: Ratio, factors: Factors) -> Self {
        let mut terms = BTreeMap::new();
        if coefficient != Ratio::ZERO {
            terms.insert(factors, coefficient);
        }
        Self(terms)
    }

    fn number(n: Ratio) -> Self {
        Self::of(n, Factors::default())
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The rational number that it is, if it is one.
    fn as_number(&self) -> Option<Ratio> {
        let mut terms = self.0.iter();
        match (terms.next(), terms.next()) {
            (None, _) => Some(Ratio::ZERO),
            (Some((factors, n)), None) if *factors == Factors::default() => Some(*n),
            _ => None,
        }
    }

    fn add(&mut self, factors: Factors, coefficient: Ratio) -> Option<()> {
        let sum = self.0.get(&factors).copied().unwrap_or(Ratio::ZERO).plus(coefficient)?;
        if sum == Ratio::ZERO {
            self.0.remove(&factors);
        } else {
            self.0.insert(factors, sum);
        }
        (self.0.len() <= MAX_TERMS).then_some(())
    }

    fn plus(&self, other: &Self) -> Option<Self> {
        let mut sum = self.clone();
        for (factors, n) in &other.0 {
            sum.add(factors.clone(), *n)?;
        }
        Some(sum)
    }

    fn negated(&self) -> Option<Self> {
        self.0.iter().map(|(factors, n)| Some((factors.clone(), n.negated()?))).collect::<Option<_>>().map(Self)
    }

    fn times(&self, other: &Self) -> Option<Self> {
        let mut product = Self::default();
        for (a, n) in &self.0 {
            for (b, m) in &other.0 {
                let (factors, k) = multiply(a, b)?;
                product.add(factors, n.times(*m)?.times(k)?)?;
            }
        }
        Some(product)
    }
}

/// The product of two terms' factors, and what becomes a number in it.
fn multiply(a: &Factors, b: &Factors) -> Option<(Factors, Ratio)> {
    let mut factors = a.clone();
    let mut number = if a.imaginary && b.imaginary { Ratio::whole(-1) } else { Ratio::ONE };
    factors.imaginary = a.imaginary != b.imaginary;
    for (prime, exponent) in &b.roots {
        let sum = factors.roots.get(prime).copied().unwrap_or(Ratio::ZERO).plus(*exponent)?;
        let (whole, rest) = (sum.floor(), sum.plus(Ratio::whole(sum.floor().checked_neg()?))?);
        number = number.times(Ratio::whole(prime.checked_pow(u32::try_from(whole).ok()?)?))?;
        if rest == Ratio::ZERO {
            factors.roots.remove(prime);
        } else {
            factors.roots.insert(*prime, rest);
        }
    }
    for (symbol, exponent) in &b.symbols {
        let sum = factors.symbols.entry(symbol.clone()).or_default();
        *sum = sum.checked_add(*exponent)?;
    }
    Some((factors, number))
}

/// An exact expression.
#[derive(Clone, Debug)]
pub struct Exact {
    over: Sum,
    /// Not zero.
    under: Sum,
}

impl Exact {
    /// A rational number.
    pub fn number(n: Ratio) -> Self {
        Self { over: Sum::number(n), under: Sum::number(Ratio::ONE) }
    }

    /// A whole number.
    pub fn whole(n: i128) -> Self {
        Self::number(Ratio::whole(n))
    }

    /// A symbol, about which nothing is known but its name.
    pub fn symbol(name: impl Into<String>) -> Self {
        let factors = Factors { symbols: BTreeMap::from([(name.into(), 1)]), ..Factors::default() };
        Self { over: Sum::of(Ratio::ONE, factors), under: Sum::number(Ratio::ONE) }
    }

    /// The imaginary unit.
    pub fn imaginary() -> Self {
        let factors = Factors { imaginary: true, ..Factors::default() };
        Self { over: Sum::of(Ratio::ONE, factors), under: Sum::number(Ratio::ONE) }
    }

    /// The rational number that it is, if that can be seen.
    pub fn as_number(&self) -> Option<Ratio> {
        self.over.as_number()?.times(self.under.as_number()?.inverse()?)
    }

    /// Whether two expressions are equal for all values of their symbols; none if that is beyond the bounds.
    pub fn equals(&self, other: &Self) -> Option<bool> {
        Some(self.over.times(&other.under)? == other.over.times(&self.under)?)
    }

    /// The sum.
    pub fn plus(&self, other: &Self) -> Option<Self> {
        if self.under == other.under {
            return Some(Self { over: self.over.plus(&other.over)?, under: self.under.clone() });
        }
        let over = self.over.times(&other.under)?.plus(&other.over.times(&self.under)?)?;
        Some(Self { over, under: self.under.times(&other.under)? })
    }

    /// The difference.
    pub fn minus(&self, other: &Self) -> Option<Self> {
        self.plus(&other.negated()?)
    }

    /// The product.
    pub fn times(&self, other: &Self) -> Option<Self> {
        Some(Self { over: self.over.times(&other.over)?, under: self.under.times(&other.under)? })
    }

    /// The quotient; none for a division by zero.
    pub fn over(&self, other: &Self) -> Option<Self> {
        if other.over.is_zero() {
            return None;
        }
        Some(Self { over: self.over.times(&other.under)?, under: self.under.times(&other.over)? })
    }

    /// The expression with the other sign.
    pub fn negated(&self) -> Option<Self> {
        Some(Self { over: self.over.negated()?, under: self.under.clone() })
    }

    /// The power; none where it is not exact, not one number, or beyond the bounds.
    pub fn power(&self, exponent: &Self) -> Option<Self> {
        let exponent = exponent.as_number()?;
        if let Some(whole) = exponent.as_whole() {
            let size = u32::try_from(whole.unsigned_abs()).ok()?;
            if let Some(base) = self.as_number() {
                let power = base.power(size)?;
                return match (whole < 0, whole == 0 && base == Ratio::ZERO) {
                    (_, true) => None,
                    (true, _) => Some(Self::number(power.inverse()?)),
                    (false, _) => Some(Self::number(power)),
                };
            }
            if size > MAX_POWER {
                return None;
            }
            let mut power = Self::whole(1);
            for _ in 0..size {
                power = power.times(self)?;
            }
            return if whole < 0 { Self::whole(1).over(&power) } else { Some(power) };
        }
        let degree = u32::try_from(exponent.under).ok()?;
        let root = self.root(degree)?;
        root.power(&Self::number(Ratio::whole(exponent.over)))
    }

    /// The real root of a rational number, or the imaginary square root of a negative one.
    pub fn root(&self, degree: u32) -> Option<Self> {
        let number = self.as_number()?;
        if degree == 0 || degree > MAX_POWER {
            return None;
        }
        if number == Ratio::ZERO {
            return Some(Self::whole(0));
        }
        let (size, negative) = (if number.over < 0 { number.negated()? } else { number }, number.over < 0);
        let mut term = (Factors { imaginary: negative && degree == 2, ..Factors::default() }, Ratio::ONE);
        // A root of 1/n is one of n^(d - 1) over n.
        for (prime, times) in primes(size.over)?.into_iter().chain(primes(size.under)?.into_iter().map(|(p, n)| (p, -n))) {
            let exponent = Ratio::new(i128::from(times), i128::from(degree))?;
            let whole = exponent.floor();
            let rest = exponent.plus(Ratio::whole(whole.checked_neg()?))?;
            let power = Ratio::whole(prime).power(u32::try_from(whole.unsigned_abs()).ok()?)?;
            term.1 = term.1.times(if whole < 0 { power.inverse()? } else { power })?;
            if rest != Ratio::ZERO {
                term.0.roots.insert(prime, rest);
            }
        }
        if negative && degree % 2 == 1 {
            term.1 = term.1.negated()?;
        } else if negative && degree != 2 {
            return None;
        }
        Some(Self { over: Sum::of(term.1, term.0), under: Sum::number(Ratio::ONE) })
    }

    /// The factorial of a small whole number.
    pub fn factorial(&self) -> Option<Self> {
        let n = self.as_number()?.as_whole()?;
        if !(0..=33).contains(&n) {
            return None;
        }
        Some(Self::whole((1..=n).try_fold(1i128, i128::checked_mul)?))
    }
}

/// The primes of a positive number with how often each divides it; none if it is too large to take apart.
fn primes(mut n: i128) -> Option<Vec<(i128, i32)>> {
    let mut found = Vec::new();
    let mut divisor = 2;
    while divisor <= MAX_DIVISOR && divisor * divisor <= n {
        let mut times = 0;
        while n % divisor == 0 {
            n /= divisor;
            times += 1;
        }
        if times > 0 {
            found.push((divisor, times));
        }
        divisor += if divisor == 2 { 1 } else { 2 };
    }
    if n > 1 {
        // What is left has no divisor up to the bound, so it is prime if it is below the bound's square.
        if n > MAX_DIVISOR * MAX_DIVISOR {
            return None;
        }
        found.push((n, 1));
    }
    Some(found)
}
