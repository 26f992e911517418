//! What the integration tests have in common: the reference as a backend, every kind of
//! configuration, tensors that own their values, random numbers and comparisons.

mod compare;
mod configs;
mod random;
mod reference;
mod values;

pub use compare::{assert_close, bits};
pub use configs::{aggregations, kls, objectives};
pub use random::Random;
pub use reference::Reference;
pub use values::{Advantage, Owned, Weight};
