//! `feiqian-sim`: see [`feiqian_sim::cli`].

fn main() -> std::process::ExitCode {
    feiqian_sim::cli::main()
}
