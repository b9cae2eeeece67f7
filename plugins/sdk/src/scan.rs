//! Looking through texts sixteen bytes at a time. WebAssembly has instructions for that, which compilers leave out unless they are asked for, and the
//! standard library's search takes eight bytes in four times as many steps; rows and conversations are long.

/// The first place of an ASCII character in a text, in bytes.
#[inline]
pub fn find(text: &str, character: u8) -> Option<usize> {
    debug_assert!(character.is_ascii());
    #[cfg(target_arch = "wasm32")]
    let place = wide::first(text.as_bytes(), character);
    #[cfg(not(target_arch = "wasm32"))]
    let place = by_blocks(text.as_bytes(), |b| b == character);
    place
}

/// All places of an ASCII character in a text, in bytes.
pub fn places(text: &str, character: u8) -> impl Iterator<Item = usize> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + find(text.get(from..)?, character)?;
        from = at + 1;
        Some(at)
    })
}

/// The first byte that does not stand for itself in a JSON string: a quote, a backslash or a control character.
#[inline]
pub(crate) fn string_stop(bytes: &[u8]) -> Option<usize> {
    #[cfg(target_arch = "wasm32")]
    let place = wide::string_stop(bytes);
    #[cfg(not(target_arch = "wasm32"))]
    let place = by_blocks(bytes, is_stop);
    place
}

/// Native compilers make vector instructions of a loop that looks at all of a block.
#[cfg(not(target_arch = "wasm32"))]
#[inline]
fn by_blocks(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let (blocks, _) = bytes.as_chunks::<16>();
    let before = blocks.iter().take_while(|block| !block.iter().fold(false, |any, b| any | wanted(*b))).count() * 16;
    Some(before + bytes.get(before..)?.iter().position(|b| wanted(*b))?)
}

fn is_stop(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | ..0x20)
}

#[cfg(target_arch = "wasm32")]
mod wide {
    use core::arch::wasm32::{i8x16_bitmask, i8x16_eq, u8x16_lt, u8x16_splat, v128, v128_any_true, v128_load, v128_or};

    /// The first place where `sixteen` marks a byte, or among the last few where `one` holds.
    #[inline]
    #[target_feature(enable = "simd128")]
    fn search(bytes: &[u8], sixteen: impl Fn(v128) -> v128, one: impl Fn(u8) -> bool) -> Option<usize> {
        let (blocks, rest) = bytes.as_chunks::<16>();
        for (i, block) in blocks.iter().enumerate() {
            // SAFETY: the block has sixteen bytes, and the instruction loads from any address.
            let marks = sixteen(unsafe { v128_load(block.as_ptr().cast()) });
            if v128_any_true(marks) {
                return Some(i * 16 + i8x16_bitmask(marks).trailing_zeros() as usize);
            }
        }
        rest.iter().position(|b| one(*b)).map(|at| blocks.len() * 16 + at)
    }

    #[target_feature(enable = "simd128")]
    pub fn first(bytes: &[u8], character: u8) -> Option<usize> {
        let wanted = u8x16_splat(character);
        search(bytes, |block| i8x16_eq(block, wanted), |byte| byte == character)
    }

    #[target_feature(enable = "simd128")]
    pub fn string_stop(bytes: &[u8]) -> Option<usize> {
        let (quote, backslash, space) = (u8x16_splat(b'"'), u8x16_splat(b'\\'), u8x16_splat(b' '));
        let marks = |block| v128_or(v128_or(i8x16_eq(block, quote), i8x16_eq(block, backslash)), u8x16_lt(block, space));
        search(bytes, marks, super::is_stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_standard_library() {
        for length in 0..70 {
            let text: String = (0..length).map(|i| if i % 7 == 3 { '<' } else { 'é' }).collect();
            assert_eq!(find(&text, b'<'), text.find('<'), "{text}");
            assert!(places(&text, b'<').eq(text.match_indices('<').map(|(at, _)| at)), "{text}");
        }
    }

    #[test]
    fn strings_stop_at_quotes_backslashes_and_controls() {
        for stop in 0..=255_u8 {
            let bytes: Vec<u8> = [b'a'; 37].into_iter().chain([stop]).collect();
            assert_eq!(string_stop(&bytes), is_stop(stop).then_some(37), "{stop}");
        }
        assert_eq!(string_stop(b""), None);
    }
}
