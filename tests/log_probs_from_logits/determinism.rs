//! The parallel form has the bits of the serial reference, on any number of threads.

use crate::case::Rows;
use half::{bf16, f16};
use qae::{LogProbsInput, Logits, Tensor, cpu, reference};
use qae_test_support::bits;

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rows = Rows::random(51, 203, 67);
    rows.temperature = 0.7;
    rows.mask = Some((0..203).map(|row| u8::from(row % 7 > 0)).collect());
    let (g, h) = (vec![1.25; 203], vec![-0.375; 203]);
    let expected = reference::log_probs_from_logits(&rows.input()).unwrap();
    let gradient = reference::log_probs_from_logits_backward(&rows.input(), &g, Some(&h)).unwrap();
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let found = cpu::log_probs_from_logits(&rows.input()).unwrap();
            assert_eq!(bits(&found.log_prob), bits(&expected.log_prob));
            assert_eq!(bits(&found.entropy), bits(&expected.entropy));
            assert_eq!(bits(&found.log_sum_exp), bits(&expected.log_sum_exp));
            let found = cpu::log_probs_from_logits_backward(&rows.input(), &g, Some(&h)).unwrap();
            assert_eq!(bits(&found), bits(&gradient));
        });
    }
}

/// The CPU path takes columns in blocks.
#[test]
fn rows_of_any_length_have_the_bits_of_the_reference() {
    const SPECIAL: [f32; 6] = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -3e38,
        3e38,
        -0.0,
    ];
    for vocab_size in [1, 7, 8, 9, 255, 256, 257, 700] {
        let mut rows = Rows::random(52 + vocab_size as u64, 12, vocab_size);
        rows.temperature = 0.3;
        for (row, &special) in SPECIAL.iter().enumerate() {
            rows.logits[row * vocab_size + row * 41 % vocab_size] = special;
        }
        rows.logits[6 * vocab_size..7 * vocab_size].fill(f32::NEG_INFINITY);
        rows.logits[7 * vocab_size..8 * vocab_size].fill(-0.0);
        let each = rows.logits.iter();
        let wide: Vec<f64> = each.clone().map(|&x| f64::from(x) * 1.000_000_01).collect();
        let brain: Vec<bf16> = each.clone().map(|&x| bf16::from_f32(x)).collect();
        let half: Vec<f16> = each.map(|&x| f16::from_f32(x)).collect();
        let g: Vec<f32> = (0..12).map(|row| row as f32 / 4.0 - 1.0).collect();
        let h: Vec<f32> = (0..12).map(|row| (row % 3) as f32 / 4.0).collect();
        for values in [
            Tensor::F64(&wide),
            Tensor::F32(&rows.logits),
            Tensor::Bf16(&brain),
            Tensor::F16(&half),
        ] {
            let input = LogProbsInput {
                logits: Logits::contiguous(values, vocab_size),
                ..rows.input()
            };
            let expected = reference::log_probs_from_logits(&input).unwrap();
            let found = cpu::log_probs_from_logits(&input).unwrap();
            assert_eq!(bits(&found.log_prob), bits(&expected.log_prob));
            assert_eq!(bits(&found.entropy), bits(&expected.entropy));
            assert_eq!(bits(&found.log_sum_exp), bits(&expected.log_sum_exp));
            let expected = reference::log_probs_from_logits_backward(&input, &g, Some(&h)).unwrap();
            let found = cpu::log_probs_from_logits_backward(&input, &g, Some(&h)).unwrap();
            assert_eq!(bits(&found), bits(&expected));
        }
    }
}
