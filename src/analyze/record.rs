//! What is kept of a response, whatever format it comes from.

/// A response as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    /// A hash of what names the group.
    pub(super) group: u64,
    /// What names the group, where somebody wants to see it.
    pub(super) label: Option<Box<str>>,
    pub(super) step: Option<i64>,
    pub(super) reward: f64,
    /// Of the response: tokens or bytes.
    pub(super) length: u64,
    /// Of the prompt, in the same unit.
    pub(super) prompt_length: u64,
    pub(super) identity: Identity,
    /// In nats; NaN where the file has none.
    pub(super) entropy: f64,
}

/// What tells a response from the others of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// A hash of its text; 0 where no column has the text. Two draws may have the same one.
    Text(u32),
    /// It is one of the outputs of a session, which share the reward of the last one.
    Output(Output),
}

/// An output of a session, in the order of both numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output(u32);

impl Output {
    const INDEX_BITS: u32 = 12;

    /// `None` for more than a million sessions or four thousand outputs, which no prompt has.
    pub(super) fn new(session: u32, index: u32) -> Option<Self> {
        let fits = session < 1 << (32 - Self::INDEX_BITS) && index < 1 << Self::INDEX_BITS;
        fits.then_some(Self(session << Self::INDEX_BITS | index))
    }

    pub(super) fn to_bits(self) -> u32 {
        self.0
    }

    /// The session of an output that was made of these bits.
    pub(super) fn session_of(bits: u32) -> u32 {
        bits >> Self::INDEX_BITS
    }
}

/// The identity of a response with this text.
pub(super) fn text_identity(text: &[u8]) -> Identity {
    Identity::Text(hash(0, text) as u32)
}

/// A 64-bit hash; the same bytes under another seed have an unrelated one.
pub(super) fn hash(seed: u64, bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot_with_seed(seed, bytes)
}
