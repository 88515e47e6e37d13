//! The rights protocol, both cores on a virtual link. Each of the first tests runs into a shortcut that looks harmless and
//! is not, so that it would fail were the shortcut taken; the last runs everything against everything, from seeds.

mod rights {
    pub mod allowance;
    pub mod copies;
    pub mod random;
    pub mod resolution;
    pub mod restored_centre;
    pub mod restored_words;
    pub mod settings;
    pub mod shortcuts;
    pub mod snapshots;
    pub mod taps;
}
