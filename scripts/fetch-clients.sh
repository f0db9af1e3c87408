#!/usr/bin/env bash
# Installs the third-party clients that integration/clients drives, once:
#   npm packages     into integration/clients/node/node_modules, as package-lock.json pins them
#   Python packages  into bin/clients-venv, as requirements.txt pins them, hashes checked
#   Chromium         by apt-get, where there is none and this is root
# What cannot be had is said and does not stop the rest: the tests decide what they need.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
clients=$root/integration/clients
venv=$root/bin/clients-venv
failed=0

say() { printf 'fetch-clients: %s\n' "$1" >&2; }

# quietly runs a command and shows its output only if it fails.
quietly() {
	local log
	log=$(mktemp)
	if ! "$@" >"$log" 2>&1; then
		sed 's/^/  /' "$log" >&2
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
}

is_root_with_apt() { [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; }

# apt_install names the packages; the lists are fetched only if they do not know them.
apt_install() {
	local install=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@")
	"${install[@]}" >/dev/null 2>&1 || { quietly apt-get -o DPkg::Lock::Timeout=300 update && quietly "${install[@]}"; }
}

# installed_from tells whether a directory was completed from this file, by the copy left in it.
installed_from() { cmp -s "$1" "$2/.installed-from"; }

fetch_node() {
	local lock=$clients/node/package-lock.json modules=$clients/node/node_modules
	installed_from "$lock" "$modules" && return
	command -v npm >/dev/null || { say "npm was not found: install Node.js 20 or later with npm"; return 1; }
	say "installing the npm clients"
	(cd "$clients/node" && quietly npm ci --no-audit --no-fund --loglevel=error) && cp "$lock" "$modules/.installed-from"
}

fetch_python() {
	local pins=$clients/python/requirements.txt
	installed_from "$pins" "$venv" && "$venv/bin/python" -c '' 2>/dev/null && return
	rm -rf "$venv"
	if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
		is_root_with_apt || { say "python3 with venv was not found: install Python 3.11 or later"; return 1; }
		say "installing python3-venv"
		apt_install python3 python3-venv || return
	fi
	say "installing the Python clients"
	quietly python3 -m venv "$venv" &&
		quietly "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --require-hashes -r "$pins" &&
		cp "$pins" "$venv/.installed-from"
}

fetch_chromium() {
	local name
	for name in chromium chromium-browser chromium-headless-shell google-chrome; do
		command -v "$name" >/dev/null && return
	done
	is_root_with_apt || { say "there is no Chromium, and only root can install it: its tests will be skipped"; return 0; }
	say "installing chromium with apt-get (about 125 MB, once)"
	apt_install chromium
}

fetch_node || { say "the npm clients could not be installed"; failed=1; }
fetch_python || { say "the Python clients could not be installed"; failed=1; }
fetch_chromium || { say "chromium could not be installed"; failed=1; }
[[ $failed -eq 0 ]] || say "tests of what is missing will fail, or be skipped without PLAYHEAD_REQUIRE_CLIENTS=1"
