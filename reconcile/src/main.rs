//! The binary of the centre. Everything is in [`feiqian_reconcile::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    feiqian_reconcile::cli::main(std::env::args_os())
}
