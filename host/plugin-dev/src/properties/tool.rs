//! Tools: an episode depends on its calls alone, and no call ends it.

use std::sync::Arc;

use serde_json::Value;
use trainer_plugin_host::tools::{Call, ToolContext};
use trainer_plugin_host::{Plugin, PluginError};

use super::{Checked, Inputs, brief};

pub(super) fn check(plugin: &Arc<Plugin>, inputs: &Inputs<'_>) -> Vec<(&'static str, Checked)> {
    let settings: Vec<Value> = inputs.settings().into_iter().filter(|s| plugin.check_settings(s).is_ok()).collect();
    let each = |run: &dyn Fn(&Value) -> Checked| -> Checked {
        settings.iter().try_for_each(|settings| run(settings).map_err(|e| format!("under settings {settings}: {e}")))
    };
    let calls: Vec<Call> = inputs.calls("call").filter_map(|step| step.args.first()?.as_array()).flatten().filter_map(call).collect();
    let mut all = vec![
        ("the fixtures hold calls to try", if calls.is_empty() { Err("no fixture calls `call`".to_owned()) } else { Ok(()) }),
        (
            "every tool has a name of its own and a valid JSON Schema",
            each(&|settings| {
                let tools = plugin.tools(settings).map_err(|e| e.to_string())?;
                if tools.is_empty() { Err("there is no tool".to_owned()) } else { Ok(()) }
            }),
        ),
        ("a wrong call is a tool error, and no trap", each(&|settings| wrong_calls(plugin, settings))),
    ];
    if plugin.manifest().deterministic {
        all.push((
            "the same calls give the same results and the same state",
            each(&|settings| {
                let (first, second) = (episode(plugin, settings, &calls), episode(plugin, settings, &calls));
                let (first, second) = (first.map_err(|e| e.to_string())?, second.map_err(|e| e.to_string())?);
                if first == second { Ok(()) } else { Err(format!("{} and {}", brief(&first), brief(&second))) }
            }),
        ));
    }
    all
}

/// Outcomes and state of an episode, as text.
fn episode(plugin: &Arc<Plugin>, settings: &Value, calls: &[Call]) -> Result<String, PluginError> {
    let context = ToolContext { settings: settings.clone(), seed: 3407, now_ms: 1_700_000_000_000 };
    let mut session = plugin.tool_session(&context)?;
    let mut outcomes = Vec::with_capacity(calls.len());
    for call in calls {
        outcomes.extend(session.call(std::slice::from_ref(call))?);
    }
    Ok(format!("{outcomes:?} {:?}", session.state_digest()?))
}

fn wrong_calls(plugin: &Arc<Plugin>, settings: &Value) -> Checked {
    let tools = plugin.tools(settings).map_err(|e| e.to_string())?;
    let names = tools.iter().map(|t| t.name.as_str()).chain(["no_such_tool", ""]);
    for name in names {
        for arguments in ["{}", "{\"\": null}", "{\"a\": [[[[]]]]}", &format!("{{\"x\": \"{}\"}}", "y".repeat(10_000))] {
            // Each in an episode of its own, so that one does not hide another.
            let call = Call { name: name.to_owned(), arguments: arguments.to_owned() };
            episode(plugin, settings, std::slice::from_ref(&call)).map_err(|e| format!("{name}({}): {e}", brief(arguments)))?;
        }
    }
    Ok(())
}

/// A call as a fixture writes it.
fn call(json: &Value) -> Option<Call> {
    let arguments = json.get("arguments")?;
    Some(Call {
        name: json.get("name")?.as_str()?.to_owned(),
        arguments: arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned),
    })
}
