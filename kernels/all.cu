// Every kernel in one translation unit: two would turn on device linking.
#include "advantages.cu"
#include "log_probs_from_logits.cu"
#include "loss_from_log_probs.cu"
#include "loss_from_logits.cu"
#include "scale_gradient.cu"
#include "token_counts.cu"
