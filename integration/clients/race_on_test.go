//go:build race

package clients

// raceFlags has the binary under test built as the tests are.
var raceFlags = []string{"-race"}
