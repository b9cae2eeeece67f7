//! What a plugin may use up, and how limits are written in a recipe.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Limits on one plugin. In a recipe: `[plugins.NAME.limits]`, where what is left out keeps its default.
///
/// Sizes are numbers of bytes or texts such as `"64MiB"`; times are numbers of seconds or texts such as `"500ms"`, `"10s"`, `"2m"`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Size of the component file.
    pub component_size: ByteSize,
    /// Linear memory of one instance, all its memories together.
    pub memory: ByteSize,
    /// Elements of one table.
    pub table_elements: u64,
    /// Tables in one instance.
    pub tables: u64,
    /// Linear memories in one instance.
    pub memories: u64,
    /// Core instances in one component instance (Python components have about 40).
    pub instances: u64,
    /// Stack of the compiled code; at most 1 MiB, since it lies on the calling thread's own stack.
    pub wasm_stack: ByteSize,
    /// Fuel of a call, whatever it is given. One unit is about one WebAssembly instruction.
    pub fuel_per_call: u64,
    /// Fuel that a call has beyond that for each row or other item in its batch.
    pub fuel_per_row: u64,
    /// Fuel that a call has beyond that for each byte of its arguments.
    pub fuel_per_byte: u64,
    /// Wall-clock time of one call.
    pub deadline: Span,
    /// Wall-clock time of compiling the component.
    pub compile_time: Span,
    /// Address space of the process that compiles the component.
    pub compile_memory: ByteSize,
    /// What a call may return, counted as it lies in the host's memory.
    pub returned_size: ByteSize,
    /// Elements of one returned list.
    pub list_length: u64,
    /// Bytes of one returned string.
    pub string_size: ByteSize,
    /// Nesting of returned JSON.
    pub json_depth: u64,
    /// Lines that a call may log.
    pub log_lines: u64,
    /// Bytes of a logged line; the rest is cut off.
    pub log_line_size: ByteSize,
    /// Requests to servers that a call may make.
    pub http_requests: u64,
    /// Wall-clock time of one request with its redirects, from looking up the server's name to the last byte of the answer. The call's own
    /// deadline holds as well.
    pub http_time: Span,
    /// Bytes of a request: address, headers and body.
    pub http_request_size: ByteSize,
    /// Bytes of an answer's body.
    pub http_response_size: ByteSize,
}

/// The largest stack that compiled code may have: the host's threads have 2 MiB at least, and the host needs its share.
pub(crate) const MAX_WASM_STACK: u64 = 1 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            component_size: ByteSize::mib(32),
            memory: ByteSize::mib(256),
            table_elements: 100_000,
            tables: 64,
            memories: 8,
            instances: 128,
            wasm_stack: ByteSize::kib(512),
            fuel_per_call: 200_000_000,
            fuel_per_row: 20_000_000,
            fuel_per_byte: 5_000,
            deadline: Span::seconds(60),
            compile_time: Span::seconds(120),
            compile_memory: ByteSize::mib(4096),
            returned_size: ByteSize::mib(128),
            list_length: 1_000_000,
            string_size: ByteSize::mib(32),
            json_depth: 128,
            log_lines: 32,
            log_line_size: ByteSize::kib(1),
            http_requests: 16,
            http_time: Span::seconds(10),
            http_request_size: ByteSize::mib(1),
            http_response_size: ByteSize::mib(4),
        }
    }
}

impl Limits {
    /// The fuel of a call with so many items of so many bytes together.
    pub(crate) fn fuel(&self, rows: usize, bytes: usize) -> u64 {
        self.fuel_per_call
            .saturating_add(self.fuel_per_row.saturating_mul(rows as u64))
            .saturating_add(self.fuel_per_byte.saturating_mul(bytes as u64))
    }
}

/// A number of bytes that reads and writes as `64MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 10))
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// The number of bytes, at most `usize::MAX`.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size; write it like 65536, \"64KiB\", \"256MiB\" or \"2GiB\"");
        let (number, unit) = split_unit(text);
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(ByteSize).ok_or_else(wrong)
    }
}

/// A span of time that reads and writes as `10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn seconds(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// So many milliseconds.
    pub const fn millis(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1000) { write!(f, "{}s", millis / 1000) } else { write!(f, "{millis}ms") }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time; write it like 10, \"500ms\", \"10s\" or \"2m\"");
        let (number, unit) = split_unit(text);
        let factor: u64 = match unit {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Span::millis).ok_or_else(wrong)
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// Takes a text or a whole number; `T` says what they mean.
struct TextOrNumber<T> {
    expecting: &'static str,
    number: fn(u64) -> T,
}

impl<T: FromStr<Err = String>> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Ok((self.number)(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number).map(self.number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber { expecting: "a size such as \"64MiB\"", number: ByteSize })
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber { expecting: "a time such as \"10s\"", number: Span::seconds })
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_back_as_written() {
        for (text, bytes) in [("0", 0), ("17B", 17), ("64KiB", 65_536), ("64 MiB", 64 << 20), ("2GiB", 2 << 30), ("1mb", 1_000_000)] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
        for (text, millis) in [("10", 10_000), ("500ms", 500), ("10s", 10_000), ("2m", 120_000)] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0.as_millis(), millis, "{text}");
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
        for wrong in ["", "MiB", "-1", "1.5MiB", "5 parsecs", "99999999999999TiB", "18446744073709551616"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_refuse_unknown_keys_and_keep_defaults() {
        let limits: Limits = serde_json::from_str(r#"{"memory": "64MiB", "deadline": 3, "fuel_per_row": 7}"#).unwrap();
        assert_eq!(limits, Limits { memory: ByteSize::mib(64), deadline: Span::seconds(3), fuel_per_row: 7, ..Limits::default() });
        let again: Limits = serde_json::from_str(&serde_json::to_string(&limits).unwrap()).unwrap();
        assert_eq!(again, limits);
        assert!(serde_json::from_str::<Limits>(r#"{"memroy": "64MiB"}"#).unwrap_err().to_string().contains("memroy"));
        assert!(serde_json::from_str::<Limits>(r#"{"memory": -1}"#).is_err());
    }

    #[test]
    fn fuel_saturates() {
        let limits = Limits { fuel_per_byte: u64::MAX, ..Limits::default() };
        assert_eq!(limits.fuel(2, 2), u64::MAX);
        let limits = Limits { fuel_per_call: 5, fuel_per_row: 3, fuel_per_byte: 2, ..Limits::default() };
        assert_eq!(limits.fuel(10, 100), 5 + 30 + 200);
    }
}
