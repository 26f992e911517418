// The half-precision conversions, where the host can call them.
#include "entry.hpp"

extern "C" {

float qae_emu_test_f16_to_f32(uint16_t half) { return qae_emulator::f16_to_f32(half); }
uint16_t qae_emu_test_f32_to_f16(float value) { return qae_emulator::f32_to_f16_rn(value); }
float qae_emu_test_bf16_to_f32(uint16_t half) { return qae_emulator::bf16_to_f32(half); }
uint16_t qae_emu_test_f32_to_bf16(float value) { return qae_emulator::f32_to_bf16_rn(value); }

}  // extern "C"
