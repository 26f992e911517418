//! The CUDA kernels' own source, run on the CPU, against the f64 reference: the third link of the
//! oracle chain, after closed forms and the reference itself.
//!
//! Every launch also passes the emulator's detectors, and every output starts as poison.

mod barriers;
mod batches;
mod bytes;
mod case;
mod compare;
mod dtypes;
mod extremes;
mod golden;
mod groups;
mod indices;
mod lengths;
mod log_probs;
mod logits_bounds;
mod logits_bytes;
mod logits_case;
mod logits_compare;
mod logits_extremes;
mod logits_golden;
mod logits_gradients;
mod logits_indices;
mod logits_limits;
mod logits_order;
mod logits_random;
mod logits_refusals;
mod logits_sizes;
mod order;
mod random;
mod sampled;
mod scale_gradient;
