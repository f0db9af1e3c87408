//go:build race

package integration

// raceFlags has the binary under test built as the tests are.
var raceFlags = []string{"-race"}
