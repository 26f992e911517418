//! The threads of the CPU operations.

use crate::errors::{Failure, Result};
use pyo3::intern;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::num::NonZero;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread::available_parallelism;

/// Threads beyond this many for each core only cost memory, and enough of them the machine.
const MOST_PER_CORE: usize = 4;

/// A pool of this or a parent process. A list that only grows, without a lock: in a child process,
/// where only the thread that forked goes on, a lock of the parent's could stay locked for ever.
struct Entry {
    process: u32,
    num_threads: usize,
    pool: ThreadPool,
    next: *const Entry,
}

static POOLS: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

/// As many threads as torch uses.
fn num_threads(py: Python<'_>) -> Result<usize> {
    let torch = py.import(intern!(py, "torch"))?;
    let threads = torch.call_method0(intern!(py, "get_num_threads"))?;
    let requested: usize = threads.extract()?;
    let cores = available_parallelism().map_or(1, NonZero::get);
    Ok(requested.clamp(1, cores.saturating_mul(MOST_PER_CORE)))
}

/// Runs `work` on as many threads as torch uses, without the interpreter.
pub(crate) fn run<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pool = pool(num_threads(py)?)?;
    py.detach(|| pool.install(work))
}

/// The pool of this process with this many threads, started when first asked for.
fn pool(num_threads: usize) -> Result<&'static ThreadPool> {
    let process = process::id();
    let mut head = POOLS.load(Ordering::Acquire);
    if let Some(pool) = find(head, process, num_threads) {
        return Ok(pool);
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .thread_name(|index| format!("qae-{index}"))
        .build()
        .map_err(|error| {
            Failure::Runtime(format!(
                "threads: expected {num_threads} to start, found an error ({error})"
            ))
        })?;
    let entry = Box::into_raw(Box::new(Entry {
        process,
        num_threads,
        pool,
        next: head,
    }));
    loop {
        match POOLS.compare_exchange(head, entry, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the entry came from `Box::into_raw` above and is never freed.
            Ok(_) => return Ok(unsafe { &(*entry).pool }),
            Err(newer) => {
                head = newer;
                // SAFETY: the exchange failed, so no other thread has seen the entry.
                unsafe { (*entry).next = newer };
            }
        }
    }
}

fn find(mut entry: *const Entry, process: u32, num_threads: usize) -> Option<&'static ThreadPool> {
    // SAFETY: null, or an entry that was published whole and is never changed or freed.
    while let Some(found) = unsafe { entry.as_ref() } {
        if (found.process, found.num_threads) == (process, num_threads) {
            return Some(&found.pool);
        }
        entry = found.next;
    }
    None
}
