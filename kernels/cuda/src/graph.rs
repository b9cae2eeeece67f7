//! CUDA graphs: the launches of a whole step, recorded once and replayed by one call.

use crate::Result;
use crate::device::Device;
use crate::memory::Arena;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::sync::Arc;

/// Recorded launches, ready to be replayed on the device's stream. They keep the addresses that they were recorded with: the buffers must still be
/// there, and what they hold at the time of a replay is what is read and written.
pub struct Graph {
    exec: sys::CUgraphExec,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Whatever the launches point into stays mapped.
    _arena: Arc<Arena>,
}
// SAFETY: a handle that any thread may use, one at a time: replaying needs `&mut`.
#[expect(unsafe_code, reason = "a driver handle")]
unsafe impl Send for Graph {}

impl Graph {
    /// Replays the launches after everything launched so far.
    ///
    /// # Errors
    /// The driver's.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn launch(&mut self) -> Result<()> {
        self.context.bind_to_thread()?;
        // SAFETY: an instantiated graph and a live stream; every launch in it was checked when it was recorded, and the arena's memory is held.
        Ok(unsafe { result::graph::launch(self.exec, self.stream.cu_stream()) }?)
    }
}

impl Drop for Graph {
    #[expect(unsafe_code, reason = "the driver's interface")]
    fn drop(&mut self) {
        // Nothing useful can be done about a failure. The driver keeps a graph that is running until it is done.
        let _ = self.context.bind_to_thread();
        // SAFETY: made by `capture`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

impl Device {
    /// Records what `launches` launches, without running it. Transfers from and to host memory, allocations of new chunks and synchronisation cannot
    /// be recorded: they fail.
    ///
    /// # Errors
    /// Those of `launches`, or the driver's.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn capture(&self, launches: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.context().bind_to_thread()?;
        let stream = self.stream().cu_stream();
        // SAFETY: a live stream.
        unsafe { result::stream::begin_capture(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) }?;
        let outcome = launches();
        // The recording ends even after a failure: the stream would stay unusable.
        // SAFETY: the stream is being recorded.
        let graph = unsafe { result::stream::end_capture(stream) };
        outcome?;
        let graph = graph?;
        // SAFETY: the graph that was recorded; null (nothing was launched) is refused by the driver.
        let exec = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        if !graph.is_null() {
            // SAFETY: instantiation has its own copy.
            let _ = unsafe { result::graph::destroy(graph) };
        }
        let (context, stream, arena) = (Arc::clone(self.context()), Arc::clone(self.stream()), Arc::clone(self.arena()));
        Ok(Graph { exec: exec?, context, stream, _arena: arena })
    }
}
