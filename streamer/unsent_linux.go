package streamer

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// maxUnsent bounds what the kernel takes of a stream beyond what is on its way. Without
// it a slow client's send buffer grows to megabytes: that much is out of our hands, and
// the socket counts as full until a third of it has drained, which a client of 20 KB/s
// does not do within a write timeout.
const maxUnsent = 128 << 10

// limitUnsent sets TCP_NOTSENT_LOWAT. A socket without it works, with a larger buffer.
func limitUnsent(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent)
	})
}
