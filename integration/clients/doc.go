// Package clients tests Playhead with clients that are not ours: npm eventsource,
// eventsource-parser and ws, PyPI httpx-sse and websockets, Go tmaxmax/go-sse, and
// headless Chromium from a page of another origin. Each follows a real `playhead dev`
// through a proxy that breaks connections in the middle of frames, and must end with
// exactly the log.
//
// scripts/fetch-clients.sh installs the clients (make test runs it); the programs that
// drive them are in node, python and browser. Their whole protocol: one JSON argument,
// one JSON line for whatever happened, and the end of standard input is the end.
//
// Environment: PLAYHEAD_REQUIRE_CLIENTS=1 makes a missing client a failure instead of a
// skip (make test sets it; Chromium is required where it can be installed, by root with
// apt). PLAYHEAD_CLIENTS_SEED repeats the cuts of an earlier run, which logs its seed.
package clients
