// Package simulation runs parts of Playhead in virtual time against a log, clients and
// servers that misbehave as a seed says, for tests: one seed is one run.
//
// A run is a bubble of testing/synctest. Whatever stands between a part and the world (the
// log, the group, ClickHouse, a socket) waits a time that is drawn from the seed, to the
// nanosecond, before it answers. The bubble's clock moves on only when all goroutines wait,
// so one of them is woken at a time, in an order that the seed decides, and the run can be
// repeated: see Campaign.
//
// The parts are the real code. What is simulated has the semantics of what it stands for;
// the tests that use this package say which, and check at the end what must hold from the
// log alone (Log.Judge).
package simulation
