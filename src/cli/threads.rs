//! How many threads a command may use.

use crate::error::{Error, Result};
use std::num::NonZero;
use std::thread::available_parallelism;

/// The variable that rayon reads; 0 and what is no number mean the number of cores there.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Threads beyond this many for each core only cost memory, and enough of them the machine.
const MOST_PER_CORE: usize = 4;

/// Runs `work` on a pool of its own: rayon's would start as many threads as the variable says.
pub(super) fn with_threads<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let requested = std::env::var(VARIABLE).ok();
    let num_threads = num_threads(
        requested.as_deref(),
        available_parallelism().map_or(1, NonZero::get),
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads);
    let pool = pool.build().map_err(|error| {
        let expected = "a number of threads that the machine can start";
        Error::invalid(VARIABLE, expected, format!("{num_threads} ({error})"))
    })?;
    pool.install(work)
}

fn num_threads(requested: Option<&str>, cores: usize) -> usize {
    let requested = requested.and_then(|text| text.parse::<usize>().ok());
    match requested {
        None | Some(0) => cores,
        Some(requested) => requested.min(cores.saturating_mul(MOST_PER_CORE)),
    }
}

#[cfg(test)]
mod tests {
    use super::num_threads;

    #[test]
    fn a_request_is_kept_up_to_a_few_threads_a_core() {
        for (requested, expected) in [
            (None, 2),
            (Some("0"), 2),
            (Some("many"), 2),
            (Some("1"), 1),
            (Some("5"), 5),
            (Some("1000000"), 8),
            (Some("99999999999999999999999"), 2),
        ] {
            assert_eq!(num_threads(requested, 2), expected, "{requested:?}");
        }
    }
}
