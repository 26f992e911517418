/* Compiled as strict C99: a C program can use the ABI. */
#include "qae.h"

uint64_t qae_emulator_header_params_size(void);

uint64_t qae_emulator_header_params_size(void) { return sizeof(qae_loss_from_log_probs_params); }
