//! Elements of tensors: widened exactly, rounded once.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// An element of a [`super::Tensor`].
pub(crate) trait Element: Copy + Send + Sync + Into<f64> {
    /// The nearest to `value`, in a tie the even one.
    fn round(value: f64) -> Self;

    /// In f64, which holds every value.
    fn widen(self) -> f64 {
        self.into()
    }

    /// [`Self::widen`] of elements that belong together.
    #[inline(always)]
    fn widen_all(values: &[Self], wide: &mut [f64]) {
        for (wide, &value) in wide.iter_mut().zip(values) {
            *wide = value.widen();
        }
    }

    /// [`Self::round`] of elements that belong together.
    #[inline(always)]
    fn round_all(wide: &[f64], values: &mut [Self]) {
        for (value, &wide) in values.iter_mut().zip(wide) {
            *value = Self::round(wide);
        }
    }
}

impl Element for f64 {
    #[inline(always)]
    fn round(value: f64) -> Self {
        value
    }
}

impl Element for f32 {
    #[inline(always)]
    fn round(value: f64) -> Self {
        value as f32
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn round(value: f64) -> Self {
        Self::from_f32(to_odd(value))
    }

    /// The upper half of an f32, in a form that compilers vectorize.
    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(f32::from_bits(u32::from(self.to_bits()) << 16))
    }
}

/// `half` looks for the processor's conversions in every call, so that one call takes many.
impl Element for f16 {
    fn round(value: f64) -> Self {
        Self::from_f32(to_odd(value))
    }

    #[inline(always)]
    fn widen_all(values: &[Self], wide: &mut [f64]) {
        let mut buffer = [0.0; CHUNK];
        for (values, wide) in values.chunks(CHUNK).zip(wide.chunks_mut(CHUNK)) {
            let buffer = &mut buffer[..values.len()];
            values.convert_to_f32_slice(buffer);
            for (wide, &value) in wide.iter_mut().zip(&*buffer) {
                *wide = f64::from(value);
            }
        }
    }

    #[inline(always)]
    fn round_all(wide: &[f64], values: &mut [Self]) {
        let mut buffer = [0.0; CHUNK];
        for (wide, values) in wide.chunks(CHUNK).zip(values.chunks_mut(CHUNK)) {
            let buffer = &mut buffer[..values.len()];
            for (odd, &wide) in buffer.iter_mut().zip(wide) {
                *odd = to_odd(wide);
            }
            values.convert_from_f32_slice(buffer);
        }
    }
}

/// Elements that are converted in one call.
const CHUNK: usize = 64;

/// `value` if f32 has it, else the neighbor whose last bit is 1. Rounding that to a dtype with at
/// least two bits less rounds `value` itself: no tie appears that was none. (`half` truncates an
/// f64 first, and so makes ties.)
#[inline(always)]
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let bits = nearest.to_bits();
    let back = f64::from(nearest);
    let is_kept = (back == value) | (bits & 1 == 1) | value.is_nan();
    let is_above = back.abs() > value.abs();
    let neighbor = if is_above {
        bits.wrapping_sub(1)
    } else {
        bits + 1
    };
    f32::from_bits(if is_kept { bits } else { neighbor })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest by comparing with all neighbors, the even one in a tie.
    fn is_nearest<T: Element>(value: f64, found: T, neighbors: [T; 2], is_even: bool) -> bool {
        let distance = |x: T| (x.into() - value).abs();
        neighbors.iter().all(|&other| {
            distance(found) < distance(other) || (distance(found) == distance(other) && is_even)
        })
    }

    #[test]
    fn ties_that_f32_would_make_are_none() {
        // Above the tie by less than an f32 can tell.
        let above = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(<bf16 as Element>::round(above).to_bits(), 0x3f81);
        assert_eq!(<bf16 as Element>::round(-above).to_bits(), 0xbf81);
        let tie = 1.0 + 2f64.powi(-8);
        assert_eq!(<bf16 as Element>::round(tie).to_bits(), 0x3f80);
        let above = 1.0 + 2f64.powi(-11) + 2f64.powi(-50);
        assert_eq!(<f16 as Element>::round(above).to_bits(), 0x3c01);
        let below = 1.0 + 3.0 * 2f64.powi(-11) - 2f64.powi(-50);
        assert_eq!(<f16 as Element>::round(below).to_bits(), 0x3c01);
    }

    #[test]
    fn ends_of_the_range() {
        assert!(<bf16 as Element>::round(f64::NAN).is_nan());
        assert!(<f16 as Element>::round(f64::NAN).is_nan());
        assert_eq!(<bf16 as Element>::round(1e300), bf16::INFINITY);
        assert_eq!(<f16 as Element>::round(-1e300), f16::NEG_INFINITY);
        assert_eq!(<f16 as Element>::round(65_520_f64.next_down()), f16::MAX);
        assert_eq!(<f16 as Element>::round(65520.0), f16::INFINITY);
        assert_eq!(<bf16 as Element>::round(-1e-300).to_bits(), 0x8000);
        assert_eq!(<f16 as Element>::round(2f64.powi(-24)).to_bits(), 1);
        assert_eq!(<f16 as Element>::round(2f64.powi(-25)).to_bits(), 0);
        let above = 2f64.powi(-25) * (1.0 + 2f64.powi(-52));
        assert_eq!(<f16 as Element>::round(above).to_bits(), 1);
    }

    #[test]
    fn every_rounding_is_the_nearest() {
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Exponents of f16, and many last bits of 0 as in a tie.
            let mantissa = (bits >> 12) & (u64::MAX << (bits % 43));
            let exponent = 1023 - 20 + (bits >> 59);
            let value = f64::from_bits(exponent << 52 | (mantissa & ((1 << 52) - 1)));
            let half = <f16 as Element>::round(value);
            let near = [half.to_bits().wrapping_sub(1), half.to_bits() + 1].map(f16::from_bits);
            assert!(
                is_nearest(value, half, near, half.to_bits() & 1 == 0),
                "{value:e}"
            );
            let brain = <bf16 as Element>::round(value);
            let near = [brain.to_bits() - 1, brain.to_bits() + 1].map(bf16::from_bits);
            assert!(
                is_nearest(value, brain, near, brain.to_bits() & 1 == 0),
                "{value:e}"
            );
        }
    }
}
