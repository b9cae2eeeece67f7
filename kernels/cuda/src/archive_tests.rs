//! Archives of made-up cubins: no compiler is needed.

use super::*;

/// Something for every file and architecture.
pub(crate) fn invented() -> Vec<Cubin> {
    let cubin = |arch: Arch, source: &Source| {
        let code = format!("\x7fELF {} for {}, ", source.file, arch.name()).repeat(50).into_bytes();
        Cubin { file: source.file.to_owned(), arch, digest: digest(source, arch), compiler: (13, 0), code }
    };
    let of = |arch| SOURCES.iter().filter(move |s| s.serves(arch)).map(move |s| cubin(arch, s));
    Arch::ALL.into_iter().flat_map(of).collect()
}

#[test]
fn what_goes_in_comes_out() {
    let cubins = invented();
    let archive = Archive::read(pack(&cubins).unwrap()).unwrap();
    assert_eq!(archive.serves(), Arch::ALL);
    for arch in Arch::ALL {
        assert_eq!((archive.lacks(arch), archive.compiler(arch)), (vec![], Some((13, 0))));
        let unpacked = archive.unpack(arch).unwrap();
        for source in SOURCES.iter().filter(|s| s.serves(arch)) {
            let want = cubins.iter().find(|c| c.arch == arch && c.file == source.file).unwrap();
            assert_eq!(unpacked.get(source), Some(&want.code[..]), "{} for {}", source.file, arch.name());
        }
    }
    let none = Archive::read(pack(&[]).unwrap()).unwrap();
    assert_eq!(none.serves(), []);
    assert_eq!(none.unpack(Arch::Sm80).unwrap().get(&SOURCES[0]), None);
}

#[test]
fn same_cubins_same_bytes_in_whatever_order() {
    let mut cubins = invented();
    let bytes = pack(&cubins).unwrap();
    assert_eq!(pack(&cubins).unwrap(), bytes);
    cubins.reverse();
    assert_eq!(pack(&cubins).unwrap(), bytes);
}

#[test]
fn a_cubin_of_another_text_is_not_used() {
    let mut cubins = invented();
    let changed = cubins.iter_mut().find(|c| c.arch == Arch::Sm89 && c.file == SOURCES[2].file).unwrap();
    changed.digest[7] ^= 1;
    let archive = Archive::read(pack(&cubins).unwrap()).unwrap();
    assert_eq!(archive.lacks(Arch::Sm89), [SOURCES[2].file]);
    assert!(!archive.serves().contains(&Arch::Sm89) && archive.serves().len() == Arch::ALL.len() - 1);
    let unpacked = archive.unpack(Arch::Sm89).unwrap();
    assert!(unpacked.get(&SOURCES[2]).is_none() && unpacked.get(&SOURCES[1]).is_some());
    // Nor one under the right digest and another file's name.
    let mut cubins = invented();
    cubins.iter_mut().find(|c| c.arch == Arch::Sm80 && c.file == SOURCES[0].file).unwrap().file = "other.cu".into();
    assert_eq!(Archive::read(pack(&cubins).unwrap()).unwrap().lacks(Arch::Sm80), [SOURCES[0].file]);
}

#[test]
fn a_broken_archive_is_an_error_wherever_it_broke() {
    let bytes = pack(&invented()).unwrap();
    for len in (0..bytes.len()).step_by(7).chain([MAGIC.len() - 1, MAGIC.len(), bytes.len() - 1]) {
        assert_eq!(Archive::read(bytes[..len].to_vec()).unwrap_err(), ArchiveError::Short, "cut to {len} of {}", bytes.len());
    }
    assert!(matches!(Archive::read([&bytes[..], b"!"].concat()).unwrap_err(), ArchiveError::Broken(_)));
    assert_eq!(Archive::read(&b"\x7fELF and more that is no archive"[..]).unwrap_err(), ArchiveError::NotOne);
    // A changed byte never passes for what was packed, and never panics.
    let cubins = invented();
    for at in (0..bytes.len()).step_by(3) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        let Ok(archive) = Archive::read(changed) else { continue };
        for arch in Arch::ALL {
            let Ok(unpacked) = archive.unpack(arch) else { continue };
            for source in SOURCES {
                let want = cubins.iter().find(|c| c.arch == arch && c.file == source.file).map(|c| &c.code[..]);
                let got = unpacked.get(source);
                assert!(got.is_none() || got == want, "byte {at} changed, {} for {}", source.file, arch.name());
            }
        }
    }
}
