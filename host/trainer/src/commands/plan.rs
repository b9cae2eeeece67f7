//! `trainer plan`

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use trainer_config::Recipe;
use trainer_engine::Keep;
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_runtime::{DeviceInfo, open_device_as, with_ops};
use trainer_train::plan_run;

use crate::cli::PlanArgs;
use crate::output::{check_json, put, write_json};
use crate::ui::plan_table;

/// A plan as JSON.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// This program's version.
    pub trainer: &'static str,
    /// What it is for.
    pub device: DeviceInfo,
    /// The backend's own description.
    pub backend: String,
    /// The model.
    pub model: String,
    /// What was asked for: auto, fastest or smallest.
    pub goal: String,
    /// Samples in a micro-batch and micro-batches in a step, as the recipe has them.
    pub batch: usize,
    /// See `batch`.
    pub accumulation: usize,
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// `packed`: the weights stay as they are stored and are unpacked for each use; `unpacked`: once.
    pub weights: &'static str,
    /// What each layer keeps from forward to backward.
    pub keeps: Vec<Keep>,
    /// Whether layer inputs wait in host memory, and the embedding lies there.
    pub offload: bool,
    /// Positions whose logits exist at the same time in the loss.
    pub loss_rows: usize,
    /// Bytes by part.
    pub parts: BTreeMap<String, u64>,
    /// Bytes of all parts.
    pub total: u64,
    /// Bytes that may be used; none where there is no limit.
    pub limit: Option<u64>,
    /// Predicted speed, where the backend predicts one.
    pub tokens_per_second: Option<f64>,
}

/// Runs the command.
pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let recipe = recipe(args)?;
    let open = open_device_as(&recipe.device, recipe.train.precision)?;
    let plan = with_ops!(open.backend, ops => plan(ops.as_ref(), &recipe, open.info))?;
    show(&plan, args.json.as_deref())
}

/// The recipe with the command's two flags over it.
fn recipe(args: &PlanArgs) -> Result<Recipe> {
    let mut over = args.over.clone();
    over.set.extend(args.memory_limit.map(|gib| format!("device.memory_limit={gib}")));
    over.set.extend(args.plan.as_deref().map(|plan| format!("device.plan={}", super::toml_string(plan))));
    super::recipe(args.recipe.as_deref(), &over)
}

fn plan<O: Ops>(ops: &O, recipe: &Recipe, device: DeviceInfo) -> Result<Plan> {
    let (config, planned) = plan_run(ops, recipe, &device)?;
    let choice = &planned.choice;
    Ok(Plan {
        trainer: env!("CARGO_PKG_VERSION"),
        device,
        backend: ops.describe(),
        model: recipe.model.source.to_string(),
        goal: recipe.device.plan.to_string(),
        batch: recipe.train.batch,
        accumulation: recipe.train.accumulation,
        max_tokens: planned.max_tokens,
        weights: match choice.weights {
            WeightPlan::Unpacked => "unpacked",
            WeightPlan::Packed => "packed",
        },
        keeps: planned.keeps(config.num_hidden_layers),
        offload: choice.offload,
        loss_rows: choice.loss_rows,
        parts: choice.memory.parts.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
        total: choice.memory.total(),
        limit: planned.limit,
        tokens_per_second: planned.tokens_per_second(),
    })
}

fn show(plan: &Plan, json: Option<&Path>) -> Result<ExitCode> {
    match json {
        Some(target) => write_json(target, plan)?,
        None => put(format_args!("{}", plan_table(plan))),
    }
    Ok(ExitCode::SUCCESS)
}
