//! The parallel form has the bits of the serial reference, on any number of threads.

use crate::bits;
use crate::case::Rows;
use qae::{cpu, reference};

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rows = Rows::random(51, 203, 67);
    rows.temperature = 0.7;
    rows.mask = Some((0..203).map(|row| u8::from(row % 7 > 0)).collect());
    let (g, h) = (vec![1.25; 203], vec![-0.375; 203]);
    let expected = reference::log_probs_from_logits(&rows.input()).unwrap();
    let gradient = reference::log_probs_from_logits_backward(&rows.input(), &g, Some(&h)).unwrap();
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let found = cpu::log_probs_from_logits(&rows.input()).unwrap();
            assert_eq!(bits(&found.log_prob), bits(&expected.log_prob));
            assert_eq!(bits(&found.entropy), bits(&expected.entropy));
            assert_eq!(bits(&found.log_sum_exp), bits(&expected.log_sum_exp));
            let found = cpu::log_probs_from_logits_backward(&rows.input(), &g, Some(&h)).unwrap();
            assert_eq!(bits(&found), bits(&gradient));
        });
    }
}
