//! The widest vectors that the processor has. Their instructions round as the narrow ones do, and
//! none is fused with another, so that the bits do not depend on them.

/// Something to run. What it calls must be inlined to be compiled for wide vectors.
pub(super) trait Work {
    type Output;

    fn run(self) -> Self::Output;
}

/// Runs `work`, compiled for wide vectors where the processor has them.
pub(super) fn widest<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<W: Work>(work: W) -> W::Output {
            work.run()
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { with_avx2(work) };
        }
    }
    work.run()
}
