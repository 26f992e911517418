/// A stream of pseudo-random numbers (splitmix64), the same on every platform.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..end.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In [0, end), a multiple of end · 2⁻¹⁶.
    pub fn grid(&mut self, end: f32) -> f32 {
        self.below(1 << 16) as f32 * end / 65536.0
    }

    /// In [low, high), a multiple of (high − low) · 2⁻¹⁶.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + self.grid(high - low)
    }

    /// Either.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// One of them.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// So many of [`Self::between`].
    pub fn values(&mut self, len: usize, low: f32, high: f32) -> Vec<f32> {
        (0..len).map(|_| self.between(low, high)).collect()
    }
}
