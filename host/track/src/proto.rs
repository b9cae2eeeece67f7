//! Protocol buffers, as far as event files and W&B's records need them: a writer of fields, and a reader that walks over them.

/// A message being written.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u32, wire: u8) {
        self.varint(u64::from(field) << 3 | u64::from(wire));
    }

    /// An integer, boolean or enumeration.
    pub fn int(mut self, field: u32, value: i64) -> Self {
        self.key(field, 0);
        self.varint(value.cast_unsigned());
        self
    }

    /// A double.
    pub fn double(mut self, field: u32, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A float.
    pub fn float(mut self, field: u32, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Bytes or a string.
    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    /// A string.
    pub fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message inside.
    pub fn message(self, field: u32, value: Self) -> Self {
        self.bytes(field, &value.0)
    }
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A varint.
    Int(u64),
    /// Eight bytes.
    Fixed64([u8; 8]),
    /// Bytes, a string or a message.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32([u8; 4]),
}

/// The fields of a message, up to its end or to something that is no field.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            0 => Value::Int(self.varint()?),
            1 => Value::Fixed64(self.take(8)?.try_into().ok()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((field, value))
    }
}

/// The first value of an integer field; 0, the default, if it is not written.
pub fn int_of(message: &[u8], field: u32) -> u64 {
    Fields(message).find_map(|(f, v)| if let (true, Value::Int(i)) = (f == field, v) { Some(i) } else { None }).unwrap_or(0)
}

/// The first value of a message field.
pub fn message_of(message: &[u8], field: u32) -> Option<&[u8]> {
    Fields(message).find_map(|(f, v)| if let (true, Value::Bytes(b)) = (f == field, v) { Some(b) } else { None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(i in any::<i64>(), d in any::<f64>(), s in any::<Vec<u8>>(), field in 5..1u32 << 28) {
            let bytes = Message::default().int(field, i).double(2, d).message(3, Message::default().bytes(field, &s)).float(4, 1.5).into_bytes();
            let fields: Vec<_> = Fields(&bytes).collect();
            prop_assert_eq!(fields[0], (field, Value::Int(i.cast_unsigned())));
            prop_assert_eq!(fields[1], (2, Value::Fixed64(d.to_le_bytes())));
            prop_assert_eq!(fields[3], (4, Value::Fixed32(1.5f32.to_le_bytes())));
            prop_assert_eq!(message_of(&bytes, 3).and_then(|m| message_of(m, field)), Some(&s[..]));
            prop_assert_eq!(int_of(&bytes, field), i.cast_unsigned());
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in any::<Vec<u8>>()) {
            Fields(&bytes).for_each(drop);
        }
    }
}
