package engine

import "syscall"

// childAttributes ask Linux to end the child with its parent, should the parent be killed; and keep a
// terminal's Ctrl-C from the child, which the parent stops in its own order.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
}
