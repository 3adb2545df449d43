#!/usr/bin/env bash
# Real trees through three node processes and a real mount: untar, diff after remounting, git, a C project's build and tests,
# a large random file in and out, rm -rf, and df afterwards.
#
#   cargo build --release --workspace
#   tests/real_trees.sh TREE.tar[.gz|.xz|.bz2] [C-PROJECT.tar.* [SIZE_MIB]]
#
# TREE is any source archive of some thousand files; C-PROJECT one that ./configure, make and make test (or make check) build, zlib by
# habit (`apt-get source --download-only zlib` gives one). Needs root and /dev/fuse. Exit code 0 only when every step succeeded.
set -euo pipefail
tree=$(realpath "$1"); project=${2:+$(realpath "$2")}; mib=${3:-2048}
bin=$(realpath "$(dirname "$0")/../target/release")
scratch=$(mktemp -d); mnt=$scratch/mnt; mkdir "$mnt"
pids=()
finish() {
    mountpoint -q "$mnt" && umount -l "$mnt"
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$scratch"
}
trap finish EXIT

node() { # ARGUMENTS...: starts a node, prints its address
    "$bin/dfs-node" --listen 127.0.0.1:0 --memory 5GiB --log warn "$@" >"$scratch/ready" 2>>"$scratch/nodes.log" &
    pids+=($!)
    until grep -q '^ready' "$scratch/ready"; do kill -0 "${pids[-1]}"; done
    address=$(sed -n 's/.* *listen=\([^ ]*\).*/\1/p' "$scratch/ready")
}
remount() { mountpoint -q "$mnt" && umount "$mnt"; "$bin/dfs-mount" --nodes "$first" --log warn --log-file "$scratch/mount.log" "$mnt"; }
step() { # NAME COMMAND...
    local name=$1 from to; shift
    from=$(date +%s.%N)
    "$@" >"$scratch/out" 2>&1 || { echo "FAIL $name"; tail -n 20 "$scratch/out"; exit 1; }
    to=$(date +%s.%N)
    printf 'ok   %-52s %7.1f s\n' "$name" "$(echo "$to - $from" | bc)"
}

node; first=$address
node --join "$first"; node --join "$first"
remount
mkdir "$scratch/local" "$mnt/tree"
tar xf "$tree" -C "$scratch/local"
files=$(find "$scratch/local" -type f | wc -l)
step "untar of $files files" tar xf "$tree" -C "$mnt/tree"
step "remount" remount
step "diff -r against the original" diff -r --no-dereference "$scratch/local" "$mnt/tree"

git init -q -b main "$scratch/repository"
cp -a "$scratch/local/." "$scratch/repository/"
git -C "$scratch/repository" add -A -f
git -C "$scratch/repository" -c user.name=t -c user.email=t@example.invalid commit -qm all
step "git clone" git clone -q "$scratch/repository" "$mnt/clone"
step "git fsck" git -C "$mnt/clone" fsck --full
step "git status is clean" bash -c "test -z \"\$(git -C '$mnt/clone' status --porcelain)\""

if [ -n "$project" ]; then
    mkdir "$mnt/build"
    step "untar of the C project" tar xf "$project" -C "$mnt/build" --strip-components=1
    [ -x "$mnt/build/configure" ] && step "configure" bash -c "cd '$mnt/build' && ./configure"
    step "make -j2" make -C "$mnt/build" -j2
    target=$(grep -qE '^check *:' "$mnt/build/Makefile" && echo check || echo test)
    step "make $target" make -C "$mnt/build" "$target"
fi

head -c "${mib}M" /dev/urandom >"$scratch/random"
step "copy in $mib MiB" cp "$scratch/random" "$mnt/random"
step "remount" remount
step "copy out" cp "$mnt/random" "$scratch/back"
step "the hashes are equal" cmp "$scratch/random" "$scratch/back"
rm -f "$scratch/back"

df -h "$mnt" | tail -1
step "rm -rf of everything" bash -c "rm -rf '$mnt'/*"
free_again() { for _ in $(seq 200); do [ "$(df --output=used -BM "$mnt" | tail -1 | tr -dc 0-9)" -le 1 ] && return 0; read -rt 0.1 <> <(:) || :; done; df "$mnt"; return 1; }
step "df shows the memory free again" free_again
"$bin/dfs" --nodes "$first" status
umount "$mnt"
echo "all steps passed"
