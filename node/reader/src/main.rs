//! The reader service's binary.

fn main() -> std::process::ExitCode {
    feiqian_reader::cli::main()
}
