//! `wasi:clocks`: clocks that stand still, or this machine's where they are granted.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lower, Resource};

use super::Interface;
use super::io::Pollable;
use crate::call::State;

const SECOND: u128 = 1_000_000_000;

/// A time since 1970.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

impl Datetime {
    fn of(nanoseconds: u128) -> Self {
        let part = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        Self { seconds: part(nanoseconds / SECOND), nanoseconds: u32::try_from(nanoseconds % SECOND).unwrap_or_default() }
    }
}

/// `wasi:clocks/monotonic-clock`
pub(super) fn monotonic(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("now", |store, (): ()| Ok((store.data().world.monotonic(),)))?;
    interface.func("resolution", |_, (): ()| Ok((1_u64,)))?;
    interface.func("subscribe-instant", |mut store: StoreContextMut<'_, State>, (when,): (u64,)| timer(store.data_mut(), when))?;
    interface.func("subscribe-duration", |mut store: StoreContextMut<'_, State>, (span,): (u64,)| {
        let when = store.data().world.monotonic().saturating_add(span);
        timer(store.data_mut(), when)
    })
}

fn timer(state: &mut State, when: u64) -> wasmtime::Result<(Resource<Pollable>,)> {
    Ok((Resource::new_own(state.world.timer(when)?),))
}

/// `wasi:clocks/wall-clock`
pub(super) fn wall(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("now", |store, (): ()| Ok((Datetime::of(store.data().world.wall()),)))?;
    interface.func("resolution", |_, (): ()| Ok((Datetime { seconds: 0, nanoseconds: 1 },)))
}
