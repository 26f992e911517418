//! What does not fit is refused by name, before anything is computed.

use crate::case::Case;
use crate::runners;
use qae::{
    Advantages, Config, Error, Groups, ImportanceWeight, Layout, Objective, Tensor, TensorMut,
    TokenBatch, cpu,
};
use qae_test_support::kls;

fn case() -> Case {
    Case {
        ref_log_prob: None,
        ..Case::random(81, 3, 4)
    }
}

/// Asserts that every backend refuses the batch with a message that starts like this.
fn assert_refused(batch: &TokenBatch<'_>, config: &Config, start: &str) {
    for runner in runners() {
        let result = runner.backend.loss_from_log_probs(batch, config);
        let error = result.map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn missing_tensors() {
    let case = case();
    let config = Config {
        kl: kls()[3],
        ..Config::default()
    };
    assert_refused(&case.batch(), &config, "ref_log_prob");
    let without_old = TokenBatch {
        old_log_prob: None,
        ..case.batch()
    };
    assert_refused(&without_old, &Config::default(), "old_log_prob");
    let error = without_old.check(&Config::default()).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }));
}

#[test]
fn wrong_shapes_of_tokens() {
    let case = case();
    let short = Tensor::F32(&[0.0; 11]);
    let start = "log_prob: expected 12 elements, found 11";
    let mut batch = case.batch();
    batch.log_prob = short;
    assert_refused(&batch, &Config::default(), start);
    let mut batch = case.batch();
    batch.old_log_prob = Some(short);
    assert_refused(&batch, &Config::default(), "old_log_prob");
    let mut batch = case.batch();
    batch.ref_log_prob = Some(short);
    assert_refused(&batch, &Config::default(), "ref_log_prob");
    let mut batch = case.batch();
    batch.mask = Some(&[1; 13]);
    assert_refused(&batch, &Config::default(), "mask");
}

#[test]
fn wrong_shapes_of_weights_and_advantages() {
    let case = case();
    for weight in [
        ImportanceWeight::PerToken(&[1.0; 3]),
        ImportanceWeight::PerResponse(&[1.0; 12]),
    ] {
        let mut batch = case.batch();
        batch.importance_weight = Some(weight);
        assert_refused(&batch, &Config::default(), "importance_weight");
    }
    let groups = Groups::uniform(4, 2).unwrap();
    let from_rewards = |rewards, response_index| Advantages::FromRewards {
        rewards,
        groups: &groups,
        response_index,
    };
    let (three, four) = (&[1.0; 3], &[1.0; 4]);
    let unmapped = "rewards (without response_index)";
    for (advantages, start) in [
        (Advantages::PerResponse(&[1.0; 2]), "advantages"),
        (Advantages::PerToken(three), "advantages"),
        (from_rewards(three, None), "rewards"),
        (from_rewards(four, None), unmapped),
        (from_rewards(four, Some(&[0, 1])), "response_index"),
    ] {
        let mut batch = case.batch();
        batch.advantages = advantages;
        assert_refused(&batch, &Config::default(), start);
    }
}

#[test]
fn wrong_dtypes() {
    let case = case();
    let narrow = [half::bf16::ZERO; 12];
    let batch = TokenBatch {
        old_log_prob: Some(Tensor::Bf16(&narrow)),
        ..case.batch()
    };
    let start = "old_log_prob: expected dtype F32 as log_prob, found Bf16";
    assert_refused(&batch, &Config::default(), start);
}

#[test]
fn wrong_layouts() {
    let case = case();
    let base = case.batch();
    let padded = |num_rows, row_stride, mask_row_stride, lengths| TokenBatch {
        layout: Layout::Padded {
            num_rows,
            width: 4,
            row_stride,
            mask_row_stride,
            lengths,
        },
        ..base
    };
    let packed = |offsets| TokenBatch {
        layout: Layout::Packed { offsets },
        ..base
    };
    for (batch, start) in [
        (padded(3, 3, 4, None), "row_stride"),
        (padded(3, 4, 3, None), "mask_row_stride"),
        (padded(usize::MAX, 4, 4, None), "num_rows"),
        (padded(3, usize::MAX, 4, None), "row_stride"),
        (
            padded(3, 5, 4, None),
            "log_prob: expected 14 to 15 elements",
        ),
        (padded(3, 4, 4, Some(&[1, 2])), "lengths"),
        (padded(3, 4, 4, Some(&[1, 5, 0])), "lengths[1]"),
        (padded(3, 4, 4, Some(&[1, 4, -1])), "lengths[2]"),
        (packed(&[]), "offsets"),
        (packed(&[1, 4, 8, 12]), "offsets[0]"),
        (packed(&[0, 4, 3, 12]), "offsets[2]"),
        (packed(&[0, 4, 8, 13]), "log_prob"),
    ] {
        assert_refused(&batch, &Config::default(), start);
    }
}

#[test]
fn indices_out_of_range() {
    let case = case();
    let groups = Groups::uniform(4, 2).unwrap();
    for (index, start) in [
        ([0, 4, 1], "response_index[1]"),
        ([0, 1, -1], "response_index[2]"),
    ] {
        let batch = TokenBatch {
            advantages: Advantages::FromRewards {
                rewards: &[1.0; 4],
                groups: &groups,
                response_index: Some(&index),
            },
            ..case.batch()
        };
        assert_refused(&batch, &Config::default(), start);
    }
}

#[test]
fn configurations_out_of_range() {
    let case = case();
    let objective = Objective::Clip {
        low: Some(0.2),
        high: Some(f64::NAN),
        dual_clip: None,
        ratio_cap: None,
    };
    let config = Config {
        objective,
        ..Config::default()
    };
    assert_refused(&case.batch(), &config, "clip_high");
    let config = Config {
        grad_scale: f64::INFINITY,
        ..Config::default()
    };
    assert_refused(&case.batch(), &config, "grad_scale");
}

#[test]
fn a_refused_call_writes_nothing() {
    let case = case();
    let mut gradient = [7.0; 11];
    let config = Config::default();
    let target = TensorMut::F64(&mut gradient).into();
    let error = cpu::loss_from_log_probs_into(&case.batch(), &config, target).unwrap_err();
    assert!(error.to_string().starts_with("d_log_prob"), "{error}");
    assert_eq!(gradient, [7.0; 11]);
}
