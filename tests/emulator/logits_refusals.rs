//! What is refused before any launch, and with which words: operations on logits.

use qae::params::{
    AdvantageBuffers, Buffer, LayoutBuffers, LogProbsGradients, LogProbsOutputs, LogitsBuffers,
    LogitsGradient, LogitsInputs, LogitsLayoutBuffers, LogitsOutputs, LogitsRows, NormalizerSource,
    RowPolicy, log_probs_from_logits, log_probs_from_logits_backward, loss_from_logits,
    merge_softmax_stats,
};
use qae::{Aggregation, Config, DType, Gradient, Normalizer, Objective, Result};
use qae_emulator::Options;

use crate::case::Rows;
use crate::logits_case::LogitsCase;

const COLUMNS: usize = 100;

fn buffer(address: u64, len: usize) -> Buffer {
    Buffer { address, len }
}

/// Two responses of three slots.
fn inputs() -> LogitsInputs {
    LogitsInputs {
        layout: LogitsLayoutBuffers::Responses(LayoutBuffers::Padded {
            num_rows: 2,
            width: 3,
            row_stride: 3,
            mask_row_stride: 3,
            lengths: None,
        }),
        mask: None,
        logits: LogitsBuffers {
            values: buffer(1 << 20, 6 * COLUMNS),
            dtype: DType::Bf16,
            vocab_size: COLUMNS,
            row_stride: COLUMNS,
            response_stride: None,
            token_ids: buffer(1 << 12, 6),
            token_id_bytes: 8,
        },
        dtype: DType::F32,
        old_log_prob: Some(buffer(1 << 13, 6)),
        ref_log_prob: None,
        importance_weight: None,
        advantages: AdvantageBuffers::PerResponse(buffer(1 << 14, 2)),
    }
}

fn indexed() -> LogitsInputs {
    LogitsInputs {
        layout: LogitsLayoutBuffers::Indexed {
            response: buffer(1 << 15, 6),
            num_responses: 2,
        },
        ..inputs()
    }
}

/// The gradient apart, and nothing that is optional.
fn outputs() -> LogitsOutputs {
    LogitsOutputs {
        gradient: LogitsGradient {
            d_logits: buffer(1 << 24, 6 * COLUMNS),
            row_stride: None,
            response_stride: None,
        },
        gradient_dtype: DType::F32,
        d_log_prob: None,
        log_prob: None,
        entropy: None,
        token_row_stride: None,
        active_slots: None,
        active_slot_count: None,
        baseline: None,
        advantage: None,
        active_rows: None,
        active_count: None,
        metrics: buffer(1 << 16, 1),
    }
}

fn config() -> Config {
    Config {
        normalizer: Normalizer::Value(6.0),
        ..Config::default()
    }
}

fn run(inputs: &LogitsInputs, outputs: &LogitsOutputs, config: &Config) -> Result<()> {
    let source = NormalizerSource::Config;
    loss_from_logits(inputs, outputs, config, source, RowPolicy::Auto).map(drop)
}

/// Asserts that the message begins with the field and holds `words`.
fn assert_refused<T>(result: Result<T>, field: &str, words: &str) {
    let message = result.map(drop).expect_err(field).to_string();
    assert!(
        message.starts_with(field) && message.contains(words),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn what_fits_is_accepted() {
    run(&inputs(), &outputs(), &config()).unwrap();
    run(&indexed(), &outputs(), &config()).unwrap();
    let mut in_place = outputs();
    in_place.gradient.d_logits = inputs().logits.values;
    run(&inputs(), &in_place, &config()).unwrap();
}

#[test]
fn logits_that_do_not_fit() {
    type Change = fn(&mut LogitsBuffers);
    let cases: [(Change, &str, &str); 8] = [
        (|l| l.vocab_size = 0, "vocab_size", "at least 1"),
        (|l| l.vocab_size = 101, "logits.row_stride", "101"),
        (|l| l.row_stride = 99, "logits.row_stride", "found 99"),
        (|l| l.values.len = 599, "logits", "found 599"),
        (|l| l.values.len = 700, "logits", "found 700"),
        (|l| l.token_id_bytes = 2, "token_id_bytes", "4 or 8"),
        (|l| l.token_ids.len = 5, "token_id", "found 5"),
        (
            |l| l.response_stride = Some(299),
            "logits.response_stride",
            "found 299",
        ),
    ];
    for (change, field, words) in cases {
        let mut inputs = inputs();
        change(&mut inputs.logits);
        assert_refused(run(&inputs, &outputs(), &config()), field, words);
    }
    let mut packed = indexed();
    packed.logits.response_stride = Some(300);
    assert_refused(
        run(&packed, &outputs(), &config()),
        "logits.response_stride",
        "padded",
    );
    let mut far = inputs();
    far.logits.row_stride = usize::MAX / 4;
    assert_refused(run(&far, &outputs(), &config()), "logits", "2^63");
}

#[test]
fn gradients_that_do_not_fit() {
    type Change = fn(&mut LogitsOutputs);
    let cases: [(Change, &str, &str); 7] = [
        (|o| o.gradient.d_logits.len = 599, "d_logits", "found 599"),
        (
            |o| o.gradient.row_stride = Some(99),
            "d_logits.row_stride",
            "found 99",
        ),
        (
            |o| o.gradient.response_stride = Some(1),
            "d_logits.response_stride",
            "found 1",
        ),
        (
            |o| o.active_slots = Some(buffer(1 << 17, 6)),
            "active_slots",
            "compact",
        ),
        (|o| o.gradient_dtype = DType::F16, "d_log_prob", "F16"),
        (
            |o| o.log_prob = Some(buffer(1 << 17, 5)),
            "log_prob",
            "found 5",
        ),
        (
            |o| o.entropy = Some(buffer(1 << 17, 7)),
            "entropy",
            "found 7",
        ),
    ];
    for (change, field, words) in cases {
        let mut outputs = outputs();
        change(&mut outputs);
        assert_refused(run(&inputs(), &outputs, &config()), field, words);
    }
}

/// In place or apart; nothing between.
#[test]
fn gradients_that_overlap_the_logits() {
    let logits = inputs().logits.values;
    for (address, row_stride) in [
        (logits.address + 2, None),
        (logits.address - 2, None),
        (logits.address + 1198, None),
        (logits.address, Some(120)),
    ] {
        let mut outputs = outputs();
        outputs.gradient.d_logits.address = address;
        outputs.gradient.row_stride = row_stride;
        outputs.gradient.d_logits.len = 6 * row_stride.unwrap_or(COLUMNS);
        assert_refused(run(&inputs(), &outputs, &config()), "d_logits", "overlaps");
    }
    let mut compact = outputs();
    compact.gradient.d_logits = logits;
    let config = Config {
        gradient: Gradient::Compact,
        ..config()
    };
    assert_refused(run(&inputs(), &compact, &config), "d_logits", "compact");
}

/// Any length is room for some rows.
#[test]
fn compact_gradients_of_any_length() {
    let compact = Config {
        gradient: Gradient::Compact,
        ..config()
    };
    for (len, rows) in [
        (0, 0),
        (99, 0),
        (100, 1),
        (219, 1),
        (220, 2),
        (700, 6),
        (5000, 41),
    ] {
        let mut outputs = outputs();
        outputs.gradient.d_logits.len = len;
        outputs.gradient.row_stride = Some(120);
        let source = NormalizerSource::Config;
        let params = loss_from_logits(&inputs(), &outputs, &compact, source, RowPolicy::Auto);
        assert_eq!(params.unwrap().compact_rows, rows, "{len} elements");
    }
    let mut outputs = outputs();
    outputs.gradient.row_stride = Some(99);
    assert_refused(
        run(&inputs(), &outputs, &compact),
        "d_logits.row_stride",
        "found 99",
    );
}

#[test]
fn entropy_coefficients_that_f32_does_not_hold() {
    let config = Config {
        entropy_coef: 1e39,
        ..config()
    };
    assert_refused(
        run(&inputs(), &outputs(), &config),
        "entropy_coef",
        "float32",
    );
}

#[test]
fn indexed_layouts_lack_whole_responses() {
    let gspo = Objective::Gspo {
        low: Some(0.2),
        high: Some(0.2),
        log_ratio_max: None,
    };
    for (config, field) in [
        (
            Config {
                objective: gspo,
                ..config()
            },
            "objective",
        ),
        (
            Config {
                aggregation: Aggregation::SeqMeanTokenMean,
                ..config()
            },
            "aggregation",
        ),
        (
            Config {
                gradient: Gradient::Compact,
                ..config()
            },
            "gradient",
        ),
    ] {
        assert_refused(
            run(&indexed(), &outputs(), &config),
            field,
            "whole responses",
        );
        run(&inputs(), &outputs(), &config).unwrap();
    }
}

#[test]
fn temperatures_out_of_range() {
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-40, 1e40] {
        let config = Config {
            temperature,
            ..config()
        };
        assert_refused(run(&inputs(), &outputs(), &config), "temperature", "found");
    }
}

fn rows() -> LogitsRows {
    LogitsRows {
        logits: inputs().logits,
        num_rows: 6,
        width: None,
        shard_start: None,
        temperature: 1.0,
    }
}

fn log_prob() -> LogProbsOutputs {
    LogProbsOutputs {
        log_prob: Some(buffer(1 << 18, 6)),
        ..LogProbsOutputs::default()
    }
}

#[test]
fn log_probs_that_do_not_fit() {
    log_probs_from_logits(&rows(), None, &log_prob()).unwrap();
    let with = |change: fn(&mut LogitsRows)| {
        let mut rows = rows();
        change(&mut rows);
        log_probs_from_logits(&rows, None, &log_prob())
    };
    assert_refused(with(|rows| rows.num_rows = 5), "token_id", "[5]");
    assert_refused(with(|rows| rows.width = Some(4)), "width", "found 4");
    assert_refused(
        with(|rows| rows.temperature = 0.0),
        "temperature",
        "found 0",
    );
    assert_refused(with(|rows| rows.shard_start = Some(0)), "log_prob", "shard");
    assert_refused(
        with(|rows| rows.shard_start = Some(1 << 31)),
        "vocab_start",
        "2147483647",
    );
    let none = LogProbsOutputs::default();
    assert_refused(
        log_probs_from_logits(&rows(), None, &none),
        "outputs",
        "log_sum_exp",
    );
    let mask = Some(buffer(1 << 19, 5));
    assert_refused(
        log_probs_from_logits(&rows(), mask, &log_prob()),
        "mask",
        "[5]",
    );
}

#[test]
fn merges_that_do_not_fit() {
    let merge = |shards, num_shards| {
        merge_softmax_stats(
            buffer(1 << 20, shards),
            num_shards,
            6,
            None,
            1.0,
            &log_prob(),
        )
    };
    merge(12, 2).unwrap();
    assert_refused(merge(11, 2), "shards", "[12]");
    assert_refused(merge(0, 0), "num_shards", "at least 1");
    assert_refused(merge(12, usize::MAX), "num_shards", "found");
}

#[test]
fn backward_passes_that_do_not_fit() {
    let gradients = LogProbsGradients {
        stats: buffer(1 << 18, 6),
        d_log_prob: buffer(1 << 19, 6),
        d_entropy: None,
    };
    let target = outputs().gradient;
    let run = |gradients: &LogProbsGradients, target: &LogitsGradient, gradient| {
        log_probs_from_logits_backward(&rows(), gradients, target, gradient)
    };
    run(&gradients, &target, Gradient::Untouched).unwrap();
    assert_refused(
        run(&gradients, &target, Gradient::Compact),
        "gradient",
        "Compact",
    );
    let short = LogProbsGradients {
        stats: buffer(1 << 18, 5),
        ..gradients
    };
    assert_refused(run(&short, &target, Gradient::ZeroFill), "stats", "[5]");
    let mut overlapping = target;
    overlapping.d_logits.address = rows().logits.values.address + 16;
    assert_refused(
        run(&gradients, &overlapping, Gradient::ZeroFill),
        "d_logits",
        "overlaps",
    );
}

/// A policy that the device cannot follow.
#[test]
fn clusters_on_a_device_without_them() {
    let mut case = LogitsCase::fill(1, Rows::padded(1, 2), 64, DType::F32);
    case.backend.options = Options::sm80();
    case.backend.logits.row_policy = RowPolicy::Cluster;
    let result = case
        .backend
        .run_loss_from_logits(&case.batch(), &case.config);
    assert_refused(result, "row_policy", "Cluster");
}
