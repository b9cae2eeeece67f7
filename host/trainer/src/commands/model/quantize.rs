//! `trainer model quantize`

use std::process::ExitCode;

use anyhow::Result;
use trainer_export::{Provenance, QuantizeOptions, Subject, quantize};

use super::args::ModelQuantizeArgs;
use crate::commands::export::{done, shard_limit};
use crate::output::check_json;

/// Runs the command.
pub fn run(args: &ModelQuantizeArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let (files, source) = super::named_model(&args.model)?;
    let name = args.out.file_name().map_or_else(|| source.to_string(), |n| n.to_string_lossy().into_owned());
    let subject = Subject::open(files, None, None, Provenance { name, base: source.to_string(), lock: None })?.in_type(args.dtype.get());
    let options = QuantizeOptions { skip: args.skip.clone(), double: !args.single, shard_limit: shard_limit(args.shard_size) };
    done(&quantize(&subject, &options, &args.out)?, args.json.as_deref())
}
