//! Values on a bound, beyond every range, and not finite.

use qae::{Aggregation, Config, DType, Kl, KlEstimator, MetricsScope, Objective, reference};

use crate::case::{Case, Rows, Source, Values, Weight};
use crate::compare::check;
use crate::random::{fill, kls, objectives};

fn clip(low: f64, high: f64, ratio_cap: Option<f64>) -> Objective {
    Objective::Clip {
        low: Some(low),
        high: Some(high),
        dual_clip: None,
        ratio_cap,
    }
}

/// A tie takes the unclipped branch, with its gradient.
#[test]
fn a_ratio_on_a_bound_is_inside() {
    for (objective, log_ratio_clamp) in [
        (clip(0.0, 0.0, None), None),
        (clip(0.2, 0.28, Some(1.0)), None),
        (
            Objective::Gspo {
                low: Some(0.0),
                high: Some(0.0),
                log_ratio_max: None,
            },
            None,
        ),
    ] {
        for advantage in [1.0, -1.0] {
            let mut case = Case::on_policy(Rows::padded(1, 5), vec![advantage]);
            case.config.objective = objective;
            case.config.log_ratio_clamp = log_ratio_clamp;
            let run = check(&case, &format!("{objective:?}"));
            let expected = f64::from(-advantage / 5.0);
            for gradient in run.output.d_log_prob {
                assert!((gradient - expected).abs() < 1e-7, "{objective:?}");
            }
        }
    }
}

#[test]
fn a_log_ratio_on_its_clamp_is_inside() {
    let gspo = Objective::Gspo {
        low: None,
        high: None,
        log_ratio_max: Some(0.375),
    };
    for (objective, beyond) in [
        (clip(1.0, 9.0, None), 0.375),
        (clip(1.0, 9.0, None), 0.5),
        (clip(1.0, 9.0, None), -0.5),
        (gspo, 0.375),
        (gspo, 0.5),
    ] {
        let mut case = Case::off_policy(Rows::padded(1, 5), vec![1.0], |_| beyond);
        case.config.objective = objective;
        case.config.log_ratio_clamp = Some(0.375);
        let run = check(&case, &format!("{objective:?} at {beyond}"));
        let stays = run
            .output
            .d_log_prob
            .iter()
            .all(|&gradient| gradient != 0.0);
        assert_eq!(stays, beyond == 0.375, "{objective:?} at {beyond}");
    }
}

/// One token with log-ratio `log_ratio`, all of whose numbers are exact.
fn one_token(log_ratio: f32, advantage: f32) -> Case {
    let mut case = Case::on_policy(Rows::padded(1, 1), vec![advantage]);
    let (log_prob, old) = if log_ratio > 0.0 {
        (-1.0, -1.0 - log_ratio)
    } else {
        (-1.0 + log_ratio, -1.0)
    };
    case.log_prob = Values::F32(vec![log_prob]);
    case.old_log_prob = Some(Values::F32(vec![old]));
    case
}

/// Where the reference's value is beyond f32, the kernels leave the token out and count it.
fn check_or_left_out(case: &Case, what: &str) {
    let expected = reference::loss_from_log_probs(&case.batch(), &case.config).unwrap();
    let largest = [
        expected.d_log_prob[0],
        expected.metrics.pg_loss,
        expected.metrics.kl_loss,
    ];
    if largest.iter().all(|x| x.abs() <= f64::from(f32::MAX)) {
        check(case, what);
        return;
    }
    let run = case.backend.run_loss(&case.batch(), &case.config).unwrap();
    let metrics = run.output.metrics;
    assert_eq!(metrics.nonfinite_tokens, 1, "{what}");
    assert_eq!(run.output.d_log_prob[0].to_bits(), 0, "{what}");
    assert_eq!((metrics.loss, metrics.active), (0.0, 1), "{what}");
}

#[test]
fn log_ratios_far_beyond_the_clamp() {
    for log_ratio in [30.0, -30.0, 100.0, -100.0, 1000.0, -1000.0] {
        for advantage in [1.0, -1.0, 0.0] {
            for objective in objectives() {
                for log_ratio_clamp in [None, Some(20.0)] {
                    let mut case = one_token(log_ratio, advantage);
                    case.config.objective = objective;
                    case.config.log_ratio_clamp = log_ratio_clamp;
                    let what = format!("{log_ratio}, A {advantage}, {:?}", case.config);
                    check_or_left_out(&case, &what);
                }
            }
        }
    }
}

/// For ρ → ∞ the loss tends to −4A/τ and the gradient to 0, though ρ itself does not stay finite.
#[test]
fn sapo_saturates() {
    for (advantage, loss) in [(1.0, -4.0), (-1.0, 2.0)] {
        for log_ratio in [30.0, 100.0, 1000.0] {
            let mut case = one_token(log_ratio, advantage);
            case.config.objective = Objective::Sapo {
                tau_positive: 1.0,
                tau_negative: 2.0,
            };
            case.config.log_ratio_clamp = None;
            let run = case.backend.run_loss(&case.batch(), &case.config).unwrap();
            let reference = qae::reference::loss_from_log_probs(&case.batch(), &case.config);
            assert_eq!(run.output.d_log_prob, [0.0]);
            for metrics in [run.output.metrics, reference.unwrap().metrics] {
                assert_eq!((metrics.nonfinite_tokens, metrics.loss), (0, loss));
            }
        }
    }
}

#[test]
fn reference_policies_far_away() {
    for difference in [2.5, 20.0, 30.0, 100.0, 1000.0] {
        for log_prob in [-1.0, -1.0 - difference] {
            for kl in kls() {
                let mut case = one_token(0.25, 1.0);
                case.log_prob = Values::F32(vec![log_prob]);
                case.old_log_prob = Some(Values::F32(vec![log_prob - 0.25]));
                case.ref_log_prob = Some(Values::F32(vec![-2.0 - difference - log_prob]));
                case.config.kl = kl;
                check_or_left_out(&case, &format!("{difference} {log_prob} {kl:?}"));
            }
        }
    }
}

/// Puts `value` into one tensor of `case`, at a token of an active and one of an inactive row.
fn plant(case: &mut Case, tensor: &str, value: f32) {
    for slot in [3, 13, 21] {
        match (tensor, &mut case.old_log_prob, &mut case.ref_log_prob) {
            ("log_prob", ..) => case.log_prob.set(slot, value),
            ("old_log_prob", Some(old), _) => old.set(slot, value),
            ("ref_log_prob", _, Some(reference)) => reference.set(slot, value),
            _ => {}
        }
        match (tensor, &mut case.weight, &mut case.advantage) {
            ("weight", Weight::PerToken(weights), _) => weights[slot] = value,
            ("weight", Weight::PerResponse(weights), _) => weights[slot / 10] = value,
            ("advantage", _, Source::PerToken(advantages)) => advantages[slot] = value,
            ("advantage", _, Source::PerResponse(advantages)) => advantages[slot / 10] = value,
            _ => {}
        }
    }
}

fn check_planted(objective: Objective, kl: Option<Kl>, scope: MetricsScope, per_token: bool) {
    let tensors = [
        "log_prob",
        "old_log_prob",
        "ref_log_prob",
        "weight",
        "advantage",
    ];
    for tensor in tensors {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = fill(17, Rows::padded(4, 10), DType::F32);
            case.ref_log_prob = kl.map(|_| Values::F32(vec![-1.5; 40]));
            case.weight = Weight::PerResponse(vec![0.5, 1.0, 1.5, 2.0]);
            if per_token {
                case.weight = Weight::PerToken(vec![0.75; 40]);
                let advantages = (0..40).map(|i| [1.0, 0.0, -0.5][i / 10 % 3]);
                case.advantage = Source::PerToken(advantages.collect());
            }
            case.config = Config {
                objective,
                kl,
                metrics_scope: scope,
                aggregation: Aggregation::SeqMeanTokenMean,
                ..case.config
            };
            plant(&mut case, tensor, value);
            let what = format!(
                "{value} in {tensor}, per token {per_token}, {:?}",
                case.config
            );
            check(&case, &what);
        }
    }
}

/// Valid tokens that are not finite leave only their counts, where they act; nothing elsewhere.
#[test]
fn values_that_are_not_finite_are_left_out_and_counted() {
    let k3 = |clamp| Kl {
        estimator: KlEstimator::K3,
        coef: 0.25,
        clamp,
    };
    for objective in objectives() {
        for kl in [None, Some(k3(false)), Some(k3(true))] {
            for scope in [MetricsScope::All, MetricsScope::Active] {
                for per_token in [false, true] {
                    check_planted(objective, kl, scope, per_token);
                }
            }
        }
    }
}

#[test]
fn nothing_valid_gives_zero_everywhere() {
    for objective in objectives() {
        for aggregation in [
            Aggregation::TokenMean,
            Aggregation::SeqMeanTokenMean,
            Aggregation::SeqMeanTokenSum,
            Aggregation::SeqMeanTokenSumNorm { scale: 3.0 },
        ] {
            let mut case = fill(19, Rows::padded(3, 37), DType::F32);
            case.mask = Some(vec![0; 111]);
            case.config.objective = objective;
            case.config.aggregation = aggregation;
            case.poison_invalid();
            let run = check(&case, &format!("{:?}", case.config));
            assert_eq!(run.output.metrics.loss.to_bits(), 0);
            assert!(run.output.d_log_prob.iter().all(|g| g.to_bits() == 0));
            assert_eq!(run.output.metrics.tokens, 0);
        }
    }
}
