//! JavaScript: componentize-qjs, which puts QuickJS, the modules and their state after loading into the component.

use std::ffi::OsStr;
use std::path::Path;

use super::Tool;
use crate::{Error, Project};

/// Builds `plugin.js` into a component without manifest and without imports of WASI.
pub(super) fn build(project: &Project, work: &Path, _shared: Option<&Path>) -> Result<Vec<u8>, Error> {
    let install = format!("Run `npm install` in {}; Node.js 18 or later is needed", project.root.display());
    let candidates = [project.root.join("node_modules/.bin/componentize-qjs"), "componentize-qjs".into()];
    let tool = Tool::find("componentize-qjs", &candidates, &install)?;
    let out = work.join("component.wasm");
    let args = ["--wit", "wit", "--world", "plugin", "--js", "plugin.js", "--stub-wasi", "--sync", "--output"];
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([out.as_os_str()]).collect();
    tool.run(&project.root, &args, &[])?;
    std::fs::read(&out).map_err(Error::io("read", &out))
}
