//go:build !race

package main

// raceFlags has the server under test built as the tests are.
var raceFlags []string

// residentInTests is the bound of a server's memory, in MiB.
const residentInTests = 512
