//! `dfs-mount`: mounts a dfs cluster as a directory.

/// Buffers of all sizes come and go: with the C library's allocator a mount grew to one and a half times of what it may use.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few threads, of which one does the work; a mount that has become idle gives back what it used.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8] = b"narenas:2,dirty_decay_ms:10000\0";

fn main() -> std::process::ExitCode {
    dfs_mount::run::main()
}
