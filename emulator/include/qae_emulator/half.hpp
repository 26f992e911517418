// Half-precision conversions on raw bits, rounding to nearest even as the device's *_rn ones do.
#pragma once

#include "types.hpp"

namespace qae_emulator {

inline float f16_to_f32(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) {
        return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    }
    // Shifting the exponent field into place leaves a float 2^112 too small, subnormals included,
    // and the product is exact.
    const float scaled = bit_cast<float>(magnitude << 13) * 0x1p+112f;
    return bit_cast<float>(sign | bit_cast<uint32_t>(scaled));
}

inline uint16_t f32_to_f16_rn(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return static_cast<uint16_t>(sign | 0x7fffu);
    }
    // 65520 is half way between the largest f16 and the next power of two: it rounds to infinity.
    if (magnitude >= 0x477ff000u) {
        return static_cast<uint16_t>(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) {
        // Adding 0.5 aligns the unit of an f16 subnormal, 2^-24, with the unit of the sum, so the
        // float addition itself rounds to nearest even.
        const float sum = bit_cast<float>(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(sum) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float bf16_to_f32(uint16_t half) {
    return bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

inline uint16_t f32_to_bf16_rn(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fffu;
    }
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace qae_emulator
