// Package archtest holds no code: its tests read the whole tree and keep the rules of
// its shape true. Which package may import which, what only cmd may do, how packages
// may be named, what deploy pins.
//
// The rules are tables at the top of each test. A rule that stands in the way of better
// code is changed here, in the same commit, with the reason.
package archtest
