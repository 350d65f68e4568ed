//! Large blocks of memory go back to the system.
//!
//! glibc gives a block of its own to the system when it is freed, but only blocks above a threshold are
//! such, and it raises the threshold to the size of the largest that it has seen freed (up to 32 MiB).
//! From then on large requests and answers lie in its arenas, and stay there: 40 bodies of 20 MB left
//! 1 GB behind. A threshold that is set stays as it is. It can be set by `mallopt`, which is `unsafe` to
//! call, or by a variable that is read before `main`: so the program executes itself once more, in the
//! same process.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _, process::Command};

const TUNABLES: &str = "GLIBC_TUNABLES";
const THRESHOLD: &str = "glibc.malloc.mmap_threshold";
/// Blocks of more bytes are the system's. Smaller ones are most of the traffic, and stay fast.
const BYTES: u32 = 256 * 1024;
/// Says that it was done. Where the system drops the other variable, once has to be enough.
const DONE: &str = "__MCPO_BRIDGE_ALLOCATOR";

/// Executes this program anew with the threshold set, unless it is, or the operator has set one. Returns
/// where that cannot be done: then more memory is held, and nothing else.
pub fn give_back_large_blocks() {
    if !cfg!(target_env = "gnu") || env::var_os(DONE).is_some() {
        return;
    }
    let before = env::var_os(TUNABLES).unwrap_or_default();
    let set = before.to_string_lossy().contains(THRESHOLD);
    if set || env::var_os("MALLOC_MMAP_THRESHOLD_").is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else {
        return;
    };
    let mut tunables = before;
    if !tunables.is_empty() {
        tunables.push(":");
    }
    tunables.push(format!("{THRESHOLD}={BYTES}"));
    let mut arguments = env::args_os();
    let name = arguments
        .next()
        .unwrap_or_else(|| OsString::from("mcpo-bridge"));
    let error = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(TUNABLES, tunables)
        .env(DONE, "1")
        .exec();
    eprintln!("mcpo-bridge: large blocks of memory may not be given back: {error}");
}
