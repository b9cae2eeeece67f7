//! Files made to be slow or large: refused or ended within their limits, the compiler's process with them.

mod common;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{MANIFEST, compiler, component, manifest, rogue, source, tight};
use trainer_plugin_host::{HostOptions, Limits, PluginHost, PluginSource, Span, inspect};

/// The tests of this file look at the children of this process, so that one runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn host() -> PluginHost {
    PluginHost::new(HostOptions::new(compiler())).unwrap()
}

fn leb(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len()), content].concat()
}

/// A formatter that is none when it is looked at closely, and more sections after it.
fn formatter_with(more: &[Vec<u8>]) -> Vec<u8> {
    let text =
        format!(r#"(component {} (instance $i) (export "trainer:dataset-formatter/formatter@0.1.0" (instance $i)))"#, manifest(MANIFEST));
    [component(&text), more.concat()].concat()
}

/// A module of so many functions, each of so many additions.
fn additions(functions: usize, each: usize) -> Vec<u8> {
    // (local.get 0) (i32.const 1) (i32.add) (local.tee 0) and so on, whose values all depend on each other.
    let mut body = vec![0];
    body.extend([0x20, 0x00].iter().chain([0x41, 0x01, 0x6a, 0x22, 0x00].iter().cycle().take(each * 5)));
    body.push(0x0b);
    let body = [leb(body.len()), body].concat();
    let mut code = leb(functions);
    (0..functions).for_each(|_| code.extend_from_slice(&body));
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[1, 0x60, 1, 0x7f, 1, 0x7f]),
        section(3, &[leb(functions), vec![0; functions]].concat()),
        section(10, &code),
    ]
    .concat()
}

/// Processes that this one has started and that have not ended.
fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    let stat = |pid: String| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    processes
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter_map(stat)
        .filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(own.as_str())))
        .collect()
}

#[test]
fn a_module_that_takes_long_to_compile_ends_with_its_compiler() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let bomb = formatter_with(&[section(1, &additions(24, 200_000))]);
    assert!(bomb.len() > 20 << 20 && bomb.len() < 32 << 20, "{}", bomb.len());
    let host = host();
    let began = Instant::now();
    let limits = Limits { compile_time: Span::millis(500), ..tight() };
    assert_eq!(
        host.load(&source(bomb.clone()), limits).unwrap_err().to_string(),
        "plugin `rogue` 1.2.3, compilation hit its compile_time limit: 500ms are allowed; raise it in the recipe: [plugins.rogue.limits] \
         compile_time = \"2s\""
    );
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(children(), Vec::<String>::new());
    let limits = Limits { compile_memory: "192MiB".parse().unwrap(), ..tight() };
    assert_eq!(
        host.load(&source(bomb), limits).unwrap_err().to_string(),
        "plugin `rogue` 1.2.3, compilation hit its compile_memory limit: 192MiB are allowed; raise it in the recipe: \
         [plugins.rogue.limits] compile_memory = \"384MiB\""
    );
    assert_eq!(children(), Vec::<String>::new());
    // The host goes on.
    host.load(&source(rogue()), tight()).unwrap();
}

/// Loads what cannot be a plugin, in little time.
fn refused(bytes: Vec<u8>) -> String {
    let began = Instant::now();
    let plugin = host().load(&source(bytes), tight());
    let error = plugin.and_then(|p| p.formatter(&serde_json::Value::Null).map(drop)).unwrap_err().to_string();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(error.len() < 2500 && !error.chars().any(char::is_control), "{error:?}");
    error
}

#[test]
fn a_million_imports_and_exports() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    const MILLION: usize = 1_000_000;
    // Of the component: instances of an empty type.
    let mut imports = leb(MILLION);
    for i in 0..MILLION {
        let name = format!("evil:package/interface{i}");
        imports.extend([&[0][..], &leb(name.len()), name.as_bytes(), &[5, 0]].concat());
    }
    assert_eq!(
        refused(formatter_with(&[section(7, &[1, 0x42, 0]), section(10, &imports)])),
        "plugin `rogue` 1.2.3 imports `evil:package/interface0`, and nothing grants it: plugins are linked to trainer:host/log@0.1.0, and \
         tools that declare it to trainer:http/client@0.1.0 and trainer:http/secrets@0.1.0, and nothing else"
    );
    // Of a module within it.
    let module = |count: usize| {
        let mut imports = leb(count);
        for i in 0..count {
            let name = format!("{i:x}");
            imports.extend([&[1, b'm'][..], &leb(name.len()), name.as_bytes(), &[0, 0]].concat());
        }
        [b"\0asm\x01\0\0\0".to_vec(), section(1, &[1, 0x60, 0, 0]), section(2, &imports)].concat()
    };
    let error = refused(formatter_with(&[section(1, &module(MILLION + 1))]));
    assert!(error.contains("cannot compile plugin `rogue`: ") && error.contains("limit of 1000000"), "{error}");
    // Many, but not too many: the module is never instantiated, and what remains is no formatter.
    let error = refused(formatter_with(&[section(1, &module(200_000))]));
    assert!(error.starts_with("plugin `rogue` 1.2.3 does not fit the interface that it names: "), "{error}");
    // Exports without a kind among them.
    let mut exports = leb(MILLION);
    for i in 0..MILLION {
        let name = format!("evil:package/interface{i}");
        exports.extend([&[0][..], &leb(name.len()), name.as_bytes(), &[5, 0, 0]].concat());
    }
    let text = format!("(component {} (instance $i))", manifest(MANIFEST));
    let error = refused([component(&text), section(11, &exports)].concat());
    assert!(error.contains("evil:package/interface7, ... (1000000 in all)); this host knows "), "{error}");
}

#[test]
fn names_and_nesting_without_end() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // A name of a megabyte that would clear the screen.
    let name = format!("\u{1b}[2J{}", "n".repeat(1 << 20));
    let import = [&[1, 0][..], &leb(name.len()), name.as_bytes(), &[5, 0]].concat();
    let error = refused(formatter_with(&[section(7, &[1, 0x42, 0]), section(10, &import)]));
    assert!(error.contains("\\u{1b}[2Jnnn") || error.contains("is not a valid WebAssembly component"), "{error}");
    // Components in components.
    let mut nested = b"\0asm\x0d\0\x01\0".to_vec();
    for _ in 0..3000 {
        nested = [b"\0asm\x0d\0\x01\0".to_vec(), section(4, &nested)].concat();
    }
    let bytes = formatter_with(&[section(4, &nested)]);
    refused(bytes.clone());
    let _ = inspect(&bytes);
    // A type that doubles with each line.
    let doubled: String = (1..60).map(|i| format!("(type $t{i} (tuple $t{0} $t{0}))", i - 1)).collect();
    let types = component(&format!("(component (type $t0 (tuple u8 u8)) {doubled})"));
    let error = refused(formatter_with(&[section(4, &types)]));
    assert!(error.contains("type size exceeds the limit"), "{error}");
}

#[test]
fn files_that_are_something_else() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let text = include_bytes!("bombs.rs").to_vec();
    let other = "it does not begin as WebAssembly does, with the bytes \\0asm: it is some other file";
    let wat = "it is WebAssembly in its text form; `wasm-tools parse FILE.wat -o FILE.wasm` makes the binary form of it";
    for (bytes, reason) in [
        (Vec::new(), "the file is empty"),
        (text, other),
        (b"\x7fELF\x02\x01\x01\0".to_vec(), other),
        (b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), other),
        (b"\n  (component)".to_vec(), wat),
        (b"(module)".to_vec(), wat),
        (b"\0asm".to_vec(), "it ends within its first bytes"),
    ] {
        let golden = format!("plugin `test.wasm` is not a valid WebAssembly component: {reason}");
        assert_eq!(refused(bytes.clone()), golden);
        assert_eq!(inspect(&bytes).unwrap_err().to_string(), golden.replace("test.wasm", "component"));
    }
    for (head, words) in [
        (b"\0asm\x01\0\0\0".as_slice(), "it is a core module, not a component"),
        (b"\0asm\x0a\0\x01\0", "unknown binary version"),
        (b"\0asm\x02\0\0\0", "unknown binary version"),
    ] {
        let error = refused(head.to_vec());
        assert!(error.contains(words), "{error}");
    }
    // A folder, and a file that is not there.
    let error = host().load(&PluginSource::File("/".into()), tight()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /: "), "{error}");
}
