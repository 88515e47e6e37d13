//! Panics of this thread, wherever they happen: a runtime swallows those of its tasks.

use std::cell::RefCell;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Sees them from when it was made.
pub(super) struct Panics;

impl Panics {
    pub(super) fn watch() -> Self {
        static INSTALLED: std::sync::Once = std::sync::Once::new();
        INSTALLED.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                PANICS.with_borrow_mut(|seen| seen.push(format!("panicked: {panic}")));
                before(panic);
            }));
        });
        PANICS.take();
        Self
    }

    pub(super) fn seen(self) -> Vec<String> {
        PANICS.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_that_was_swallowed_is_seen_and_only_on_its_thread() {
        let panics = Panics::watch();
        assert!(std::panic::catch_unwind(|| panic!("a bug")).is_err());
        assert!(std::thread::spawn(|| panic!("another's")).join().is_err());
        let seen = panics.seen();
        assert!(seen.len() == 1 && seen[0].contains("a bug"), "{seen:?}");
        assert!(Panics::watch().seen().is_empty());
    }
}
