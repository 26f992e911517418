//! Durations between events on the stream.

use super::Result;
use cudarc::driver::{CudaEvent, CudaSlice, sys::CUevent_flags};
use qae::cuda::{Graph, Stream};
use rayon::prelude::*;

/// Work that finds cold caches, as each launch in turn touches other memory.
pub trait Rotation {
    fn len(&self) -> usize;
    fn launch(&mut self, stream: &Stream, index: usize) -> qae::Result<()>;
}

/// What a sample lasts at least: events tick in units of half a microsecond.
const SAMPLE_SECONDS: f64 = 1e-3;
const MAX_LAUNCHES_PER_SAMPLE: usize = 500;
const WARM_UP_LAUNCHES: usize = 8;

/// Raw durations of one launch each: a sample over the launches that it spans.
pub struct Samples {
    pub launches_per_sample: usize,
    pub seconds: Vec<f64>,
}

fn event(stream: &Stream) -> Result<CudaEvent> {
    let with_time = Some(CUevent_flags::CU_EVENT_DEFAULT);
    Ok(stream.cudarc().record_event(with_time)?)
}

/// Seconds that the device spends on what `enqueue` enqueues.
pub fn seconds(stream: &Stream, enqueue: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = event(stream)?;
    enqueue()?;
    let end = event(stream)?;
    Ok(f64::from(start.elapsed_ms(&end)?) / 1e3)
}

/// Launch after launch, as a trainer enqueues them. Where a launch is shorter than the time that
/// the host takes to enqueue it, that time is measured.
pub fn launches(stream: &Stream, work: &mut dyn Rotation, samples: usize) -> Result<Samples> {
    let mut next = 0;
    let mut run = |count: usize| {
        seconds(stream, || {
            for _ in 0..count {
                work.launch(stream, next)?;
                next = (next + 1) % work.len();
            }
            Ok(())
        })
    };
    run(WARM_UP_LAUNCHES)?;
    let estimate = run(WARM_UP_LAUNCHES)? / WARM_UP_LAUNCHES as f64;
    let launches_per_sample =
        ((SAMPLE_SECONDS / estimate).ceil() as usize).clamp(1, MAX_LAUNCHES_PER_SAMPLE);
    let per_launch = |seconds: f64| seconds / launches_per_sample as f64;
    let seconds = (0..samples).map(|_| run(launches_per_sample).map(per_launch));
    Ok(Samples {
        launches_per_sample,
        seconds: seconds.collect::<Result<_>>()?,
    })
}

/// The same in a captured graph of one launch on each set, where the host enqueues nothing.
pub fn replays(stream: &Stream, work: &mut dyn Rotation, samples: usize) -> Result<Samples> {
    let launches_per_sample = work.len();
    let graph = Graph::capture(stream, || {
        (0..launches_per_sample).try_for_each(|index| work.launch(stream, index))
    })?;
    let replay = || {
        seconds(stream, || {
            // SAFETY: `work` owns every tensor that the graph refers to and outlives it; all of
            // its uses are on this stream.
            Ok(unsafe { graph.replay() }?)
        })
    };
    replay()?; // warms up
    let per_launch = |seconds: f64| seconds / launches_per_sample as f64;
    let seconds = (0..samples).map(|_| replay().map(per_launch));
    Ok(Samples {
        launches_per_sample,
        seconds: seconds.collect::<Result<_>>()?,
    })
}

/// A copy within device memory: the bandwidth that a kernel which reads and writes can hope for.
pub struct DeviceCopy {
    from: CudaSlice<u8>,
    to: CudaSlice<u8>,
}

impl DeviceCopy {
    /// Of `bytes` bytes that are not all alike, since those may move faster.
    pub fn new(stream: &Stream, bytes: usize) -> Result<Self> {
        let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
        let pattern: Vec<u8> = (0..bytes).into_par_iter().map(byte).collect();
        Ok(Self {
            from: stream.cudarc().clone_htod(&pattern)?,
            to: stream.cudarc().alloc_zeros(bytes)?,
        })
    }

    /// Read and written.
    pub fn bytes(&self) -> u64 {
        2 * self.from.len() as u64
    }

    pub fn time(&mut self, stream: &Stream, samples: usize) -> Result<Samples> {
        let mut copy = || {
            seconds(stream, || {
                Ok(stream.cudarc().memcpy_dtod(&self.from, &mut self.to)?)
            })
        };
        copy()?; // warms up
        Ok(Samples {
            launches_per_sample: 1,
            seconds: (0..samples).map(|_| copy()).collect::<Result<_>>()?,
        })
    }
}
