//! The `mcpo-bridge` binary: calls the library and returns its exit code.

fn main() -> std::process::ExitCode {
    mcpo_bridge::main()
}
