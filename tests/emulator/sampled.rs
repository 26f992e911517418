//! Hundreds of random cases over every combination of options, layout and placement.

use crate::compare::check;
use crate::random::case;

/// Each seed is a case of its own, so that a failure names the case that fails.
fn check_seeds(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let case = case(seed);
        check(&case, &format!("seed {seed}, {:?}", case.config));
    }
}

#[test]
fn random_cases_agree_with_the_reference_first_part() {
    check_seeds(0..200);
}

#[test]
fn random_cases_agree_with_the_reference_second_part() {
    check_seeds(200..400);
}
