//! What a cubin says of its kernels: how many parameters each has.
//!
//! The driver tells the size of a parameter by its number, but not how many there are; asking for one too many is an error, which sanitizers
//! count. A cubin is an ELF file (System V ABI) whose section `.nv.info.KERNEL` holds records of an attribute each; one record describes a
//! parameter (what `cuobjdump -elf` calls EIATTR_KPARAM_INFO).

/// The record of a parameter.
const PARAMETER: u8 = 0x17;
/// How records with a size of their own begin; all others have four bytes.
const SIZED: u8 = 4;

/// Bytes `at..at + N`.
fn bytes<const N: usize>(image: &[u8], at: usize) -> Option<[u8; N]> {
    image.get(at..at.checked_add(N)?)?.try_into().ok()
}
fn half(image: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(bytes(image, at)?)))
}
fn word(image: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes(image, at)?)).ok()
}
fn long(image: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes(image, at)?)).ok()
}

/// Parameters of a kernel; None where the image does not tell, in whatever way it is broken or unknown.
pub fn parameters(image: &[u8], kernel: &str) -> Option<usize> {
    // 64 bits, little-endian.
    image.strip_prefix(b"\x7fELF\x02\x01")?;
    let (table, entry, sections, names) = (long(image, 0x28)?, half(image, 0x3a)?, half(image, 0x3c)?, half(image, 0x3e)?);
    let section = |i: usize| -> Option<(usize, &[u8])> {
        let at = table.checked_add(i.checked_mul(entry)?)?;
        let (offset, size) = (long(image, at.checked_add(0x18)?)?, long(image, at.checked_add(0x20)?)?);
        Some((word(image, at)?, image.get(offset..offset.checked_add(size)?)?))
    };
    let (_, names) = section(names)?;
    let wanted = format!(".nv.info.{kernel}\0");
    let (_, mut records) =
        (0..sections).filter_map(section).find(|(name, _)| names.get(*name..).is_some_and(|n| n.starts_with(wanted.as_bytes())))?;
    let mut ordinals = Vec::new();
    while let [format, attribute, low, high, rest @ ..] = records {
        let size = if *format == SIZED { usize::from(u16::from_le_bytes([*low, *high])) } else { 0 };
        let (record, after) = rest.split_at_checked(size)?;
        if *format == SIZED && *attribute == PARAMETER {
            ordinals.push(half(record, 4)?);
        }
        records = after;
    }
    ordinals.sort_unstable();
    (records.is_empty() && ordinals.iter().enumerate().all(|(i, &ordinal)| i == ordinal)).then_some(ordinals.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cubin with these records in the section of `kernel`.
    fn cubin(kernel: &str, records: &[u8]) -> Vec<u8> {
        let names = format!("\0.shstrtab\0.nv.info\0.nv.info.{kernel}\0");
        let mut image = vec![0u8; 0x40];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let offset_of_names = image.len();
        image.extend(names.bytes());
        let offset_of_records = image.len();
        image.extend(records);
        let table = image.len();
        for (name, offset, size) in [(0, 0, 0), (1, offset_of_names, names.len()), (20, offset_of_records, records.len())] {
            let mut entry = [0u8; 0x40];
            entry[..4].copy_from_slice(&(name as u32).to_le_bytes());
            entry[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            entry[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            image.extend(entry);
        }
        image[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        for (at, value) in [(0x3a, 0x40u16), (0x3c, 3), (0x3e, 1)] {
            image[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        image
    }

    fn parameter(ordinal: u16) -> Vec<u8> {
        [&[SIZED, PARAMETER, 12, 0, 0, 0, 0, 0][..], &ordinal.to_le_bytes(), &[8, 0, 0, 0xf0, 0x21, 0]].concat()
    }

    #[test]
    fn parameters_are_counted_among_other_records() {
        let other = [2u8, 0x4a, 1, 0, 4, 0x1c, 4, 0, 1, 2, 3, 4, 3, 0x19, 8, 0].to_vec();
        let records = [other.clone(), parameter(2), parameter(0), other, parameter(1)].concat();
        assert_eq!(parameters(&cubin("add", &records), "add"), Some(3));
        assert_eq!(parameters(&cubin("add", &[]), "add"), Some(0));
        assert_eq!(parameters(&cubin("add_more", &records), "add"), None, "another kernel, whose name begins the same");
        assert_eq!(parameters(&cubin("add", &[parameter(0), parameter(2)].concat()), "add"), None, "one is missing");
        assert_eq!(parameters(&cubin("add", &[parameter(0), parameter(0)].concat()), "add"), None, "one is there twice");
    }

    #[test]
    fn a_broken_image_tells_nothing_and_breaks_nothing() {
        let good = cubin("add", &[parameter(0), parameter(1)].concat());
        for end in 0..good.len() {
            parameters(&good[..end], "add");
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                parameters(&bad, "add");
            }
        }
        assert_eq!(parameters(b"", "add"), None);
    }
}
