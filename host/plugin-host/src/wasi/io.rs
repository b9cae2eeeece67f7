//! `wasi:io`: an input that has ended, an output that is the log, and things to wait for.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lower, Resource, WasmList};

use super::{Interface, Stopped};
use crate::call::{LOG_BYTES, State};

/// An error of a stream: there is none.
pub(super) struct IoError;
/// Something to wait for: 0, which is ready, or a timer's number.
pub(super) struct Pollable;
/// The input, which has ended.
pub(super) struct InputStream;
/// An output: [`STDOUT`] or [`STDERR`].
pub(super) struct OutputStream;

/// The number of standard output.
pub(super) const STDOUT: u32 = 1;
/// The number of standard error.
pub(super) const STDERR: u32 = 2;

/// What an output takes at a time.
const PERMIT: u64 = 64 << 10;

/// Why a stream gives or takes nothing.
#[derive(ComponentType, Lower)]
#[component(variant)]
pub(super) enum StreamError {
    /// Never.
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "a case of the interface")]
    LastOperationFailed(Resource<IoError>),
    /// It has ended.
    #[component(name = "closed")]
    Closed,
}

type Streamed<T> = (Result<T, StreamError>,);

/// `wasi:io/error`
pub(super) fn error(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("[method]error.to-debug-string", |_, (_,): (Resource<IoError>,)| Ok((String::new(),)))
}

/// `wasi:io/poll`
pub(super) fn poll(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface
        .func("[method]pollable.ready", |store, (pollable,): (Resource<Pollable>,)| Ok((store.data().world.ready(pollable.rep()),)))?;
    interface.func("[method]pollable.block", |mut store: StoreContextMut<'_, State>, (pollable,): (Resource<Pollable>,)| {
        wait(store.data_mut(), &[pollable.rep()]);
        Ok(())
    })?;
    interface.func("poll", |mut store: StoreContextMut<'_, State>, (pollables,): (Vec<Resource<Pollable>>,)| {
        if pollables.is_empty() {
            return Err(Stopped("it waits for nothing (wasi:io/poll with an empty list)".to_owned()).into());
        }
        let numbers: Vec<u32> = pollables.iter().map(Resource::rep).collect();
        wait(store.data_mut(), &numbers);
        let world = &store.data().world;
        let ready: Vec<u32> = (0..).zip(&numbers).filter(|(_, n)| world.ready(**n)).map(|(i, _)| i).collect();
        Ok((ready,))
    })
}

fn wait(state: &mut State, numbers: &[u32]) {
    let deadline = state.connection.deadline;
    state.world.wait(numbers, deadline);
}

/// `wasi:io/streams`
pub(super) fn streams(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        interface.func(name, |_, (_, _): (Resource<InputStream>, u64)| -> wasmtime::Result<Streamed<Vec<u8>>> {
            Ok((Err(StreamError::Closed),))
        })?;
    }
    for name in ["[method]input-stream.skip", "[method]input-stream.blocking-skip"] {
        interface
            .func(name, |_, (_, _): (Resource<InputStream>, u64)| -> wasmtime::Result<Streamed<u64>> { Ok((Err(StreamError::Closed),)) })?;
    }
    interface.func("[method]input-stream.subscribe", |_, (_,): (Resource<InputStream>,)| Ok((Resource::<Pollable>::new_own(0),)))?;
    interface.func("[method]output-stream.check-write", |_, (_,): (Resource<OutputStream>,)| -> wasmtime::Result<Streamed<u64>> {
        Ok((Ok(PERMIT),))
    })?;
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        interface.func(
            name,
            |mut store: StoreContextMut<'_, State>,
             (stream, contents): (Resource<OutputStream>, WasmList<u8>)|
             -> wasmtime::Result<Streamed<()>> {
                let all = contents.as_le_slice(&store);
                // The log takes no more in a call, so that a flood is not even copied.
                let bytes = all[..all.len().min(LOG_BYTES)].to_vec();
                store.data_mut().print(stream.rep() == STDERR, &bytes);
                Ok((Ok(()),))
            },
        )?;
    }
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        interface.func(name, |_, (_,): (Resource<OutputStream>,)| -> wasmtime::Result<Streamed<()>> { Ok((Ok(()),)) })?;
    }
    interface.func("[method]output-stream.subscribe", |_, (_,): (Resource<OutputStream>,)| Ok((Resource::<Pollable>::new_own(0),)))?;
    for name in ["[method]output-stream.write-zeroes", "[method]output-stream.blocking-write-zeroes-and-flush"] {
        interface.func(name, |_, (_, _): (Resource<OutputStream>, u64)| -> wasmtime::Result<Streamed<()>> { Ok((Ok(()),)) })?;
    }
    for name in ["[method]output-stream.splice", "[method]output-stream.blocking-splice"] {
        interface.func(name, |_, (_, _, _): (Resource<OutputStream>, Resource<InputStream>, u64)| -> wasmtime::Result<Streamed<u64>> {
            Ok((Err(StreamError::Closed),))
        })?;
    }
    Ok(())
}
