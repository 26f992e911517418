//! The parquet reader asserts what files say of themselves, and damaged ones lie: its panics are
//! errors of the file.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, whose values are not used after a panic.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let before = IS_CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_CAUGHT.set(before);
    result.unwrap_or_else(|_| {
        Err("expected a whole parquet file, found parts that contradict each other".to_string())
    })
}

/// Makes panics that become errors print nothing; others print as before.
pub(crate) fn hide_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_CAUGHT.get() {
                print(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_of_the_file() {
        hide_caught_panics();
        assert_eq!(caught(|| Ok(1)), Ok(1));
        assert_eq!(
            caught(|| Err::<(), _>("cut off".to_string())),
            Err("cut off".to_string())
        );
        let error = caught::<()>(|| panic!("no such page")).unwrap_err();
        assert!(error.contains("contradict"), "{error}");
        assert!(!IS_CAUGHT.get());
    }
}
