//go:build !linux

package engine

import "syscall"

// childAttributes keep a terminal's Ctrl-C from the child, which the parent stops in its own order. That
// the parent is gone, the child sees by its standard input alone.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
