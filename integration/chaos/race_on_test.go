//go:build race

package main

// raceFlags has the server under test built as the tests are.
var raceFlags = []string{"-race"}

// residentInTests is the bound of a server's memory, in MiB: the race detector takes
// several times what it watches.
const residentInTests = 2048
