//! Every kernel compiles for every architecture, on a machine without a GPU.

use trainer_kernels_cuda::archive::{Archive, compile_all, pack};
use trainer_kernels_cuda::cache::Cache;
use trainer_kernels_cuda::compile::{Arch, SOURCES, cubin, key};
use trainer_kernels_cuda::cubin::parameters;
use trainer_kernels_cuda::nvrtc::Nvrtc;

/// NVRTC, or None where it cannot be had and is not demanded.
fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::load() {
        Ok(nvrtc) => Some(nvrtc),
        Err(e) => {
            assert!(std::env::var_os("TRAINER_REQUIRE_NVRTC").is_none(), "TRAINER_REQUIRE_NVRTC is set, but {e}");
            eprintln!("not checked: {e}");
            None
        }
    }
}

#[test]
fn every_kernel_compiles_for_every_architecture_and_an_archive_holds_them_all() {
    let Some(nvrtc) = nvrtc() else { return };
    let cubins = compile_all(&nvrtc, &Arch::ALL).unwrap_or_else(|e| panic!("{e}"));
    let bytes = pack(&cubins).unwrap();
    eprintln!("an archive of {} cubins has {} bytes", cubins.len(), bytes.len());
    let archive = Archive::read(bytes).unwrap();
    assert_eq!(archive.serves(), Arch::ALL);
    for arch in Arch::ALL {
        assert_eq!(archive.compiler(arch), Some(nvrtc.version()));
        let unpacked = archive.unpack(arch).unwrap();
        for source in SOURCES.iter().filter(|s| s.serves(arch)) {
            let code = unpacked.get(source).unwrap();
            assert!(code.starts_with(b"\x7fELF"), "{} for {}", source.file, arch.name());
            for kernel in source.kernels {
                assert!(code.windows(kernel.len()).any(|w| w == kernel.as_bytes()), "{kernel} is not in {}", source.file);
                let count = parameters(code, kernel);
                assert!(count.is_some_and(|n| (2..40).contains(&n)), "{kernel} for {} has {count:?} parameters", arch.name());
            }
        }
    }
}

#[test]
fn the_compiler_gives_the_same_code_each_time() {
    let Some(nvrtc) = nvrtc() else { return };
    let source = SOURCES.iter().find(|s| s.file == "norm.cu").unwrap();
    let code = || cubin(&nvrtc, None, source, Arch::Sm90a).unwrap();
    assert!(code() == code(), "archives would differ from build to build");
}

#[test]
fn a_broken_cache_entry_is_compiled_anew() {
    let Some(nvrtc) = nvrtc() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cubins")).unwrap();
    let (source, arch) = (&SOURCES[3], Arch::Sm80);
    let first = cubin(&nvrtc, Some(&cache), source, arch).unwrap();
    let name = key(source, arch, nvrtc.version());
    assert_eq!(cache.get(&name).as_deref(), Some(first.as_slice()));
    std::fs::write(dir.path().join("cubins").join(&name), b"rubbish").unwrap();
    assert_eq!(cache.get(&name), None);
    assert!(cubin(&nvrtc, Some(&cache), source, arch).unwrap().starts_with(b"\x7fELF"));
    assert!(cache.get(&name).is_some(), "stored again");
}

#[test]
fn a_source_that_does_not_compile_is_reported_with_the_compilers_words() {
    let Some(nvrtc) = nvrtc() else { return };
    let failure = nvrtc.compile("bad.cu", "__global__ void f() { nonsense; }", &[]).unwrap_err();
    assert!(failure.log.contains("nonsense") && failure.log.contains("bad.cu"), "{failure:?}");
    assert!(failure.status.contains("COMPILATION"), "{failure:?}");
}
