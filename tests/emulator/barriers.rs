//! Every `__syncthreads` is needed: without it a detector fires or the result is wrong.

use qae_test_support::Random;
use std::collections::BTreeSet;

use qae::{AdvantageConfig, Groups};
use qae_emulator::{BarrierSite, EmulatorBackend, Options, Order};

use crate::case::Case;
use crate::compare::bits;
use crate::log_probs;
use crate::logits_case::LogitsCase;
use crate::logits_compare::bits as logits_bits;
use crate::logits_order;
use crate::order::cases;
use crate::random::rewards;

/// Barriers whose absence cannot show, as the n-th site of a file, and why.
const UNSEEN: [(&str, usize, &str); 1] = [(
    "kernels/block/last_block.cuh",
    0,
    "orders a block's writes before its ticket: the emulator runs blocks one after another",
)];

const ORDERS: [Order; 3] = [Order::Sequential, Order::Random(1), Order::Random(2)];

/// The sites that some runs passed, and those of them whose absence showed.
#[derive(Default)]
struct Sites {
    passed: BTreeSet<BarrierSite>,
    seen: BTreeSet<BarrierSite>,
}

impl Sites {
    /// Tries the sites that `run` passes and that were not seen before. `run` gives its result, with
    /// the sites, or nothing where a detector fired.
    fn mutate<T: PartialEq>(&mut self, run: impl Fn(Options) -> Option<(T, Vec<BarrierSite>)>) {
        let (clean, sites) = run(Options::default()).expect("the kernel is clean");
        let is_seen = |site: &BarrierSite| {
            ORDERS.iter().any(|&order| {
                let skipping = run(Options {
                    order,
                    skip_barrier: Some(site.clone()),
                    ..Options::default()
                });
                skipping.is_none_or(|(result, _)| result != clean)
            })
        };
        for site in sites {
            if !self.seen.contains(&site) && is_seen(&site) {
                self.seen.insert(site.clone());
            }
            self.passed.insert(site);
        }
    }

    fn assert_all_seen(&self) {
        assert!(!self.passed.is_empty());
        let is_excused = |site: &&BarrierSite| {
            let same_file = self.passed.iter().filter(|other| other.file == site.file);
            let number = same_file.take_while(|other| other.line < site.line).count();
            let mut unseen = UNSEEN.iter();
            unseen.any(|(file, n, _)| *file == site.file && *n == number)
        };
        let (excused, needed): (Vec<_>, Vec<_>) = self.passed.iter().partition(is_excused);
        let missed = needed.into_iter().filter(|site| !self.seen.contains(site));
        assert_eq!(
            missed.collect::<Vec<_>>(),
            [] as [&BarrierSite; 0],
            "not needed"
        );
        let shown = excused.into_iter().filter(|site| self.seen.contains(site));
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [] as [&BarrierSite; 0],
            "needed after all"
        );
    }
}

fn mutate_loss(sites: &mut Sites, case: &Case) {
    sites.mutate(|options| {
        let backend = EmulatorBackend {
            options,
            ..case.backend.clone()
        };
        let run = backend.run_loss(&case.batch(), &case.config).ok()?;
        let mut sites = run.loss_trace.barrier_sites();
        let count_traces = run.count_trace.iter();
        sites.extend(count_traces.flat_map(|trace| trace.barrier_sites()));
        Some((bits(&run.output), sites))
    });
}

fn mutate_loss_from_logits(sites: &mut Sites, case: &LogitsCase) {
    sites.mutate(|options| {
        let backend = logits_order::with_options(case, options);
        let run = backend
            .run_loss_from_logits(&case.batch(), &case.config)
            .ok()?;
        Some((logits_bits(&run.output), run.loss_trace.barrier_sites()))
    });
}

/// Of both losses, which share what their last block does.
#[test]
fn every_barrier_of_the_losses_is_needed() {
    let mut sites = Sites::default();
    for case in cases() {
        mutate_loss(&mut sites, &case);
    }
    for case in logits_order::small_cases() {
        mutate_loss_from_logits(&mut sites, &case);
    }
    sites.assert_all_seen();
}

#[test]
fn every_barrier_of_log_probs_from_logits_is_needed() {
    let mut sites = Sites::default();
    for vocab_size in [300, 5000] {
        let rows = log_probs::rows(47, 3, vocab_size, qae::DType::F32);
        sites.mutate(|options| {
            let backend = EmulatorBackend {
                options,
                ..rows.backend.clone()
            };
            let run = backend.run_log_probs_from_logits(&rows.input()).ok()?;
            let sites = run.trace.barrier_sites();
            Some((format!("{:?} {:?}", run.output, run.stats), sites))
        });
    }
    sites.assert_all_seen();
}

#[test]
fn every_barrier_of_the_advantages_is_needed() {
    let mut sites = Sites::default();
    for size in [3, 1030] {
        let groups = Groups::uniform(3 * size, size).unwrap();
        let rewards = rewards(&mut Random(43), 3 * size);
        sites.mutate(|options| {
            let backend = EmulatorBackend {
                options,
                ..EmulatorBackend::default()
            };
            let config = AdvantageConfig::default();
            let run = backend.run_advantages(&rewards, &groups, &config).ok()?;
            let sites = run.trace.barrier_sites();
            Some(((format!("{:?}", run.output), run.active), sites))
        });
    }
    sites.assert_all_seen();
}
