//! A gradient times the factor of a backward pass: closed forms, and the CPU path against the
//! reference, in the caller's memory.

use half::{bf16, f16};
use qae::{Factor, GradientRows, Tensor, TensorMut, cpu, reference};

const POISON: f32 = 12_352.0;

/// Five rows of 7 columns, 9 elements apart: −17, −16, …, with poison between them.
fn tensor() -> Vec<f32> {
    let element = |i: usize| match i % 9 {
        column @ 0..7 => (i / 9 * 7 + column) as f32 - 17.0,
        _ => POISON,
    };
    (0..4 * 9 + 7).map(element).collect()
}

fn rows<V>(values: V) -> GradientRows<V> {
    GradientRows {
        row_stride: 9,
        ..GradientRows::contiguous(values, 5, 7)
    }
}

#[test]
fn every_element_is_multiplied() {
    let values = tensor();
    let scaled = reference::scale_gradient(&rows(Tensor::F32(&values)), &0.25.into()).unwrap();
    let expected: Vec<f64> = (0..35).map(|i| (f64::from(i) - 17.0) / 4.0).collect();
    assert_eq!(scaled, expected);
}

#[test]
fn responses_of_one_width_stand_where_their_stride_says() {
    let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let rows = GradientRows {
        width: Some(2),
        response_stride: Some(7),
        ..GradientRows::contiguous(Tensor::F32(&values[..11]), 4, 2)
    };
    let scaled = reference::scale_gradient(&rows, &2.0.into()).unwrap();
    assert_eq!(scaled, [0.0, 2.0, 4.0, 6.0, 14.0, 16.0, 18.0, 20.0]);
}

#[test]
fn rows_known_to_be_0_stay_0_whatever_the_factor() {
    let values = [1.0, 0.0, f32::NAN, 3.0];
    let gradient = GradientRows::contiguous(Tensor::F32(&values), 2, 2);
    for value in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 0.0, 2.0] {
        let factor = Factor {
            value,
            row_gradient: Some(Tensor::F32(&[1.0, 0.0])),
        };
        let scaled = reference::scale_gradient(&gradient, &factor).unwrap();
        assert_eq!(scaled[2..], [0.0, 0.0]);
        // The others do as IEEE 754 says.
        assert_eq!(scaled[0].to_bits(), (1.0 * value).to_bits());
        assert_eq!(scaled[1].is_nan(), !value.is_finite());
    }
    let column = GradientRows::contiguous(Tensor::F32(&[0.0, 2.0, -0.0]), 3, 1);
    let scaled = reference::scale_gradient(&column, &f64::INFINITY.into()).unwrap();
    assert_eq!(scaled, [0.0, f64::INFINITY, 0.0]);
}

/// Of every dtype, with strides, in place and not.
#[test]
fn the_cpu_rounds_the_reference_once() {
    let values = tensor();
    let given = [1.0, 0.0, -1.0, 0.0, f64::NAN];
    for (value, row_gradient) in [(0.3, None), (0.3, Some(Tensor::F64(&given))), (1.0, None)] {
        let factor = Factor {
            value,
            row_gradient,
        };
        let expected = reference::scale_gradient(&rows(Tensor::F32(&values)), &factor).unwrap();
        macro_rules! check {
            ($element:ty, $kind:ident, $from:expr) => {{
                let source: Vec<$element> = values.iter().map(|&x| $from(x.into())).collect();
                let mut apart = vec![$from(POISON.into()); 35];
                let target = GradientRows::contiguous(TensorMut::$kind(&mut apart), 5, 7);
                cpu::scale_gradient_into(&rows(Tensor::$kind(&source)), &factor, target).unwrap();
                let mut own = source.clone();
                cpu::scale_gradient_in_place(rows(TensorMut::$kind(&mut own)), &factor).unwrap();
                for (i, &expected) in expected.iter().enumerate() {
                    let place = i / 7 * 9 + i % 7;
                    let is_skipped = row_gradient.is_some_and(|given| given.get(i / 7) == 0.0);
                    assert_eq!(apart[i], $from(expected));
                    let kept = if is_skipped { source[place] } else { apart[i] };
                    assert_eq!(own[place], kept);
                }
                let is_gap = |i: &usize| i % 9 >= 7;
                assert!((0..own.len()).filter(is_gap).all(|i| own[i] == source[i]));
            }};
        }
        check!(f64, F64, |x: f64| x);
        check!(f32, F32, |x: f64| x as f32);
        check!(bf16, Bf16, bf16::from_f64);
        check!(f16, F16, f16::from_f64);
    }
}

#[test]
fn elements_that_are_rows_are_taken_together() {
    let mut values: Vec<f32> = (0..5000).map(|i| (i % 7) as f32 - 3.0).collect();
    let gradient = GradientRows::contiguous(Tensor::F32(&values), 5000, 1);
    let mut narrow = vec![f16::NAN; 5000];
    let target = GradientRows::contiguous(TensorMut::F16(&mut narrow), 5000, 1);
    cpu::scale_gradient_into(&gradient, &f64::INFINITY.into(), target).unwrap();
    let expected = reference::scale_gradient(&gradient, &f64::INFINITY.into()).unwrap();
    assert!(
        narrow
            .iter()
            .zip(&expected)
            .all(|(&a, &b)| f64::from(a) == b)
    );
    let own = GradientRows::contiguous(TensorMut::F32(&mut values), 5000, 1);
    cpu::scale_gradient_in_place(own, &f64::INFINITY.into()).unwrap();
    assert!(
        values
            .iter()
            .zip(&expected)
            .all(|(&a, &b)| f64::from(a) == b)
    );
}

#[test]
fn nothing_is_fine() {
    for (num_rows, width) in [(0, None), (0, Some(3))] {
        let rows = GradientRows {
            width,
            ..GradientRows::contiguous(Tensor::F32(&[]), num_rows, 4)
        };
        assert!(
            reference::scale_gradient(&rows, &2.0.into())
                .unwrap()
                .is_empty()
        );
        let target = GradientRows {
            width,
            ..GradientRows::contiguous(TensorMut::F32(&mut []), num_rows, 4)
        };
        cpu::scale_gradient_into(&rows, &2.0.into(), target).unwrap();
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let values = tensor();
    let gradient = rows(Tensor::F32(&values));
    let mut target = vec![POISON; 35];
    let mut refused =
        |gradient: GradientRows<Tensor<'_>>, factor: Factor<'_>, num_rows, columns| {
            let target = GradientRows::contiguous(TensorMut::F32(&mut target), num_rows, columns);
            let error = cpu::scale_gradient_into(&gradient, &factor, target).unwrap_err();
            error.to_string()
        };
    let half = Factor::from(0.5);
    let short = Factor {
        row_gradient: Some(Tensor::F32(&[1.0; 4])),
        ..half
    };
    let close = GradientRows {
        row_stride: 6,
        ..gradient
    };
    let wide = GradientRows {
        width: Some(2),
        ..gradient
    };
    for (gradient, factor, num_rows, columns, message) in [
        (
            gradient,
            half,
            4,
            7,
            "scaled.num_rows: expected 5 as the gradient, found 4",
        ),
        (
            gradient,
            half,
            5,
            6,
            "scaled.num_columns: expected 7 as the gradient, found 6",
        ),
        (
            wide,
            half,
            5,
            7,
            "scaled.width: expected 2 as the gradient, found 0",
        ),
        (
            close,
            half,
            5,
            7,
            "gradient.row_stride: expected at least the vocabulary of 7, found 6",
        ),
        (
            gradient,
            short,
            5,
            7,
            "row_gradient: expected shape [5], one for each row, found [4]",
        ),
    ] {
        assert_eq!(refused(gradient, factor, num_rows, columns), message);
    }
    assert_eq!(target, [POISON; 35]);
    let wide = GradientRows {
        width: Some(2),
        ..rows(TensorMut::F32(&mut target))
    };
    let error = cpu::scale_gradient_in_place(wide, &half).unwrap_err();
    assert_eq!(
        error.to_string(),
        "width: expected a divisor of the 5 rows, found 2"
    );
}
