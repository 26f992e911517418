//! The CUDA kernels' own source, run on the CPU, against the f64 reference: the third link of the
//! oracle chain, after closed forms and the reference itself.
//!
//! Every launch also passes the emulator's detectors, and every output starts as poison.

mod barriers;
mod batches;
mod bytes;
mod case;
mod compare;
mod extremes;
mod golden;
mod groups;
mod indices;
mod lengths;
mod order;
mod random;
mod sampled;
