//! Times `cpu::advantages` with the mean baseline, for side-by-side programs: prints one line of
//! JSON with nanoseconds per call (median) and the sum of |advantage|, by which the other side
//! checks that it computed the same.
//!
//! ```text
//! cargo run --release --example advantages_bench -- NUM_GROUPS GROUP_SIZE
//! ```

use qae::{AdvantageConfig, Baseline, Groups, cpu};
use std::hint::black_box;
use std::time::Instant;

const WARM_UP_CALLS: usize = 100;
const TIMED_CALLS: usize = 1001;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| -> Result<usize, Box<dyn std::error::Error>> {
        let argument = arguments
            .next()
            .ok_or_else(|| format!("{name} is missing"))?;
        Ok(argument.parse()?)
    };
    let num_groups = next("NUM_GROUPS")?;
    let group_size = next("GROUP_SIZE")?;
    let num_responses = num_groups * group_size;
    let rewards: Vec<f32> = (0..num_responses)
        .map(|i| (i * 7919 % 97) as f32 / 96.0)
        .collect();
    let config = AdvantageConfig {
        baseline: Baseline::Mean,
        ..AdvantageConfig::default()
    };
    let ids: Vec<i64> = (0..num_responses)
        .map(|i| (i / group_size) as i64)
        .collect();
    // verl builds its groups in every call, from an id for each response: so does this.
    let call = || cpu::advantages(&rewards, &Groups::from_ids(black_box(&ids))?, &config);
    for _ in 0..WARM_UP_CALLS {
        black_box(call()?);
    }
    let mut nanoseconds = Vec::with_capacity(TIMED_CALLS);
    for _ in 0..TIMED_CALLS {
        let start = Instant::now();
        black_box(call()?);
        nanoseconds.push(start.elapsed().as_nanos());
    }
    nanoseconds.sort_unstable();
    let sum: f64 = call()?.advantage.iter().map(|a| a.abs()).sum();
    println!(
        r#"{{"ns_per_call": {}, "threads": {}, "sum_abs_advantage": {sum}}}"#,
        nanoseconds[TIMED_CALLS / 2],
        rayon::current_num_threads(),
    );
    Ok(())
}
