#!/usr/bin/env bash
# POSIX names, modes, owners, times and errors: the suite pjdfstest (the crate of that name) on a real mount of three nodes.
#
#   cargo install --locked --version 0.2.2 pjdfstest
#   cargo build --release --workspace --bins
#   tests/pjdfstest.sh [TEST...]
#
# Needs root and /dev/fuse. Without TESTs all run, and exit code 0 means that 384 passed and none failed. 14 are skipped: 13 of
# them would remount, and LINK_MAX is not known of any FUSE mount. VERBOSE=1 shows each test. DFS_BIN and PJDFSTEST name the directory of our programs and the suite's program.
set -uo pipefail
. "$(dirname "$0")/cluster.sh"
passes=384

suite=${PJDFSTEST:-$(command -v pjdfstest || echo "$root/target/tools/bin/pjdfstest")}
[ -x "$suite" ] || { echo "pjdfstest is missing: cargo install --locked --version 0.2.2 pjdfstest" >&2; exit 1; }
start_cluster
mount_cluster mnt
mkdir -m 777 "$mnt/suite"
# EXDEV wants a second file system.
mkdir "$scratch/second"
mount -t tmpfs -o size=64M none "$scratch/second" || exit 1
mounts+=("$scratch/second")
cat >"$scratch/pjdfstest.toml" <<C
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [ ["nobody", "nogroup"], ["daemon", "daemon"] ]
C
timeout --kill-after 10 "${LIMIT:-900}" "$suite" -c "$scratch/pjdfstest.toml" -s "$scratch/second" -p "$mnt/suite" "$@" >"$scratch/out" 2>&1 </dev/null
code=$?
[ -z "${VERBOSE:-}" ] || cat "$scratch/out"
summary=$(grep -a '^Summary:' "$scratch/out")
if [ $code -ne 0 ] || [ -z "$summary" ]; then
    grep -aE '^[a-z_0-9:]+ +FAILED' -A2 "$scratch/out"
    [ -n "$summary" ] || tail -n 20 "$scratch/out"
    echo "pjdfstest failed (exit code $code): ${summary:-no summary}"
    exit 1
fi
if [ $# -eq 0 ] && ! grep -q " $passes passed" <<<"$summary"; then
    grep -aE ' skipped$' -A1 "$scratch/out"
    echo "pjdfstest: $passes should have passed: $summary"
    exit 1
fi
echo "pjdfstest: $summary"
