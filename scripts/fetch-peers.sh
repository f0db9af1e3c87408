#!/bin/sh
# Fetches the servers that `make bench-peers` compares Playhead with, once, outside the source tree:
#   ${PLAYHEAD_PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/playhead/peers}/<peer>
# Debian's packages are unpacked there, not installed, so that no daemon starts; root is needed for one
# directory (below). A peer that cannot be had is named on standard error and left out. The directory
# goes to standard output, as the last line.
set -eu

durable_streams=0.3.7

root=${PLAYHEAD_PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/playhead/peers}
mkdir -p "$root"
tmp=$(mktemp -d "$root/.fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf 'fetch-peers: %s\n' "$1" >&2; }

# fetch NAME: runs fetch_NAME in a directory of its own, which becomes the peer's if it succeeds.
fetch() {
	name=$1
	[ ! -d "$root/$name" ] || return 0
	mkdir "$tmp/$name"
	say "fetching $name"
	if (cd "$tmp/$name" && "fetch_$(printf %s "$name" | tr - _)") >"$tmp/$name.log" 2>&1; then
		# A run at the same time may have been first.
		[ -d "$root/$name" ] || mv "$tmp/$name" "$root/$name"
	else
		tail -n 5 "$tmp/$name.log" | sed 's/^/  /' >&2
		say "$name cannot be had here, the comparison goes on without it"
	fi
}

# have COMMAND: says why not.
have() {
	command -v "$1" >/dev/null 2>&1 || { echo "$1 is not installed"; return 1; }
}

# These run with set -e off (they are conditions), hence the chains.
fetch_nchan() {
	have apt-get && have dpkg-deb &&
		apt-get -q download nginx libnginx-mod-nchan &&
		for deb in *.deb; do dpkg-deb -x "$deb" . || return 1; done &&
		rm ./*.deb && ./usr/sbin/nginx -v &&
		mkdir -p /var/lib/nginx/body # the one thing of the installation that Nchan does not do without
}

fetch_durable_streams() {
	have node && have npm &&
		printf '{"private":true}\n' >package.json &&
		npm install --no-audit --no-fund --loglevel=error "@durable-streams/server@$durable_streams"
}

fetch nchan
fetch durable-streams
printf '%s\n' "$root"
