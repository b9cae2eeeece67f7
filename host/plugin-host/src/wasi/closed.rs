//! `wasi:filesystem` and `wasi:sockets`: no folder to begin from, and a network that reaches nothing. Everything else of them is refused by
//! the interfaces' own errors.

use wasmtime::component::Resource;

use super::Interface;

/// The network.
pub(super) struct Network;
/// A file or folder: there is none.
pub(super) struct Descriptor;
/// What else nobody can have.
pub(super) struct Absent;

/// `wasi:filesystem/preopens`
pub(super) fn preopens(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-directories", |_, (): ()| Ok((Vec::<(Resource<Descriptor>, String)>::new(),)))
}

/// `wasi:sockets/instance-network`
pub(super) fn instance_network(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("instance-network", |_, (): ()| Ok((Resource::<Network>::new_own(0),)))
}
