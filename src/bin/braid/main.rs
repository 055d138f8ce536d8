//! The command `braid`.

fn main() -> std::process::ExitCode {
    braid::cli::braid()
}
