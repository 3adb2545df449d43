# Sourced by the scripts here: three dfs-node processes and mounts of them, all gone when the script ends.
#
# DFS_BIN names the directory of the programs; by default target/release or target/debug, whichever was built last.
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
bin=${DFS_BIN:-$(dirname "$(ls -t "$root"/target/{release,debug}/dfs-mount 2>/dev/null | head -n 1)")}
[ -x "$bin/dfs-node" ] && [ -x "$bin/dfs-mount" ] || { echo "build first: cargo build --release --workspace --bins" >&2; exit 1; }
scratch=$(mktemp -d "${TMPDIR:-/tmp}/dfs-XXXXXX")
chmod 755 "$scratch"
pids=() mounts=()

end_cluster() {
    local mount pid
    for mount in "${mounts[@]}"; do umount -l -q "$mount" 2>/dev/null; done
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done
    rm -rf --one-file-system "$scratch"
}
trap end_cluster EXIT

# node ARGUMENTS...: starts a node and waits until it is ready; its address is then in $address.
node() {
    local ready=$scratch/ready-${#pids[@]}
    "$bin/dfs-node" --listen 127.0.0.1:0 --memory "${DFS_MEMORY:-2GiB}" --log warn "$@" >"$ready" 2>>"$scratch/nodes.log" &
    pids+=($!)
    until grep -q '^ready' "$ready"; do
        kill -0 "${pids[-1]}" 2>/dev/null || { cat "$scratch/nodes.log" >&2; exit 1; }
    done
    address=$(sed -n 's/.* *listen=\([^ ]*\).*/\1/p' "$ready")
}

# start_cluster: three nodes; the address of the first is then in $first.
start_cluster() {
    node; first=$address
    node --join "$first"; node --join "$first"
}

# mount_cluster NAME: mounts the cluster; the directory is then in $mnt.
mount_cluster() {
    mnt=$scratch/$1
    mkdir -p "$mnt"
    "$bin/dfs-mount" --nodes "$first" -o allow_other --log warn --log-file "$scratch/$1.log" "$mnt" || exit 1
    mounts+=("$mnt")
}
