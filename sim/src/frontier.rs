//! False declines against overspend.
pub mod college;
