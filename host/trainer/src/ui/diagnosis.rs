//! What `trainer doctor` shows.

use std::fmt::Write;

use trainer_runtime::{DeviceKind, Diagnosis};

use super::text::bytes;

/// The machine line by line, then what is missing.
pub fn diagnosis(d: &Diagnosis) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<10} {text}");
    };
    let memory = d.machine.memory.map_or_else(String::new, |m| format!(", {} memory", bytes(m)));
    let cores = if d.machine.cores == 1 { "1 core".to_owned() } else { format!("{} cores", d.machine.cores) };
    line("machine", format!("{}, {cores}{memory}", d.machine.processor));
    line(
        "driver",
        match (&d.driver, &d.cuda) {
            (Some(driver), Some(cuda)) => format!("{driver}, serves CUDA {cuda}"),
            (None, Some(cuda)) => format!("serves CUDA {cuda}"),
            (Some(driver), None) => format!("{driver}, which does not work"),
            (None, None) => "none".to_owned(),
        },
    );
    if d.cards.is_empty() {
        line("cards", "none".to_owned());
    }
    for card in &d.cards {
        let code = card.architecture.map_or_else(String::new, |a| format!(", kernels for {a}"));
        let what = format!(
            "{}, compute capability {}, {} memory, {} multiprocessors, {} second-level cache{code}",
            card.name,
            card.compute_capability,
            bytes(card.memory),
            card.multiprocessors,
            bytes(u64::try_from(card.l2).unwrap_or(0)),
        );
        line(&format!("cuda:{}", card.ordinal), what);
        if let Some(why) = &card.unusable {
            line("", format!("cannot be used: {why}"));
        }
    }
    let inside = if d.kernels_inside.is_empty() { "none".to_owned() } else { format!("for {}", d.kernels_inside.join(", ")) };
    line("kernels", format!("{inside} inside this program"));
    for library in &d.libraries {
        let found = match (library.found, library.needed) {
            (true, _) => library.detail.as_str(),
            (false, true) => "missing, and needed",
            (false, false) => "missing, not needed",
        };
        line(library.name, format!("{found} ({})", library.serves));
    }
    let cache = &d.kernel_cache;
    let folder = cache.folder.as_ref().map_or_else(String::new, |f| format!("{}: ", f.display()));
    let held = if cache.entries > 0 { format!(", {} kernel files, {}", cache.entries, bytes(cache.bytes)) } else { String::new() };
    line("cache", format!("{folder}{}{held}", cache.state));
    let device = match (d.auto.kind, d.auto.ordinal) {
        (DeviceKind::Cuda, Some(n)) => format!("cuda:{n}"),
        _ => "cpu".to_owned(),
    };
    line("auto means", format!("{device}, because {}", d.auto.reason));
    if !d.missing.is_empty() {
        let _ = writeln!(out, "\nmissing");
        for missing in &d.missing {
            let _ = writeln!(out, "  - {missing}");
        }
    }
    format!("trainer {}\n{out}", d.trainer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainer_runtime::{CacheState, CardState, LibraryState, Machine, Verdict};

    fn bare() -> Diagnosis {
        let library = |name, needed| LibraryState {
            name,
            found: false,
            detail: "no such file".into(),
            serves: "something",
            needed,
            remedy: "get it",
        };
        Diagnosis {
            trainer: "0.1.0".into(),
            machine: Machine { processor: "AMD EPYC".into(), cores: 2, memory: Some(24 << 30) },
            driver: None,
            cuda: None,
            cards: vec![],
            kernels_inside: vec![],
            libraries: vec![library("nvrtc", true), library("cublasLt", false)],
            missing: vec!["no NVIDIA driver was found: install it".into()],
            kernel_cache: CacheState {
                folder: Some("/home/me/.cache/trainer/cubins".into()),
                state: "not there yet".into(),
                entries: 0,
                bytes: 0,
            },
            auto: Verdict { kind: DeviceKind::Cpu, ordinal: None, reason: "no NVIDIA driver was found: install it".into() },
        }
    }

    #[test]
    fn without_a_card() {
        insta::assert_snapshot!(diagnosis(&bare()), @r"
        trainer 0.1.0
          machine    AMD EPYC, 2 cores, 24.0 GiB memory
          driver     none
          cards      none
          kernels    none inside this program
          nvrtc      missing, and needed (something)
          cublasLt   missing, not needed (something)
          cache      /home/me/.cache/trainer/cubins: not there yet
          auto means cpu, because no NVIDIA driver was found: install it

        missing
          - no NVIDIA driver was found: install it
        ");
    }

    #[test]
    fn with_cards() {
        let card = |ordinal, unusable| CardState {
            ordinal,
            name: "NVIDIA H100 80GB HBM3".into(),
            compute_capability: "9.0".into(),
            architecture: Some("sm_90a"),
            memory: 85_014_806_528,
            multiprocessors: 132,
            l2: 52_428_800,
            unusable,
        };
        let mut found = bare();
        found.driver = Some("580.159.04".into());
        found.cuda = Some("13.0".into());
        found.cards = vec![card(0, None), card(1, Some("it is asleep".into()))];
        for library in &mut found.libraries {
            (library.found, library.detail) = (true, "/usr/lib/lib.so 13.0".into());
        }
        found.kernels_inside = vec!["sm_80", "sm_90a"];
        found.kernel_cache.state = "ready".into();
        (found.kernel_cache.entries, found.kernel_cache.bytes) = (4, 300_000);
        found.missing.clear();
        found.auto = Verdict { kind: DeviceKind::Cuda, ordinal: Some(0), reason: "NVIDIA H100 80GB HBM3 can be used".into() };
        insta::assert_snapshot!(diagnosis(&found), @r"
        trainer 0.1.0
          machine    AMD EPYC, 2 cores, 24.0 GiB memory
          driver     580.159.04, serves CUDA 13.0
          cuda:0     NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB memory, 132 multiprocessors, 50.0 MiB second-level cache, kernels for sm_90a
          cuda:1     NVIDIA H100 80GB HBM3, compute capability 9.0, 79.2 GiB memory, 132 multiprocessors, 50.0 MiB second-level cache, kernels for sm_90a
                     cannot be used: it is asleep
          kernels    for sm_80, sm_90a inside this program
          nvrtc      /usr/lib/lib.so 13.0 (something)
          cublasLt   /usr/lib/lib.so 13.0 (something)
          cache      /home/me/.cache/trainer/cubins: ready, 4 kernel files, 293.0 KiB
          auto means cuda:0, because NVIDIA H100 80GB HBM3 can be used
        ");
    }
}
