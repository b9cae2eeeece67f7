//! Metadata of a GGUF file: typed values, and lists of them.

use super::reader::Reader;

/// The longest string: a chat template or a token.
const STRING_LIMIT: u64 = 16 << 20;
/// Entries of all lists of a file together; a tokenizer has three lists of some hundred thousand.
const ENTRY_LIMIT: u64 = 1 << 23;
/// Bytes of all strings of a file together.
const TEXT_LIMIT: u64 = 256 << 20;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer type, and the bool's number.
    Unsigned(u64),
    /// Any signed integer type.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(String),
    /// A list of integers.
    Integers(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f64>),
    /// A list of truth values.
    Bools(Vec<bool>),
    /// A list of strings.
    Texts(Vec<String>),
}

/// The numbers of types in the file.
pub mod kind {
    #![expect(missing_docs, reason = "the names of the format")]
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// What all lists and strings of a file may take up together.
pub(crate) struct Budget {
    entries: u64,
    text: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { entries: ENTRY_LIMIT, text: TEXT_LIMIT }
    }
}

impl Budget {
    fn take_entries(&mut self, count: u64) -> Result<(), String> {
        let left = self.entries.checked_sub(count).ok_or_else(|| format!("lists of more than {ENTRY_LIMIT} entries are not read"))?;
        self.entries = left;
        Ok(())
    }

    fn string(&mut self, reader: &mut Reader<'_>) -> Result<String, String> {
        let text = reader.string(STRING_LIMIT.min(self.text))?;
        self.text = self.text.saturating_sub(text.len() as u64);
        Ok(text)
    }
}

impl Value {
    pub(crate) fn read(reader: &mut Reader<'_>, budget: &mut Budget) -> Result<Self, String> {
        let number = reader.u32()?;
        if number == kind::ARRAY {
            return Self::read_list(reader, budget);
        }
        Self::read_one(number, reader, budget)
    }

    fn read_one(number: u32, reader: &mut Reader<'_>, budget: &mut Budget) -> Result<Self, String> {
        Ok(match number {
            kind::U8 => Self::Unsigned(u64::from(u8::from_le_bytes(reader.array()?))),
            kind::U16 => Self::Unsigned(u64::from(u16::from_le_bytes(reader.array()?))),
            kind::U32 => Self::Unsigned(u64::from(reader.u32()?)),
            kind::U64 => Self::Unsigned(reader.u64()?),
            kind::I8 => Self::Signed(i64::from(i8::from_le_bytes(reader.array()?))),
            kind::I16 => Self::Signed(i64::from(i16::from_le_bytes(reader.array()?))),
            kind::I32 => Self::Signed(i64::from(i32::from_le_bytes(reader.array()?))),
            kind::I64 => Self::Signed(i64::from_le_bytes(reader.array()?)),
            kind::F32 => Self::Float(f64::from(f32::from_le_bytes(reader.array()?))),
            kind::F64 => Self::Float(f64::from_le_bytes(reader.array()?)),
            kind::BOOL => match reader.array()? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                [other] => return Err(format!("is a truth value of {other}")),
            },
            kind::STRING => Self::Text(budget.string(reader)?),
            other => return Err(format!("has type {other}, which is not read")),
        })
    }

    fn read_list(reader: &mut Reader<'_>, budget: &mut Budget) -> Result<Self, String> {
        let number = reader.u32()?;
        let count = reader.u64()?;
        budget.take_entries(count)?;
        let (mut integers, mut floats, mut bools, mut texts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            // One by one, so that a list that the file does not hold ends at the file's end.
            match Self::read_one(number, reader, budget)? {
                Self::Unsigned(n) => integers.push(i64::try_from(n).map_err(|_| format!("holds {n}, which is too large"))?),
                Self::Signed(n) => integers.push(n),
                Self::Float(x) => floats.push(x),
                Self::Bool(b) => bools.push(b),
                Self::Text(t) => texts.push(t),
                _ => return Err("holds a list of lists".to_string()),
            }
        }
        Ok(match number {
            kind::STRING => Self::Texts(texts),
            kind::F32 | kind::F64 => Self::Floats(floats),
            kind::BOOL => Self::Bools(bools),
            kind::ARRAY => return Err("is a list of lists, which is not read".to_string()),
            _ => Self::Integers(integers),
        })
    }

    /// An integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Unsigned(n) => Some(*n as f64),
            Self::Signed(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list of strings.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Self::Texts(list) => Some(list),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn as_integers(&self) -> Option<&[i64]> {
        match self {
            Self::Integers(list) => Some(list),
            _ => None,
        }
    }
}
