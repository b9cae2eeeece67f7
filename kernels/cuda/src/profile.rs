//! Where the time of a step goes: events around every launch, summed by kernel.

use crate::Result;
use cudarc::driver::{CudaStream, result, sys};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The time of one kernel in a profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// The kernel, or the library's product with its sizes.
    pub name: String,
    /// Launches.
    pub launches: usize,
    /// All of them together, in microseconds on the card.
    pub microseconds: f64,
}

struct Span {
    name: String,
    start: sys::CUevent,
    end: sys::CUevent,
}
// SAFETY: event handles may be used from any thread.
#[expect(unsafe_code, reason = "driver handles")]
unsafe impl Send for Span {}

/// Collects spans while it is on.
#[derive(Default)]
pub struct Profile {
    spans: Mutex<Option<Vec<Span>>>,
}

fn event() -> Result<sys::CUevent> {
    Ok(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?)
}

impl Profile {
    /// Forgets everything and collects from now on.
    pub fn start(&self) {
        *self.spans() = Some(Vec::new());
    }

    fn spans(&self) -> MutexGuard<'_, Option<Vec<Span>>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `launch`, between two events if collecting. Spans within `launch` are part of this one.
    ///
    /// # Errors
    /// Those of `launch`, or the driver's.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn span(&self, stream: &CudaStream, name: impl FnOnce() -> String, launch: impl FnOnce() -> Result<()>) -> Result<()> {
        // Taken out, and not locked, while `launch` runs: a product by our own kernels is a span around another.
        let Some(mut spans) = self.spans().take() else { return launch() };
        let timed = (|| {
            let (start, end) = (event()?, event()?);
            // SAFETY: live events and stream; the context is current, since events were just made in it.
            unsafe { result::event::record(start, stream.cu_stream()) }?;
            launch()?;
            // SAFETY: as above.
            unsafe { result::event::record(end, stream.cu_stream()) }?;
            Ok(Span { name: name(), start, end })
        })();
        let result = timed.map(|span| spans.push(span));
        *self.spans() = Some(spans);
        result
    }

    /// Stops collecting; gives the sums by name, the longest first.
    ///
    /// # Errors
    /// The driver's.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn stop(&self, stream: &CudaStream) -> Result<Vec<Timing>> {
        stream.synchronize()?;
        let spans = self.spans().take().unwrap_or_default();
        let mut sums: BTreeMap<String, (usize, f64)> = BTreeMap::new();
        for span in spans {
            // SAFETY: both events were recorded and have passed; they are destroyed once.
            let milliseconds = unsafe {
                let ms = result::event::elapsed(span.start, span.end);
                result::event::destroy(span.start)?;
                result::event::destroy(span.end)?;
                ms
            }?;
            let sum = sums.entry(span.name).or_default();
            *sum = (sum.0 + 1, sum.1 + f64::from(milliseconds) * 1e3);
        }
        let mut timings: Vec<Timing> =
            sums.into_iter().map(|(name, (launches, microseconds))| Timing { name, launches, microseconds }).collect();
        timings.sort_by(|a, b| b.microseconds.total_cmp(&a.microseconds));
        Ok(timings)
    }
}
