//! The wall clock that the core goes by.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use feiqian_protocol::time::Timestamp;

/// Where the wall clock comes from.
#[derive(Clone)]
pub enum WallClock {
    /// From messages; the core is opened when the first one has come.
    Driven,
    /// From whoever owns the host's clock.
    Hosted(Arc<dyn Fn() -> Timestamp + Send + Sync>),
    /// From the operating system.
    System,
}

/// The wall clock as it runs.
pub(super) enum Clock {
    Driven(Option<Timestamp>),
    Hosted(Arc<dyn Fn() -> Timestamp + Send + Sync>),
    System,
}

impl Clock {
    pub(super) fn new(from: &WallClock) -> Self {
        match from {
            WallClock::Driven => Self::Driven(None),
            WallClock::Hosted(read) => Self::Hosted(read.clone()),
            WallClock::System => Self::System,
        }
    }

    pub(super) fn read(&self) -> Timestamp {
        match self {
            Self::Driven(now) => now.unwrap_or_default(),
            Self::Hosted(read) => read(),
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }

    /// Returns the time in force afterwards.
    pub(super) fn set(&mut self, to: Timestamp) -> Timestamp {
        if let Self::Driven(now) = self {
            *now = Some(now.map_or(to, |now| now.max(to)));
        }
        self.read()
    }
}
