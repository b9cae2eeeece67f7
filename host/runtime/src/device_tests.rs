//! Which device is chosen, on machines that exist only here.

use trainer_kernels_cuda::probe::{Card, Library};

use super::*;

fn card(name: &str, major: i32, minor: i32) -> Card {
    Card { name: name.into(), compute_capability: [major, minor], memory: 80 << 30, multiprocessors: 132, l2: 50 << 20 }
}

/// A machine with these cards and every library, for a program without kernels inside.
fn machine(cards: Vec<Card>) -> Probe {
    let library = |name: &'static str, needed| Library { name, state: Ok(format!("lib{name}.so")), needed };
    let libraries = vec![library(NVRTC, true), library(CUBLASLT, false)];
    Probe { driver: Some("13.0".into()), cards, inside: vec![], libraries, missing: vec![] }
}

#[test]
fn auto_means_the_first_card_that_can_be_used() {
    let found = machine(vec![card("Old", 7, 5), card("New", 9, 0), card("Newer", 10, 0)]);
    let verdict = choose(&found);
    assert_eq!((verdict.kind, verdict.ordinal), (DeviceKind::Cuda, Some(1)));
    assert!(verdict.reason.contains("New"), "{}", verdict.reason);
    assert!(unusable(&found, 0).unwrap().contains("7.5"), "{:?}", unusable(&found, 0));
    assert_eq!(unusable(&found, 2), None);
    let why = unusable(&found, 3).unwrap();
    assert!(why.contains("3 cards") && why.contains("0 to 2"), "{why}");
}

#[test]
fn auto_means_the_cpu_where_something_is_missing_and_says_what() {
    let mut found = machine(vec![card("New", 9, 0)]);
    found.libraries[0].state = Err("NVRTC cannot be loaded: install it".into());
    let verdict = choose(&found);
    let reason = "this program holds no kernels for sm_90a, and NVRTC cannot be loaded: install it";
    assert_eq!((verdict.kind, verdict.ordinal, verdict.reason.as_str()), (DeviceKind::Cpu, None, reason));
    let none = Probe { driver: None, libraries: vec![], missing: vec!["no driver: install it".into()], ..machine(vec![]) };
    assert_eq!(choose(&none).reason, "no driver: install it");
    let empty = Probe { cards: vec![], missing: vec!["the driver shows no card".into()], ..machine(vec![]) };
    assert_eq!(choose(&empty).reason, "the driver shows no card");
    let bare = Probe { missing: vec![], ..empty };
    assert_eq!(choose(&bare).kind, DeviceKind::Cpu);
}

#[test]
fn with_kernels_inside_the_program_the_driver_is_enough() {
    let mut found = machine(vec![card("Other", 8, 0), card("New", 9, 0)]);
    for library in &mut found.libraries {
        library.state = Err(format!("{} is nowhere", library.name));
    }
    found.inside = vec!["sm_90a"];
    // The first card whose kernels are there.
    let verdict = choose(&found);
    assert_eq!((verdict.kind, verdict.ordinal), (DeviceKind::Cuda, Some(1)));
    assert!(verdict.reason.contains("slower matrix products"), "{}", verdict.reason);
    let why = unusable(&found, 0).unwrap();
    assert!(why.contains("no kernels for sm_80") && why.contains("nvrtc is nowhere"), "{why}");
    found.inside.push("sm_80");
    assert_eq!(unusable(&found, 0), None);
    found.libraries[1].state = Ok("libcublasLt.so".into());
    assert_eq!(choose(&found).reason, "Other can be used");
}

#[test]
fn a_card_that_is_not_there_is_an_error_with_its_remedy() {
    let device = Device { backend: DeviceBackend::Cuda(9_999), ..Device::default() };
    let error = open_device(&device).err().unwrap().to_string();
    assert!(error.starts_with("device cuda:9999 cannot be used: "), "{error}");
    assert!(error.contains("trainer doctor") && error.contains("--device cpu"), "{error}");
}

#[test]
fn the_cpu_has_no_fp8() {
    let device = Device { backend: DeviceBackend::Cpu, ..Device::default() };
    let error = open_device_as(&device, Precision::Fp8).err().unwrap().to_string();
    assert!(error.starts_with("the CPU cannot compute in fp8") && error.contains("train.precision"), "{error}");
}

#[test]
fn the_cpu_is_always_there() {
    let device = Device { backend: DeviceBackend::Cpu, threads: trainer_config::Count::Exactly(1), ..Device::default() };
    let open = open_device(&device).unwrap();
    assert_eq!((open.threads, open.info.kind, open.info.compute_capability), (1, DeviceKind::Cpu, None));
    assert!(crate::with_ops!(open.backend, ops => ops.memory_use()).arena.is_none());
}
