#!/bin/sh
# Installs the embedded ClickHouse engine (libchdb) with the npm client, once, outside the source tree:
#   ${PLAYHEAD_ENGINE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/playhead/engine}/<version>-<platform>/libchdb.so
# Version and integrity are pinned in engine-package.json. The path goes to standard output, as the last
# line; everything else to standard error. Runs that overlap do not disturb each other.
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
pins=$here/engine-package.json

fail() {
	printf 'fetch-engine: %s\n' "$1" >&2
	printf 'fetch-engine: Playhead runs without the engine if you give it the DSN of a ClickHouse server.\n' >&2
	exit 1
}
say() { printf 'fetch-engine: %s\n' "$1" >&2; }

case $(uname -m) in
x86_64 | amd64) arch=x64 ;;
aarch64 | arm64) arch=arm64 ;;
*) fail "there is no engine for the processor $(uname -m)" ;;
esac
case $(uname -s) in
Linux) platform=linux-$arch-gnu ;;
Darwin) platform=darwin-$arch ;;
*) fail "there is no engine for $(uname -s)" ;;
esac

# The first "version" of the pins file is the release; read without node, so that a cached engine needs none.
version=$(sed -n 's/^ *"version": *"\([^"]*\)".*/\1/p' "$pins" | head -n 1)
[ -n "$version" ] || fail "$pins names no version"
root=${PLAYHEAD_ENGINE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/playhead/engine}
dest=$root/$version-$platform
if [ -f "$dest/libchdb.so" ]; then
	printf '%s\n' "$dest/libchdb.so"
	exit 0
fi

command -v node >/dev/null 2>&1 && command -v npm >/dev/null 2>&1 ||
	fail "npm is needed to install the engine and was not found: install Node.js with npm, then run this again"

pin() { node -p 'const p = require(process.argv[1]).packages[process.argv[2]]; p ? p[process.argv[3]] : ""' "$pins" "$platform" "$1"; }
name=$(pin name)
integrity=$(pin integrity)
[ -n "$name" ] && [ -n "$integrity" ] ||
	fail "no integrity is pinned for $platform, and nothing is installed unverified: add it to scripts/engine-package.json (npm view @chdb/lib-$platform@$version dist.integrity)"

mkdir -p "$root" || fail "cannot create $root: set PLAYHEAD_ENGINE_DIR to a directory that can be written"
tmp=$(mktemp -d "$root/.fetch.XXXXXX") || fail "cannot write to $root: set PLAYHEAD_ENGINE_DIR to a directory that can be written"
npm_pid=
cleanup() {
	[ -z "$npm_pid" ] || kill "$npm_pid" 2>/dev/null || :
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "installing $name@$version (about 180 MB to fetch, 570 MB on disk) into $root"
mkdir "$tmp/pack" "$tmp/out"
(cd "$tmp/pack" && exec npm pack "$name@$version" --ignore-scripts --loglevel=error >"$tmp/npm.log" 2>&1) &
npm_pid=$!
seconds=0
while kill -0 "$npm_pid" 2>/dev/null; do
	sleep 1
	seconds=$((seconds + 1))
	if [ -t 2 ]; then
		printf '\rfetch-engine: downloading, %d s ' "$seconds" >&2
	elif [ $((seconds % 10)) -eq 0 ]; then
		say "downloading, $seconds s"
	fi
done
[ ! -t 2 ] || printf '\r' >&2
status=0
wait "$npm_pid" || status=$?
npm_pid=
if [ "$status" -ne 0 ]; then
	sed 's/^/  npm: /' "$tmp/npm.log" >&2
	fail "npm could not fetch $name@$version: check the network and npm's own configuration, then run this again"
fi
tarball=$(find "$tmp/pack" -name '*.tgz' | head -n 1)
[ -n "$tarball" ] || fail "npm fetched $name@$version but left no package"

say "downloaded in $seconds s, checking its integrity"
actual=sha512-$(node -e '
const hash = require("crypto").createHash("sha512");
require("fs").createReadStream(process.argv[1]).on("data", d => hash.update(d)).on("end", () => console.log(hash.digest("base64")));
' "$tarball")
[ "$actual" = "$integrity" ] ||
	fail "integrity of $name@$version does not match: expected $integrity, got $actual. Nothing was installed"

say "unpacking"
tar -xzf "$tarball" -C "$tmp/out" || fail "cannot unpack $name@$version: is the disk full?"
[ -f "$tmp/out/package/libchdb.so" ] || fail "$name@$version holds no libchdb.so"
rm -f "$tmp/out/package/chdb_node.node" "$tmp/out/package/index.js"

# rename(2), which mv is not where the target is a directory: the directory appears whole or not at all.
if ! node -e 'require("fs").renameSync(process.argv[1], process.argv[2])' "$tmp/out/package" "$dest" 2>"$tmp/npm.log"; then
	# A run at the same time was first.
	[ -f "$dest/libchdb.so" ] || { cat "$tmp/npm.log" >&2; fail "cannot move the engine to $dest"; }
fi
say "installed"
printf '%s\n' "$dest/libchdb.so"
