// Package integration tests Playhead from outside: built binaries, real parts, the
// public API over loopback. The suites start `playhead dev`, which runs the embedded
// Kafka and ClickHouse.
//
// Environment: PLAYHEAD_REQUIRE_ENGINE=1 makes a missing engine library a failure
// instead of a skip (make test sets it).
package integration
