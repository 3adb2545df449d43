//! `dfs-mount`: mounts a dfs cluster as a directory.

/// Buffers of all sizes come and go: with the C library's allocator a mount grew to one and a half times of what it may use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few threads, of which one does the work; what a mount did not use again for two seconds it gives back. Large allocations begin at a page: a
/// random beginning within one costs a page for each buffer.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8] = b"narenas:2,cache_oblivious:false,dirty_decay_ms:2000\0";

fn main() -> std::process::ExitCode {
    dfs_mount::run::main()
}
