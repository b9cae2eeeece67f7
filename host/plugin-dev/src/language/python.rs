//! Python: componentize-py, which puts the interpreter, the modules and their state after loading into the component.

use std::ffi::OsStr;
use std::path::Path;

use super::{Tool, candidates};
use crate::{Error, Project};

/// The first version that makes the modules that the scaffold's code imports.
const OLDEST: (u32, u32) = (0, 25);

/// Builds `app.py` into a component without manifest and without imports of WASI.
pub(super) fn build(project: &Project, work: &Path, _shared: Option<&Path>) -> Result<Vec<u8>, Error> {
    let install = format!(
        "Install it with `pip install \"componentize-py>={}.{}\"`, or for this project alone: `python3 -m venv .trainer/venv && .trainer/venv/bin/pip \
         install \"componentize-py>={}.{}\"` in {}",
        OLDEST.0,
        OLDEST.1,
        OLDEST.0,
        OLDEST.1,
        project.root.display()
    );
    let tool = Tool::find("componentize-py", &candidates(project, &["componentize-py"]), &install)?;
    let version = tool.run(&project.root, &["--version".as_ref()], &[])?;
    if super::version(&version).is_some_and(|found| found < OLDEST) {
        let found = format!("`{}` says that it is {version}, which is too old", tool.path().display());
        return Err(Error::Missing { program: format!("componentize-py {}.{}", OLDEST.0, OLDEST.1), looked: found, install });
    }
    let out = work.join("component.wasm");
    let args = ["-q", "-d", "wit", "-w", "plugin", "componentize", "--stub-wasi", "app", "-p", ".", "-o"];
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([out.as_os_str()]).collect();
    tool.run(&project.root, &args, &[])?;
    std::fs::read(&out).map_err(Error::io("read", &out))
}
