//! Makes glibc return large freed blocks of memory to the system.
//!
//! glibc returns a block when it is freed only if the block was mapped separately, which it does above a
//! threshold; and it raises the threshold to the size of the largest such block that was freed (up to 32
//! MiB). From then on large requests and responses are allocated in its arenas, which keep the memory:
//! 40 bodies of 20 MB left 1 GB behind. A threshold that is set explicitly does not change. It can be
//! set by `mallopt`, which is `unsafe` to call, or by a variable that is read before `main`: therefore
//! the program executes itself again, in the same process.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _, process::Command};

const TUNABLES: &str = "GLIBC_TUNABLES";
const THRESHOLD: &str = "glibc.malloc.mmap_threshold";
/// Larger blocks are allocated from the system. Smaller ones are most of the traffic, and stay fast.
const BYTES: u32 = 256 * 1024;
/// Marks a process that has already executed itself again, in case the system removes the other
/// variable.
const DONE: &str = "__MCPO_BRIDGE_ALLOCATOR";

/// Executes this program again with the threshold set, unless it is set already, also by the operator.
/// If that is impossible, it returns; the only effect is that more memory is held.
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
