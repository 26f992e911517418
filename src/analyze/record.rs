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

/// An output of a session, in the order of both numbers, and some bits of a hash of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output(u32);

impl Output {
    const TEXT_BITS: u32 = 8;
    const INDEX_BITS: u32 = 10;
    const SESSION_BITS: u32 = 32 - Self::INDEX_BITS - Self::TEXT_BITS;

    /// `None` for more than sixteen thousand sessions or a thousand outputs, which no prompt has.
    pub(super) fn new(session: u32, index: u32) -> Option<Self> {
        let fits = session < 1 << Self::SESSION_BITS && index < 1 << Self::INDEX_BITS;
        fits.then_some(Self(
            (session << Self::INDEX_BITS | index) << Self::TEXT_BITS,
        ))
    }

    /// The same output, with a hash of its text.
    pub(super) fn with_text(self, hash: u32) -> Self {
        Self(self.0 | hash >> (32 - Self::TEXT_BITS))
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(super) fn to_bits(self) -> u32 {
        self.0
    }

    pub(super) fn session(self) -> u32 {
        self.0 >> (Self::INDEX_BITS + Self::TEXT_BITS)
    }

    pub(super) fn index(self) -> u32 {
        self.0 >> Self::TEXT_BITS & ((1 << Self::INDEX_BITS) - 1)
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
