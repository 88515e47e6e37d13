//! What the tests share: the binaries and how to run them, a small campus of them, small disks, and what a run of the
//! simulator keeps.

pub mod binaries;
pub mod kept;
pub mod mount;
pub mod stand;
