//! `duplex`: parse, dispatch, print the error chain, exit.

fn main() -> std::process::ExitCode {
    duplex::cli::main()
}
