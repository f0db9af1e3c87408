#!/bin/sh
# Installs Apache Kafka for tests with the mvn client, once, outside the source tree:
#   ${PLAYHEAD_KAFKA_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/playhead/kafka}/<version>/*.jar
# The version is pinned in kafka/pom.xml, every jar by its hash in kafka/jars.sha256. The directory goes to
# standard output, as the last line; everything else to standard error. Runs that overlap do not disturb
# each other.
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
pom=$here/kafka/pom.xml
pins=$here/kafka/jars.sha256

fail() {
	printf 'fetch-kafka: %s\n' "$1" >&2
	exit 1
}
say() { printf 'fetch-kafka: %s\n' "$1" >&2; }

version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$pom")
[ -n "$version" ] || fail "$pom names no version"
root=${PLAYHEAD_KAFKA_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/playhead/kafka}
dest=$root/$version

# Another list of hashes may stand for the same version: what is installed must be from this one.
if cmp -s "$pins" "$dest/jars.sha256"; then
	printf '%s\n' "$dest"
	exit 0
fi

command -v mvn >/dev/null 2>&1 || fail "mvn is needed to install Kafka and was not found: install Maven 3.6 or later, then run this again"
command -v sha256sum >/dev/null 2>&1 || fail "sha256sum is needed to check what is installed, and was not found"

mkdir -p "$root" || fail "cannot create $root: set PLAYHEAD_KAFKA_DIR to a directory that can be written"
tmp=$(mktemp -d "$root/.fetch.XXXXXX") || fail "cannot write to $root: set PLAYHEAD_KAFKA_DIR to a directory that can be written"
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "installing Apache Kafka $version (45 MB) into $root"
mkdir "$tmp/jars"
if ! mvn --batch-mode --quiet --strict-checksums --file "$pom" dependency:copy-dependencies \
	-DoutputDirectory="$tmp/jars" >"$tmp/mvn.log" 2>&1; then
	tail -n 20 "$tmp/mvn.log" | sed 's/^/  mvn: /' >&2
	fail "mvn could not fetch Kafka $version: check the network and mvn's own configuration, then run this again"
fi

say "checking every jar's hash"
(cd "$tmp/jars" && LC_ALL=C sha256sum -- *.jar) >"$tmp/found"
if ! LC_ALL=C sort -k 2 "$pins" | cmp -s - "$tmp/found"; then
	diff "$pins" "$tmp/found" | sed -n 's/^[<>]/  &/p' >&2 || :
	fail "the jars are not those that $pins names (< pinned, > fetched). Nothing was installed"
fi
cp "$pins" "$tmp/jars/jars.sha256"

# The directory appears whole or not at all; one that stands for another list is replaced. A run at the
# same time may have been first, and then there is one of this list.
rm -rf "$dest"
mv "$tmp/jars" "$tmp/$version"
mv "$tmp/$version" "$root/" 2>"$tmp/mv.log" || cmp -s "$pins" "$dest/jars.sha256" || fail "cannot move Kafka to $dest: $(cat "$tmp/mv.log")"
say "installed"
printf '%s\n' "$dest"
