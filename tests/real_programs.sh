#!/usr/bin/env bash
# Programs that people use, on real mounts of three nodes: git, sqlite, PostgreSQL, rsync, cargo, npm, pip, tar, an editor's way of saving, make.
#
#   cargo build --release --workspace --bins
#   tests/real_programs.sh [PROGRAM...]
#
# Prints one line per program: ok, failed (with the end of its output) or skipped, and its time. What is missing is installed with apt-get.
# Needs root, /dev/fuse, and for some programs the network. Exit code 0 only when nothing failed. DFS_BIN names the directory of our programs.
set -uo pipefail
. "$(dirname "$0")/cluster.sh"
start_cluster
mount_cluster a; a=$mnt
mount_cluster b; b=$mnt
failures=0
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.invalid GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.invalid
wanted=("$@")

need() { # COMMAND PACKAGE...
    local command=$1; shift
    command -v "$command" >/dev/null && return
    { apt-get install -y -qq --no-install-recommends "$@" || { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; }; } \
        </dev/null >"$scratch/apt.log" 2>&1
    command -v "$command" >/dev/null
}
program() { # NAME COMMAND PACKAGES FUNCTION
    local name=$1 command=$2 packages=$3 function=$4 from
    [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $name "* ]] || return 0
    # shellcheck disable=SC2086 # Packages are words.
    need "$command" $packages || { printf 'skipped %-22s %s is not there and cannot be installed\n' "$name" "$command"; return; }
    from=$(date +%s.%N)
    # A shell of its own, which sees what this one has, and `set -e` where `if` would switch it off.
    (set -euo pipefail; export DEBIAN_FRONTEND=noninteractive; "$function") >"$scratch/out" 2>&1 </dev/null &
    if wait $!; then
        printf 'ok      %-22s %6.1f s\n' "$name" "$(echo "$(date +%s.%N) - $from" | bc)"
    else
        printf 'failed  %-22s %6.1f s\n' "$name" "$(echo "$(date +%s.%N) - $from" | bc)"
        tail -n 15 "$scratch/out" | sed 's/^/        /'
        failures=$((failures + 1))
    fi
}

git_works() {
    git init -q -b main "$a/origin"
    cp -r "$root/src" "$root/node" "$root/README.md" "$a/origin"
    git -C "$a/origin" add -A
    git -C "$a/origin" commit -qm first
    git clone -q "$a/origin" "$b/clone"
    for number in 1 2 3 4 5; do
        echo "$number" >>"$b/clone/README.md"
        git -C "$b/clone" commit -qam "change $number"
    done
    git -C "$a/clone" gc -q
    git -C "$b/clone" fsck --full --strict
    test -z "$(git -C "$b/clone" status --porcelain)"
    git -C "$a/clone" push -q origin main:other
    git -C "$b/origin" log --oneline other | wc -l | grep -qx 6
}

sqlite_journals() {
    for mode in delete truncate persist memory wal off; do
        sqlite3 "$a/$mode.db" "pragma journal_mode=$mode; create table t(k integer primary key, v text);" | grep -qx "$mode"
        for number in $(seq 20); do
            sqlite3 "$a/$mode.db" "begin; insert into t(v) values(hex(randomblob(500))),('$number'); commit;"
        done
        test "$(sqlite3 "$a/$mode.db" 'pragma integrity_check; select count(*) from t;' | tr '\n' ' ')" = "ok 40 "
    done
}

# Writers on both mounts with a rollback journal: needs locks that exclude across mounts.
sqlite_two_mounts() {
    sqlite3 "$a/two.db" "pragma journal_mode=delete; create table t(who text, n integer);" >/dev/null
    add() { for n in $(seq 50); do sqlite3 -cmd '.timeout 30000' "$1/two.db" "insert into t values('$2', $n);"; done; }
    add "$a" a & add "$b" b & wait %1; wait %2
    test "$(sqlite3 "$a/two.db" 'pragma integrity_check; select count(*), count(distinct who) from t;' | tr '\n' ' ')" = "ok 100|2 "
    test "$(sqlite3 "$b/two.db" 'select count(*) from t;')" = 100
}

postgres_works() {
    local pg data=$a/pg as
    pg=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | tail -n 1)")
    as() { setpriv --reuid=postgres --regid=postgres --init-groups env HOME=/tmp LC_ALL=C "$@"; }
    install -d -o postgres -m 700 "$data"
    # The socket lies beside the mount, for its path must be short.
    install -d -o postgres "$scratch/run"
    cd "$scratch/run"
    as "$pg/initdb" -D "$data" -A trust >/dev/null
    start() { as "$pg/pg_ctl" -D "$data" -w -t 60 -l "$scratch/run/log" -o "-k $scratch/run -c listen_addresses=''" start; }
    ask() { as "$pg/psql" -h "$scratch/run" -X -At -c "$1" postgres; }
    trap 'as "$pg/pg_ctl" -D "$data" -m immediate stop || true; tail -n 5 "$scratch/run/log"' EXIT
    start
    as "$pg/pgbench" -h "$scratch/run" -q -i -s 2 postgres
    as "$pg/pgbench" -h "$scratch/run" -c 4 -j 2 -T 5 postgres
    ask "create table kept(n int); insert into kept select generate_series(1, 1000);"
    as "$pg/pgbench" -h "$scratch/run" -n -c 4 -T 20 postgres &
    until [ "$(ask 'select count(*) from pgbench_history')" -gt 100 ]; do :; done
    ask "insert into kept values(1001);"
    kill -9 "$(head -n 1 "$data/postmaster.pid")"
    wait %1 || true
    # The server's children end by themselves once they notice.
    until ! as pgrep -u postgres -f "^postgres:" >/dev/null; do :; done
    # Where nobody collects orphans the dead server still looks alive to these.
    rm -f "$data/postmaster.pid" "$scratch/run/".s.PGSQL*
    start
    test "$(ask 'select count(*), max(n) from kept')" = "1001|1001"
    test "$(ask 'select (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)')" = t
    as "$pg/pg_ctl" -D "$data" -m fast stop
    as "$pg/pg_controldata" "$data" | grep -q "shut down"
    trap - EXIT
}

rsync_twice() {
    mkdir "$scratch/from"
    cp -r "$root/src" "$root/tests" "$scratch/from"
    ln -s src "$scratch/from/link"; ln "$scratch/from/src/lib.rs" "$scratch/from/hard"; mkfifo "$scratch/from/fifo"; chmod 4711 "$scratch/from/hard"
    rsync -aHAX "$scratch/from/" "$a/rsync"
    # The second time, and through the other mount, there is nothing to do.
    test -z "$(rsync -aHAXi "$scratch/from/" "$b/rsync")"
    rsync -aHAXnic --delete "$scratch/from/" "$b/rsync" | { ! grep .; }
}

cargo_build() {
    mkdir -p "$scratch/project/src"
    printf '[package]\nname = "p"\nversion = "0.1.0"\nedition = "2021"\n[lib]\npath = "src/lib.rs"\n[[bin]]\nname = "b"\npath = "src/main.rs"\n' >"$scratch/project/Cargo.toml"
    echo 'pub fn answer() -> i32 { 42 } #[test] fn t() { assert_eq!(answer(), 42) }' >"$scratch/project/src/lib.rs"
    echo 'fn main() { println!("{}", p::answer()) }' >"$scratch/project/src/main.rs"
    cd "$scratch/project"
    export CARGO_TARGET_DIR=$a/target CARGO_INCREMENTAL=1
    cargo build --offline -q
    test "$("$b/target/debug/b")" = 42
    echo 'fn main() { println!("{}", p::answer() + 1) }' >src/main.rs
    cargo build --offline -q
    cargo test --offline -q
    test "$("$b/target/debug/b")" = 43
}

npm_install() {
    mkdir "$a/npm"
    cd "$a/npm"
    npm init -y >/dev/null
    npm install --no-audit --no-fund --cache "$a/npm-cache" express
    cd "$b/npm"
    command node -e 'require("express")'
    npm ls
}

pip_install() {
    python3 -m venv "$a/venv"
    "$a/venv/bin/pip" install -q --cache-dir "$a/pip-cache" requests
    "$b/venv/bin/python" -c 'import requests'
}

tar_with_xattrs() {
    mkdir "$scratch/attributes"
    echo x >"$scratch/attributes/f"
    setfattr -n user.colour -v blue "$scratch/attributes/f"
    tar -C "$scratch" --xattrs -cf "$scratch/x.tar" attributes
    tar -C "$a" --xattrs -xf "$scratch/x.tar"
    test "$(getfattr --only-values -n user.colour "$b/attributes/f")" = blue
}

save_as_editors_do() {
    python3 - "$a" "$b" <<'P'
import os, sys
a, b = sys.argv[1:]
open(a + "/text", "w").write("0")
for n in range(1, 200):
    here, there = (a, b) if n % 2 else (b, a)
    assert open(here + "/text").read() == str(n - 1)
    fd = os.open(here + "/.text.swp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, str(n).encode()); os.fsync(fd); os.close(fd)
    os.rename(here + "/text", here + "/text~")
    os.rename(here + "/.text.swp", here + "/text")
    os.unlink(there + "/text~")
    assert sorted(name for name in os.listdir(there) if "text" in name) == ["text"], n
    assert open(there + "/text").read() == str(n)
P
}

make_zlib() {
    cd "$scratch"
    mkdir -p zlib; cd zlib
    apt-get source -qq --download-only zlib || {
        sed 's/^deb /deb-src /; s/^Types: deb$/Types: deb-src/' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null >"$scratch/sources" || true
        cp "$scratch/sources" "/etc/apt/sources.list.d/dfs-source.$(grep -q ^Types "$scratch/sources" && echo sources || echo list)"
        apt-get update -qq; apt-get source -qq --download-only zlib
        rm -f /etc/apt/sources.list.d/dfs-source.*
    }
    mkdir "$a/zlib"
    tar -C "$a/zlib" --strip-components=1 -xf zlib_*.orig.tar.*
    cd "$a/zlib"
    ./configure
    make -j2
    make -C "$b/zlib" test
}

program git git "git" git_works
program sqlite sqlite3 "sqlite3" sqlite_journals
program sqlite-two-mounts sqlite3 "sqlite3" sqlite_two_mounts
program postgresql pg_ctlcluster "postgresql" postgres_works
program rsync rsync "rsync" rsync_twice
program cargo cargo "cargo" cargo_build
program npm npm "npm" npm_install
program pip python3 "python3-venv python3-pip" pip_install
program tar-xattrs setfattr "attr" tar_with_xattrs
program editor python3 "python3" save_as_editors_do
program make-zlib make "make gcc dpkg-dev" make_zlib
[ $failures -eq 0 ] && echo "nothing failed" || echo "$failures failed"
exit $((failures > 0))
