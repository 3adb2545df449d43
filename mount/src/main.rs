//! `dfs-mount`: mounts a dfs cluster as a directory.

fn main() -> std::process::ExitCode {
    dfs_mount::run::main()
}
