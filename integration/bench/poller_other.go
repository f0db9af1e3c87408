//go:build !linux

package main

import "errors"

// poller is not made here: what is compared is measured by /proc anyway.
type poller struct{}

var errPollerStopped = errors.New("comparing servers needs Linux")

func newPoller() (*poller, error)                 { return nil, errPollerStopped }
func (p *poller) add(int) error                   { return errPollerStopped }
func (p *poller) wait(ready []int) ([]int, error) { return ready, errPollerStopped }
func (p *poller) stop() error                     { return nil }
func (p *poller) close() error                    { return nil }
