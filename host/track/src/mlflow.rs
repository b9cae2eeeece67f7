//! MLflow by its REST interface, version 2.0: an experiment by name, a run whose id the notes keep, values in batches.

use base64::Engine;
use serde_json::{Value, json};

use crate::follow::now;
use crate::http::{Answer, Server, escape};
use crate::sink::{About, Item, Load, Sink, SinkError};
use crate::{Outcome, Setup};

const DEFAULT: &str = "http://127.0.0.1:5000";
const API: &str = "/api/2.0/mlflow";
/// Limits of `runs/log-batch`.
const METRICS: usize = 1000;
const PARAMETERS: usize = 100;
/// What a parameter's value may hold in every version since 2.0.
const PARAMETER: usize = 500;
/// What a tag's value may hold.
const TAG: usize = 5000;

/// Delivers to a server.
pub struct Mlflow {
    server: Server,
    project: String,
    name: String,
    experiment: String,
    run: String,
}

impl Mlflow {
    /// To the server of the settings, the environment, or this machine.
    pub fn new(setup: &Setup) -> Self {
        let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let uri = setup.mlflow_uri.clone().or_else(|| env("MLFLOW_TRACKING_URI")).unwrap_or_else(|| DEFAULT.to_owned());
        let basic = || {
            let pair = format!("{}:{}", env("MLFLOW_TRACKING_USERNAME")?, env("MLFLOW_TRACKING_PASSWORD").unwrap_or_default());
            Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
        };
        let authorization = env("MLFLOW_TRACKING_TOKEN").map(|t| format!("Bearer {t}")).or_else(basic);
        Self {
            server: Server::new(&uri, authorization),
            project: setup.project.clone(),
            name: setup.name.clone(),
            experiment: String::new(),
            run: String::new(),
        }
    }

    fn post(&self, what: &str, body: &Value) -> Result<Value, SinkError> {
        let answer = self.server.post(&format!("{API}/{what}"), body)?;
        if answer.ok() { Ok(answer.body) } else { Err(refused(&answer, what)) }
    }

    /// The experiment's id; made if there is none of that name.
    fn experiment(&self) -> Result<String, SinkError> {
        let found = self.server.get(&format!("{API}/experiments/get-by-name?experiment_name={}", escape(&self.project)))?;
        if found.ok() {
            if found.body.pointer("/experiment/lifecycle_stage").and_then(Value::as_str) == Some("deleted") {
                return Err(SinkError::new(format!(
                    "the experiment {:?} is deleted on {}; restore it there, or set another track.project",
                    self.project,
                    self.server.base()
                )));
            }
            return text(&found.body, "/experiment/experiment_id");
        }
        if found.status != 404 {
            return Err(found.refusal("experiments/get-by-name"));
        }
        let made = self.server.post(&format!("{API}/experiments/create"), &json!({ "name": self.project }))?;
        if made.ok() {
            return text(&made.body, "/experiment_id");
        }
        // Another run may have made it at the same moment.
        let found = self.server.get(&format!("{API}/experiments/get-by-name?experiment_name={}", escape(&self.project)))?;
        if found.ok() { text(&found.body, "/experiment/experiment_id") } else { Err(made.refusal("experiments/create")) }
    }

    /// Whether the run of the notes is still there; a deleted one is not.
    fn known(&self, run: &str) -> Result<Option<Value>, SinkError> {
        let answer = self.server.get(&format!("{API}/runs/get?run_id={}", escape(run)))?;
        match answer.status {
            404 => Ok(None),
            _ if answer.ok() => {
                let active = answer.body.pointer("/run/info/lifecycle_stage").and_then(Value::as_str) != Some("deleted");
                Ok(active.then_some(answer.body))
            }
            _ => Err(answer.refusal("runs/get")),
        }
    }

    /// A new run with everything that does not change.
    fn create(&mut self, about: &About) -> Result<(), SinkError> {
        let tags: Vec<Value> = about
            .facts
            .iter()
            .map(|(key, value)| json!({ "key": key, "value": cut(value, TAG) }))
            .chain([json!({ "key": "mlflow.source.name", "value": "trainer" }), json!({ "key": "mlflow.source.type", "value": "LOCAL" })])
            .collect();
        let body = json!({
            "experiment_id": self.experiment, "run_name": self.name, "start_time": milliseconds(about.began), "tags": tags,
        });
        let made = self.post("runs/create", &body)?;
        self.run = text(&made, "/run/info/run_id")?;
        let parameters: Vec<Value> = about
            .settings
            .iter()
            .map(|(key, value)| json!({ "key": crate::follow::label(key), "value": cut(&plain(value), PARAMETER) }))
            .collect();
        for chunk in parameters.chunks(PARAMETERS) {
            self.post("runs/log-batch", &json!({ "run_id": self.run, "params": chunk }))?;
        }
        if let Some(folder) =
            made.pointer("/run/info/artifact_uri").and_then(Value::as_str).and_then(|uri| uri.strip_prefix("mlflow-artifacts:/"))
        {
            for (name, text) in [("recipe.toml", &about.recipe_text), ("lock.json", &about.lock_text)] {
                let folder: Vec<String> = folder.split('/').filter(|p| !p.is_empty()).map(escape).collect();
                let path = format!("/api/2.0/mlflow-artifacts/artifacts/{}/{name}", folder.join("/"));
                // Only a server that stores artifacts for its clients takes them; the values matter more.
                let sent = self.server.send("PUT", &path, "text/plain; charset=utf-8", text.clone().into_bytes());
                if let Some(why) = sent.map_or_else(|e| Some(e.message), |a| (!a.ok()).then(|| a.refusal("an artifact").message)) {
                    tracing::debug!("mlflow: {name} was not stored: {why}");
                }
            }
        }
        Ok(())
    }
}

fn refused(answer: &Answer, what: &str) -> SinkError {
    let error = answer.refusal(what);
    // A run that was deleted meanwhile: everything again, in a new one.
    let gone = answer.status == 404 || answer.body.get("error_code").and_then(Value::as_str) == Some("RESOURCE_DOES_NOT_EXIST");
    if gone && what.starts_with("runs/") { SinkError::lost(error.message) } else { error }
}

fn text(body: &Value, place: &str) -> Result<String, SinkError> {
    let found = body.pointer(place).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| SinkError::new(format!("the server's answer has no {place}; is it an MLflow server?")))
}

fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

/// A value as `runs/log-batch` takes it.
fn metric(key: &str, value: f64, at: f64, step: u64) -> Value {
    json!({ "key": key, "value": value, "timestamp": milliseconds(at), "step": step })
}

/// What the card had to do, under the names of MLflow's own system metrics, which its page shows apart. A run has one card.
fn system(load: &Load) -> Vec<(&'static str, f64)> {
    let values = [
        ("system/gpu_0_utilization_percentage", load.gpu),
        ("system/gpu_0_memory_usage_percentage", load.gpu_memory_percent()),
        ("system/gpu_0_memory_usage_megabytes", load.gpu_memory.map(|b| b as f64 / 1e6)),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// A setting as text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// At most so many characters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most - 1).chain(['…']).collect() }
}

impl Sink for Mlflow {
    fn open(&mut self, about: &About, memory: &mut Value) -> Result<Option<u64>, SinkError> {
        let same = memory.get("server").and_then(Value::as_str) == Some(self.server.base());
        let run = memory.get("run_id").and_then(Value::as_str).filter(|_| same).map(str::to_owned);
        if let Some(run) = run
            && let Some(found) = self.known(&run)?
        {
            self.experiment = text(&found, "/run/info/experiment_id")?;
            self.run = run;
            self.post("runs/update", &json!({ "run_id": self.run, "status": "RUNNING" }))?;
        } else {
            self.experiment = self.experiment()?;
            self.create(about)?;
        }
        *memory = json!({ "server": self.server.base(), "experiment_id": self.experiment, "run_id": self.run });
        Ok(None)
    }

    fn send(&mut self, items: &[Item]) -> Result<(), SinkError> {
        let mut metrics = Vec::new();
        for item in items {
            match item {
                Item::Step { step, at, values, load } => {
                    metrics.extend(values.iter().map(|(key, value)| metric(key, *value, *at, *step)));
                    metrics.extend(system(load).into_iter().map(|(key, value)| metric(key, value, *at, *step)));
                }
                Item::Evaluation { step, at, values, .. } => {
                    metrics.extend(values.iter().map(|(key, value)| metric(key, *value, *at, *step)));
                }
                Item::Sample { step, prompt, text, .. } => {
                    let value = cut(&format!("user: {prompt}\nassistant: {text}"), TAG);
                    self.post("runs/set-tag", &json!({ "run_id": self.run, "key": format!("sample.{step}"), "value": value }))?;
                }
            }
        }
        for chunk in metrics.chunks(METRICS) {
            self.post("runs/log-batch", &json!({ "run_id": self.run, "metrics": chunk }))?;
        }
        Ok(())
    }

    fn close(&mut self, outcome: Outcome) -> Result<(), SinkError> {
        let status = match outcome {
            Outcome::Complete => "FINISHED",
            Outcome::Stopped => "KILLED",
            Outcome::Failed => "FAILED",
        };
        self.post("runs/update", &json!({ "run_id": self.run, "status": status, "end_time": milliseconds(now()) }))?;
        Ok(())
    }

    fn place(&self) -> String {
        if self.run.is_empty() {
            return self.server.base().to_owned();
        }
        format!("{}/#/experiments/{}/runs/{}", self.server.base(), self.experiment, self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("äöüß", 3), "äö…");
        assert_eq!(plain(&json!("x")), "x");
        assert_eq!(plain(&json!([1, "x"])), "[1,\"x\"]");
    }
}
