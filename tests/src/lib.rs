//! What the tests share: the binaries and how to run them, a small campus of them, a building that lies, wrong clocks, small
//! disks, and what a run of the simulator keeps.

pub mod binaries;
pub mod clock;
pub mod fuzz;
pub mod kept;
pub mod liar;
pub mod mount;
pub mod stand;
