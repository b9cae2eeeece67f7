//! Gradient norm, clearing and AdamW over all trained tensors at once.
//!
//! The kernels work on a table of addresses on the card. It is made when a set of tensors is first seen and kept as long as the same set comes again.

use super::types::Param;
use super::{Cuda, Outcome};
use crate::launch::{AdamwEntry, AdamwList, DeviceState};
use std::sync::PoisonError;
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::ops::AdamWItem;

/// The tables of the sets of tensors that were seen last.
#[derive(Default)]
pub struct Lists {
    /// Of gradients alone, by their addresses.
    gradients: Option<(Vec<u64>, AdamwList)>,
    /// Of parameters, gradients and states, by their addresses.
    steps: Option<(Vec<u64>, AdamwList)>,
}

/// The list for `key`, made by `make` unless it is at hand.
fn at_hand(held: &mut Option<(Vec<u64>, AdamwList)>, key: Vec<u64>, make: impl FnOnce() -> Outcome<AdamwList>) -> Outcome<&AdamwList> {
    if held.as_ref().is_none_or(|(of, _)| *of != key) {
        *held = None;
        *held = Some((key, make()?));
    }
    match held {
        Some((_, list)) => Ok(list),
        None => Err(trainer_kernels::ops::OpsError::Device("no list of tensors: a bug in trainer-kernels-cuda".into())),
    }
}

/// Addresses of a state's parts.
fn addresses(state: &DeviceState) -> [u64; 2] {
    match state {
        DeviceState::ThirtyTwo { m, v } => [m.ptr(), v.ptr()],
        DeviceState::Eight { m, v, .. } => [m.ptr(), v.ptr()],
    }
}

impl Cuda {
    pub(super) fn norm_sq(&self, grads: &[&Param]) -> Outcome<f64> {
        let mut lists = self.optimizer.lock().unwrap_or_else(PoisonError::into_inner);
        let key = grads.iter().map(|g| g.values().ptr()).collect();
        let list =
            at_hand(&mut lists.gradients, key, || Ok(self.device.gradient_list(&grads.iter().map(|g| g.values()).collect::<Vec<_>>())?))?;
        Ok(self.device.grad_norm_sq(list)?)
    }

    pub(super) fn zero_all(&self, params: &mut [&mut Param]) -> Outcome<()> {
        let mut lists = self.optimizer.lock().unwrap_or_else(PoisonError::into_inner);
        let key = params.iter().map(|p| p.values().ptr()).collect();
        let list = at_hand(&mut lists.gradients, key, || {
            Ok(self.device.gradient_list(&params.iter().map(|p| p.values()).collect::<Vec<_>>())?)
        })?;
        self.device.zero_grads(list)?;
        params.iter_mut().for_each(|p| {
            p.change();
        });
        Ok(())
    }

    pub(super) fn adamw_step(
        &self,
        items: &mut [AdamWItem<'_, Param, DeviceState>],
        config: &AdamWConfig,
        lr: f32,
        grad_scale: f32,
        step: u64,
    ) -> Outcome<()> {
        let mut lists = self.optimizer.lock().unwrap_or_else(PoisonError::into_inner);
        let key = items
            .iter()
            .flat_map(|i| {
                let [m, v] = addresses(i.state);
                [i.param.values().ptr(), i.grad.values().ptr(), m, v]
            })
            .collect();
        let list = at_hand(&mut lists.steps, key, || {
            let entries: Vec<AdamwEntry<'_>> =
                items.iter().map(|i| AdamwEntry { param: i.param.values(), grad: i.grad.values(), state: &*i.state }).collect();
            Ok(self.device.adamw_list(&entries)?)
        })?;
        self.device.adamw(list, config, lr.into(), grad_scale.into(), step)?;
        items.iter_mut().for_each(|i| {
            i.param.change();
        });
        Ok(())
    }
}
