// Package settings says what is wrong with a setting, in one form for all: its key, its value
// and what is allowed. A Config's Validate joins the answers, so that every problem is
// reported at once.
package settings

import (
	"fmt"
	"time"
)

// InRange returns nil if value lies within low and high, both allowed, or else an error:
//
//	keep_alive is 1ms; want 1s to 5m0s
func InRange[T int | int64 | time.Duration](key string, value, low, high T) error {
	if value < low || value > high {
		return fmt.Errorf("%s is %v; want %v to %v", key, value, low, high)
	}
	return nil
}

// Want is InRange for rules that are no range, or whose unit neither key nor value shows. It
// returns nil if ok, or else an error that gives want as what is allowed.
func Want(ok bool, key string, value any, want string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("%s is %v; want %s", key, value, want)
}
