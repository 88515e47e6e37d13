//! The node's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    feiqian_node::cli::main(std::env::args_os())
}
