package cluster

import "syscall"

// processAttributes keep a terminal's Ctrl-C from the process, and end it with us should
// we be killed.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
