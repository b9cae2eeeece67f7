//! How busy the card of a run is, for those who look on: looked at about once a second by a thread of its own, so that no step waits for it.
//! Where nothing can be known (no card, no NVML, a slice of a card), there are no figures and no complaint.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::device::{Backend, OpenDevice};

/// How often a card is looked at. The library's own figures of load are means over up to a second.
const EVERY: Duration = Duration::from_secs(1);

/// What a card was found to do at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CardReading {
    /// The share of the last moments in which some kernel ran, in percent, where the card tells.
    pub load: Option<f64>,
    /// Memory in use by all processes, in bytes.
    pub memory: u64,
    /// Memory that there is, in bytes.
    pub memory_total: u64,
}

/// What is known of a card since one was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CardUse {
    /// The mean load since then, in percent; the last one that was seen, if the card was not looked at in between.
    pub load: Option<f64>,
    /// Memory in use by all processes when it was last looked at, in bytes.
    pub memory: Option<u64>,
    /// Memory that there is, in bytes.
    pub memory_total: Option<u64>,
    /// The most that the engine of this process held at a time so far, in bytes.
    pub engine_peak: Option<u64>,
}

/// Looks at the card until it is dropped.
pub struct CardWatch {
    shared: Arc<Shared>,
    engine_peak: Box<dyn Fn() -> Option<u64> + Send>,
}

#[derive(Default)]
struct Shared {
    gathered: Mutex<Gathered>,
    ended: Condvar,
}

/// Since the last time that somebody asked.
#[derive(Default)]
struct Gathered {
    loads: f64,
    count: u32,
    last: Option<CardReading>,
    ended: bool,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    fn add(&mut self, reading: Option<CardReading>) {
        if let Some(load) = reading.and_then(|r| r.load) {
            self.loads += load;
            self.count += 1;
        }
        self.last = reading;
    }
}

impl CardWatch {
    /// Of the card that a device is; of the CPU there is nothing to tell.
    pub fn of(device: &OpenDevice) -> Self {
        let Backend::Cuda(cuda) = &device.backend else { return Self::nothing() };
        let mut watch = match cuda.device().pci() {
            Ok(pci) => Self::every(EVERY, move || look_by_nvml(&pci)),
            Err(e) => {
                tracing::debug!("the card's load is not known: {e}");
                Self::nothing()
            }
        };
        let engine = Arc::clone(cuda);
        watch.engine_peak = Box::new(move || Some(engine.usage().peak));
        watch
    }

    /// Knows nothing.
    pub fn nothing() -> Self {
        Self { shared: Arc::default(), engine_peak: Box::new(|| None) }
    }

    /// By a source of readings, which is made in the thread that asks it, because loading a library takes time; none if there is no source.
    pub fn every<S: FnMut() -> Option<CardReading>>(pause: Duration, source: impl FnOnce() -> Option<S> + Send + 'static) -> Self {
        let watch = Self::nothing();
        let shared = Arc::clone(&watch.shared);
        let look = move || {
            let Some(mut source) = source() else { return };
            loop {
                let reading = source();
                let mut gathered = shared.open();
                gathered.add(reading);
                let goes_on = |g: &mut Gathered| !g.ended;
                let (gathered, _) = shared.ended.wait_timeout_while(gathered, pause, goes_on).unwrap_or_else(PoisonError::into_inner);
                if gathered.ended {
                    return;
                }
            }
        };
        if let Err(e) = std::thread::Builder::new().name("card-watch".to_owned()).spawn(look) {
            tracing::debug!("the card's load is not known: no thread: {e}");
        }
        watch
    }

    /// What is known since the last call. Waits for nothing.
    pub fn take(&self) -> CardUse {
        let mut gathered = self.shared.open();
        let mean = (gathered.count > 0).then(|| gathered.loads / f64::from(gathered.count));
        (gathered.loads, gathered.count) = (0.0, 0);
        let last = gathered.last;
        CardUse {
            load: mean.or(last.and_then(|r| r.load)),
            memory: last.map(|r| r.memory),
            memory_total: last.map(|r| r.memory_total),
            engine_peak: (self.engine_peak)(),
        }
    }
}

impl Drop for CardWatch {
    fn drop(&mut self) {
        self.shared.open().ended = true;
        self.shared.ended.notify_all();
    }
}

/// Readings by the driver's management library, which comes with the driver and is loaded now.
fn look_by_nvml(pci: &str) -> Option<impl FnMut() -> Option<CardReading> + use<>> {
    // The name under which drivers install it; the plain one is for building against it, and the crate's own choice.
    let named = if cfg!(windows) { None } else { Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().ok() };
    let nvml = match named.map_or_else(Nvml::init, Ok) {
        Ok(nvml) => nvml,
        Err(e) => {
            tracing::debug!("the card's load is not known: NVML cannot be used: {e}");
            return None;
        }
    };
    let pci = pci.to_owned();
    let look = move || -> Result<CardReading, NvmlError> {
        let card = nvml.device_by_pci_bus_id(pci.as_str())?;
        let memory = card.memory_info()?;
        // A card that is cut into slices (MIG) does not tell its load.
        let load = card.utilization_rates().ok().map(|u| f64::from(u.gpu));
        Ok(CardReading { load, memory: memory.used, memory_total: memory.total })
    };
    Some(move || look().inspect_err(|e| tracing::debug!("the card cannot be looked at: {e}")).ok())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A watch whose readings the test hands out one by one; each has been taken in when the next one is asked for.
    fn by_hand() -> (CardWatch, impl Fn(Option<CardReading>)) {
        let (give, given) = mpsc::channel::<Option<CardReading>>();
        let (ask, asked) = mpsc::channel();
        let source = move || {
            let _ = ask.send(());
            given.recv().ok().flatten()
        };
        let watch = CardWatch::every(Duration::ZERO, move || Some(source));
        let long = Duration::from_secs(60);
        asked.recv_timeout(long).unwrap();
        let next = move |reading| {
            give.send(reading).unwrap();
            asked.recv_timeout(long).unwrap();
        };
        (watch, next)
    }

    fn reading(load: f64, memory: u64) -> Option<CardReading> {
        Some(CardReading { load: Some(load), memory, memory_total: 100 })
    }

    #[test]
    fn figures_are_means_since_the_last_time() {
        let (watch, next) = by_hand();
        assert_eq!(watch.take(), CardUse::default(), "before the first look nothing is known");
        next(reading(10.0, 1));
        next(reading(30.0, 2));
        let seen = CardUse { load: Some(20.0), memory: Some(2), memory_total: Some(100), engine_peak: None };
        assert_eq!(watch.take(), seen);
        // A step that is shorter than a look.
        assert_eq!(watch.take().load, Some(30.0));
        next(reading(50.0, 3));
        assert_eq!((watch.take().load, watch.take().memory), (Some(50.0), Some(3)));
        // Memory without load; then nothing at all.
        next(Some(CardReading { load: None, memory: 4, memory_total: 100 }));
        assert_eq!((watch.take().load, watch.take().memory), (None, Some(4)));
        next(None);
        assert_eq!(watch.take(), CardUse::default(), "what is no longer known is not told");
    }

    #[test]
    fn no_source_is_no_figures_and_the_thread_ends_with_the_watch() {
        let watch = CardWatch::every(Duration::ZERO, || None::<fn() -> Option<CardReading>>);
        assert_eq!(watch.take(), CardUse::default());
        let (ended, over) = mpsc::channel::<()>();
        let watch = CardWatch::every(Duration::from_secs(3600), move || {
            Some(move || {
                let _held = &ended;
                reading(1.0, 1)
            })
        });
        drop(watch);
        // The source goes with its thread, although its next look is far off.
        assert_eq!(over.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_card_that_is_not_there_is_no_source() {
        // No library, or a library that knows no such card: nothing is told, and nothing fails.
        if let Some(mut source) = look_by_nvml("FFFFFFFF:FF:1F.7") {
            assert_eq!(source(), None);
        }
    }
}
