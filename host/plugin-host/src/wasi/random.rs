//! `wasi:random`: bytes that follow from a seed, or this machine's where they are granted.

use wasmtime::StoreContextMut;

use super::{Interface, Stopped};
use crate::call::State;

/// The most bytes at a time.
const MOST: u64 = 1 << 20;

/// `wasi:random/random`
pub(super) fn random(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-random-bytes", |mut store: StoreContextMut<'_, State>, (length,): (u64,)| bytes(store.data_mut(), length))?;
    interface.func("get-random-u64", |mut store: StoreContextMut<'_, State>, (): ()| Ok((number(store.data_mut())?,)))
}

/// `wasi:random/insecure`
pub(super) fn insecure(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface
        .func("get-insecure-random-bytes", |mut store: StoreContextMut<'_, State>, (length,): (u64,)| bytes(store.data_mut(), length))?;
    interface.func("get-insecure-random-u64", |mut store: StoreContextMut<'_, State>, (): ()| Ok((number(store.data_mut())?,)))
}

/// `wasi:random/insecure-seed`
pub(super) fn insecure_seed(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    let pair = |mut store: StoreContextMut<'_, State>, (): ()| -> wasmtime::Result<((u64, u64),)> {
        let state = store.data_mut();
        Ok(((number(state)?, number(state)?),))
    };
    interface.func("insecure-seed", pair)
}

fn bytes(state: &mut State, length: u64) -> wasmtime::Result<(Vec<u8>,)> {
    if length > MOST {
        return Err(Stopped(format!("it asks for {length} random bytes at once; {MOST} are the most")).into());
    }
    Ok((state.world.bytes(usize::try_from(length)?)?,))
}

fn number(state: &mut State) -> wasmtime::Result<u64> {
    let bytes = state.world.bytes(8)?;
    Ok(bytes.try_into().map(u64::from_le_bytes).unwrap_or_default())
}
