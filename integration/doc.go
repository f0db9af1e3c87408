// Package integration tests Playhead from outside: built binaries, real parts, the
// public API over loopback. The suites start `playhead dev`, which runs the embedded
// Kafka and ClickHouse.
//
// Environment: PLAYHEAD_REQUIRE_ENGINE=1 makes a missing engine library a failure
// instead of a skip, and PLAYHEAD_REQUIRE_KAFKA=1 missing Kafka (make test sets both).
// With PLAYHEAD_TEST_KAFKA=apache every server runs on a cluster of real Apache Kafka,
// which is wiped for each test (make test-kafka); -short has some tests there do less.
package integration
