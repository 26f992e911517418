//! e^x from additions, multiplications and one division: the same bits on every machine, which no
//! C library promises, and on several numbers at once, which no call of one can be.

/// 1.5 · 2⁵²: what is added to it is rounded to an integer, in its last bits.
const SHIFT: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first, of 32 bits, times any exponent is exact.
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// e^x to less than one unit in the last place. Overflows to ∞, underflows gradually to 0.
///
/// x = n ln 2 + r with |r| ≤ ½ ln 2, and e^r = 1 + r + r c / (2 − c), where c = r − r² P(r²) (fdlibm,
/// `e_exp.c`).
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    // Beyond, it is 0 or ∞.
    let x = x.clamp(-746.0, 710.0);
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let high = x - n * LN_2_HIGH;
    let low = n * LN_2_LOW;
    let r = high - low;
    let c = r - r * r * polynomial(r * r);
    let of_r = 1.0 - ((low - r * c / (2.0 - c)) - high);
    // 2ⁿ as two powers, since it may be beyond the largest or the least; both exponents biased.
    let exponents = (shifted.to_bits())
        .wrapping_sub(SHIFT.to_bits())
        .wrapping_add(2 * 1023);
    let first = exponents >> 1;
    let second = exponents.wrapping_sub(first);
    of_r * f64::from_bits(first << 52) * f64::from_bits(second << 52)
}

#[inline(always)]
fn polynomial(x: f64) -> f64 {
    const P: [f64; 5] = [
        1.666_666_666_666_660_2e-1,
        -2.777_777_777_701_559_3e-3,
        6.613_756_321_437_934e-5,
        -1.653_390_220_546_525_2e-6,
        4.138_136_797_057_238_5e-8,
    ];
    P[0] + x * (P[1] + x * (P[2] + x * (P[3] + x * P[4])))
}

#[cfg(test)]
mod tests {
    use super::exp;

    /// Distance in units in the last place of the larger.
    fn ulps(found: f64, expected: f64) -> f64 {
        if found == expected {
            return 0.0;
        }
        let largest = found.max(expected);
        (found - expected).abs() / (largest.next_up() - largest)
    }

    #[test]
    fn close_to_the_c_library_s() {
        let mut bits = 1_u64;
        for range in [1e-9, 1e-3, 1.0, 20.0, 746.0] {
            for _ in 0..100_000 {
                bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let x = ((bits >> 11) as f64 / 2f64.powi(52) - 1.0) * range;
                // Both are off by less than one unit, the C library's by little more than half.
                let error = ulps(exp(x), x.exp());
                assert!(error <= 1.0, "{x:e}: {error} units");
            }
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert_eq!(exp(f64::NEG_INFINITY).to_bits(), 0);
        assert!(exp(f64::NAN).is_nan());
        for x in [
            709.782_712_893_384,
            -708.396_418_532_264_1,
            -744.44,
            -745.133_219_101_941_1,
        ] {
            assert!(ulps(exp(x), x.exp()) <= 1.0, "{x}");
        }
        assert_eq!(exp(709.782_712_893_384_1), f64::INFINITY);
        assert_eq!(exp(-745.133_219_101_941_3), 0.0);
        assert_eq!(exp(f64::MAX), f64::INFINITY);
        assert_eq!(exp(f64::MIN).to_bits(), 0);
    }
}
