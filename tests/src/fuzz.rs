//! What the fuzz targets do with their bytes. A target is a function from bytes to nothing that panics where something
//! that must hold does not; the crate in `tests/fuzz` hands it what libFuzzer thinks of, and `tests/fuzz_corpus.rs` what
//! was kept and changes of that. docs/testing.md says how to run both.

pub mod card;
pub mod centre;
pub mod codecs;
pub mod documents;
pub mod node;
pub mod script;
pub mod seeds;
pub mod texts;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is also the folder of its corpus.
    pub name: &'static str,
    /// What it does with bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 19] = [
    Target { name: "accounts", run: texts::accounts },
    Target { name: "campus", run: texts::campus },
    Target { name: "card", run: card::card },
    Target { name: "centre", run: centre::session },
    Target { name: "chain", run: codecs::chain },
    Target { name: "configuration", run: texts::configuration },
    Target { name: "control", run: texts::control },
    Target { name: "document", run: documents::document },
    Target { name: "enrolment", run: codecs::enrolment },
    Target { name: "frame", run: codecs::frame },
    Target { name: "heads", run: codecs::heads },
    Target { name: "history", run: texts::history },
    Target { name: "log_file", run: codecs::log_file },
    Target { name: "names", run: texts::names },
    Target { name: "node", run: node::session },
    Target { name: "piece", run: codecs::piece },
    Target { name: "record", run: codecs::record },
    Target { name: "replicas", run: documents::replicas },
    Target { name: "terminal", run: texts::terminal },
];

/// libFuzzer ends the process at every panic. Those in the library that reads documents are caught and are errors of what
/// was read; what a target itself finds wrong still ends it, since nobody catches that.
pub fn let_caught_panics_pass() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| drop(std::panic::take_hook()));
}

/// The target of a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
