//go:build !linux

package streamer

import "syscall"

// limitUnsent does nothing on this platform: the kernel's own send buffer is the bound.
func limitUnsent(syscall.RawConn) {}
