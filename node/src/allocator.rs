//! The allocator of `dfs-node`, and how it gives memory back.

use std::ptr::null_mut;

/// Chunks of all sizes come and go for weeks: the C library's allocator grew to 1.35 times of what was in use within a minute of that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// One thread, one arena. What was freed is kept for the next chunk: first touch of memory is expensive, most of all in virtual machines (giving
/// it back after ten seconds cost a quarter of the write throughput). Large allocations begin at a page: a random beginning within one costs
/// a page for each chunk.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8] = b"narenas:1,cache_oblivious:false,dirty_decay_ms:-1\0";

/// Gives all pages back that were freed. Some milliseconds for 100 MiB; touching them again costs more.
pub fn give_back() {
    // SAFETY: the name ends with NUL, and this control has no value. If it is refused nothing happens.
    unsafe { tikv_jemalloc_sys::mallctl(c"arena.0.purge".as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
}
