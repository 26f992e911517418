//! Every `__syncthreads` is needed: without it a detector fires or the result is wrong.

use std::collections::BTreeSet;

use qae::{AdvantageConfig, Groups};
use qae_emulator::{BarrierSite, EmulatorBackend, Options, Order};

use crate::compare::bits;
use crate::order::cases;
use crate::random::{Random, rewards};

/// Barriers whose absence cannot show, as the n-th site of a file, and why.
const UNSEEN: [(&str, usize, &str); 1] = [(
    "kernels/block/last_block.cuh",
    0,
    "orders a block's writes before its ticket: the emulator runs blocks one after another",
)];

const ORDERS: [Order; 3] = [Order::Sequential, Order::Random(1), Order::Random(2)];

/// The sites that `run` passes, and those of them whose absence showed. `run` gives its result,
/// with the sites, or nothing where a detector fired.
fn mutate<T: PartialEq>(
    run: impl Fn(Options) -> Option<(T, Vec<BarrierSite>)>,
) -> (BTreeSet<BarrierSite>, BTreeSet<BarrierSite>) {
    let (clean, sites) = run(Options::default()).expect("the kernel is clean");
    let is_seen = |site: &BarrierSite| {
        ORDERS.iter().any(|&order| {
            let skipping = run(Options {
                order,
                skip_barrier: Some(site.clone()),
            });
            skipping.is_none_or(|(result, _)| result != clean)
        })
    };
    let seen = sites.iter().filter(|site| is_seen(site)).cloned().collect();
    (sites.into_iter().collect(), seen)
}

fn assert_all_seen(runs: impl Iterator<Item = (BTreeSet<BarrierSite>, BTreeSet<BarrierSite>)>) {
    let (mut passed, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (of_run, seen_in_run) in runs {
        passed.extend(of_run);
        seen.extend(seen_in_run);
    }
    assert!(!passed.is_empty());
    for site in &passed {
        let same_file = passed.iter().filter(|other| other.file == site.file);
        let number = same_file.take_while(|other| other.line < site.line).count();
        let excused = UNSEEN
            .iter()
            .any(|(file, n, _)| *file == site.file && *n == number);
        assert_eq!(seen.contains(site), !excused, "barrier {number} at {site}");
    }
}

#[test]
fn every_barrier_of_the_loss_is_needed() {
    let mutate_case = |case: crate::case::Case| {
        mutate(|options| {
            let backend = EmulatorBackend {
                options,
                ..case.backend.clone()
            };
            let run = backend.run_loss(&case.batch(), &case.config).ok()?;
            let mut sites = run.loss_trace.barrier_sites();
            sites.extend(
                run.count_trace
                    .iter()
                    .flat_map(|trace| trace.barrier_sites()),
            );
            Some((bits(&run.output), sites))
        })
    };
    assert_all_seen(cases().into_iter().map(mutate_case));
}

#[test]
fn every_barrier_of_the_advantages_is_needed() {
    let sizes = [3, 1030].into_iter();
    assert_all_seen(sizes.map(|size| {
        let groups = Groups::uniform(3 * size, size).unwrap();
        let rewards = rewards(&mut Random(43), 3 * size);
        mutate(|options| {
            let backend = EmulatorBackend {
                options,
                ..EmulatorBackend::default()
            };
            let config = AdvantageConfig::default();
            let run = backend.run_advantages(&rewards, &groups, &config).ok()?;
            let sites = run.trace.barrier_sites();
            Some(((format!("{:?}", run.output), run.active), sites))
        })
    }));
}
