//go:build !linux

package cluster

import "syscall"

// processAttributes keep a terminal's Ctrl-C from the process.
func processAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
