//! The `mcpo-bridge` binary: parse, run, return an exit code. The library owns everything.

fn main() -> std::process::ExitCode {
    mcpo_bridge::main()
}
