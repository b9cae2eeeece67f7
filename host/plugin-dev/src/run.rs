//! `trainer plugin run`: calls from the shell.

use std::io::BufRead;
use std::sync::Arc;

use serde_json::Value;
use trainer_plugin_host::dynamic::Caller;
use trainer_plugin_host::{Kind, Plugin};

use crate::Error;
use crate::fixtures::only_kind;

/// How many rows of an input go into one call.
const BATCH: usize = 64;
/// The longest row.
const MAX_ROW: usize = 16 << 20;

/// A caller for the kind asked for, or for the only one; where the plugin has several, for the one that has the function.
///
/// # Errors
/// If no kind fits, or the settings do not.
pub fn caller(plugin: &Arc<Plugin>, kind: Option<Kind>, function: &str, settings: &Value) -> Result<Caller, Error> {
    let fitting =
        match kind {
            Some(kind) => Some(kind),
            None => plugin.kinds().iter().map(|k| k.kind).find(|kind| {
                plugin.caller(*kind, settings).is_ok_and(|caller| plugin.kinds().len() > 1 && caller.function(function).is_ok())
            }),
        };
    let kind = only_kind(plugin, fitting).map_err(Error::Argument)?;
    Ok(plugin.caller(kind, settings)?)
}

/// Calls a function that takes rows with the lines of an input, each one row, in batches. What it returns for each row goes to `take`, in
/// order.
///
/// # Errors
/// If the function takes no rows, a line is none, the plugin fails, or `take` does.
pub fn rows(
    caller: &mut Caller,
    function: &str,
    input: &mut dyn BufRead,
    name: &str,
    take: &mut dyn FnMut(Value) -> Result<(), Error>,
) -> Result<u64, Error> {
    let found = caller.function(function)?;
    if !(found.takes_rows && found.params.len() == 1) {
        return Err(Error::Argument(format!("`{}` takes no rows; give its arguments as one JSON array with --args", found.signature())));
    }
    let text_rows = found.params.first().is_some_and(|(_, ty)| ty == "list<string>");
    let mut batch = Vec::with_capacity(BATCH);
    let mut done = 0;
    let mut number = 0u64;
    loop {
        let line = line(input, name, number + 1)?;
        let ended = line.is_none();
        if let Some(line) = line {
            number += 1;
            if line.trim().is_empty() {
                continue;
            }
            let row = match serde_json::from_str::<Value>(&line) {
                // Keys stay in their order and numbers as they are written.
                Ok(_) if text_rows => Value::from(line.trim()),
                Ok(row) => row,
                Err(e) => return Err(Error::Argument(format!("{name}:{number}: the line is no JSON: {e}"))),
            };
            batch.push(row);
        }
        if batch.len() == BATCH || (ended && !batch.is_empty()) {
            let sent = batch.len();
            let answer = caller.call(function, &[Value::Array(std::mem::take(&mut batch))])?;
            match answer {
                Value::Array(answers) if answers.len() == sent => answers.into_iter().try_for_each(&mut *take)?,
                other => take(other)?,
            }
            done += sent as u64;
        }
        if ended {
            return Ok(done);
        }
    }
}

/// The next line, without its end.
fn line(input: &mut dyn BufRead, name: &str, number: u64) -> Result<Option<String>, Error> {
    let mut bytes = Vec::new();
    let mut limited = std::io::Read::take(&mut *input, MAX_ROW as u64 + 1);
    let read = limited.read_until(b'\n', &mut bytes).map_err(Error::io("read", name))?;
    if read == 0 {
        return Ok(None);
    }
    if bytes.len() > MAX_ROW {
        return Err(Error::Argument(format!("{name}:{number}: the line has more than {MAX_ROW} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| Error::Argument(format!("{name}:{number}: the line is not UTF-8")))
}
