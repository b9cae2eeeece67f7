//! C: zig, or clang with a C library for WASI. Both make the same module; the rest is done here.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use trainer_plugin_build::component::encode_foreign;

use super::{Tool, candidates, one_kind};
use crate::{Error, Project};

const INSTALL: &str = "Install zig (`pip install ziglang`), or clang with a C library for WASI: on Debian \
                       `apt-get install --no-install-recommends clang lld wasi-libc libclang-rt-dev-wasm32`, elsewhere the WASI SDK with \
                       WASI_SDK_PATH set to its folder";

/// The folders of a project that hold C.
const SOURCES: [&str; 3] = ["src", "lib", "bindings"];

/// For both compilers: a module whose functions are called from outside, with a stack that ends in a trap and not in the data.
const FLAGS: [&str; 9] =
    ["-mexec-model=reactor", "-std=c11", "-O2", "-Wall", "-Wextra", "-Ibindings", "-Ilib", "-Isrc", "-Wl,-z,stack-size=1048576"];

/// Compiles the project's sources into a component without manifest.
pub(super) fn build(project: &Project, work: &Path, _shared: Option<&Path>) -> Result<Vec<u8>, Error> {
    one_kind(project)?;
    let module = work.join("module.wasm");
    let (tool, first) = compiler(project)?;
    let mut args: Vec<OsString> = first.iter().chain(&FLAGS).map(OsString::from).collect();
    args.extend(sources(&project.root)?);
    args.extend(["-lm".into(), "-o".into(), module.clone().into_os_string()]);
    let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
    // Zig's own cache stays out of the project's folder.
    tool.run(&project.root, &args, &[("ZIG_LOCAL_CACHE_DIR", work.join("zig").into_os_string())])?;
    let bytes = std::fs::read(&module).map_err(Error::io("read", &module))?;
    Ok(encode_foreign(&bytes, &project.root.join("wit"), "plugin")?)
}

/// A compiler that can make modules here, and the arguments that are its own.
fn compiler(project: &Project) -> Result<(Tool, &'static [&'static str]), Error> {
    let zigs = candidates(project, &["zig", "python-zig"]);
    if let Ok(zig) = Tool::find("zig", &zigs, INSTALL) {
        return Ok((zig, &["cc", "-target", "wasm32-wasi", "-s"]));
    }
    let sdk = std::env::var_os("WASI_SDK_PATH").map(|path| PathBuf::from(path).join("bin/clang"));
    let clangs: Vec<PathBuf> = sdk.into_iter().chain([PathBuf::from("/opt/wasi-sdk/bin/clang"), PathBuf::from("clang")]).collect();
    let all: Vec<PathBuf> = zigs.into_iter().chain(clangs.iter().cloned()).collect();
    let clang = Tool::find("zig or clang", &all, INSTALL)?;
    // Without a C library clang repeats the name of the file that it was asked for.
    let library = clang.run(&project.root, &["--target=wasm32-wasi".as_ref(), "-print-file-name=crt1-reactor.o".as_ref()], &[])?;
    if Path::new(library.trim()).components().count() < 2 {
        let looked = format!("{} has no C library for the target wasm32-wasi", clang.path().display());
        return Err(Error::Missing { program: "a C library for WASI".to_owned(), looked, install: INSTALL.to_owned() });
    }
    Ok((clang, &["--target=wasm32-wasi", "-Wl,--strip-all", "-Wl,--stack-first"]))
}

/// The C files, in a fixed order, as paths in the project.
fn sources(root: &Path) -> Result<Vec<OsString>, Error> {
    let mut files = Vec::new();
    for folder in SOURCES {
        let path = root.join(folder);
        if !path.is_dir() {
            continue;
        }
        for entry in std::fs::read_dir(&path).map_err(Error::io("read", &path))? {
            let name = entry.map_err(Error::io("read", &path))?.file_name();
            if Path::new(&name).extension().is_some_and(|e| e == "c") {
                files.push(Path::new(folder).join(name).into_os_string());
            }
        }
    }
    files.sort();
    Ok(files)
}
