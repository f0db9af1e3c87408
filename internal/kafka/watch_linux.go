package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watcher tells which files of some directories have been written to. The kernel notes
// a change during the call that makes it, so that whoever asks after a write hears of
// that write (inotify(7)).
type watcher struct {
	fd   int
	dirs map[int32]string // by watch descriptor
	buf  []byte
}

// watchBytes is room for about a thousand changes; more come with the next read.
const watchBytes = 64 << 10

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	return &watcher{fd: fd, dirs: make(map[int32]string), buf: make([]byte, watchBytes)}, nil
}

func (w *watcher) close() error { return unix.Close(w.fd) }

// add begins to watch a directory. Adding it again is harmless.
func (w *watcher) add(dir string) error {
	id, err := unix.InotifyAddWatch(w.fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
	if errors.Is(err, unix.ENOENT) {
		return fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	w.dirs[int32(id)] = dir
	return nil
}

// changes calls fn for all that has changed since the last call, in order; with an
// empty path if so much has that the kernel lost count.
func (w *watcher) changes(fn func(c change) error) error {
	for {
		n, err := unix.Read(w.fd, w.buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("watch files: %w", err)
		}
		if err := w.decode(w.buf[:n], fn); err != nil {
			return err
		}
		if n <= len(w.buf)-unix.SizeofInotifyEvent-unix.NAME_MAX-1 {
			return nil // there was room for more
		}
	}
}

func (w *watcher) decode(b []byte, fn func(c change) error) error {
	for len(b) >= unix.SizeofInotifyEvent {
		id := int32(binary.NativeEndian.Uint32(b))
		mask := binary.NativeEndian.Uint32(b[4:])
		nameBytes := int(binary.NativeEndian.Uint32(b[12:]))
		name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+nameBytes], "\x00"))
		b = b[unix.SizeofInotifyEvent+nameBytes:]
		dir, known := w.dirs[id]
		var c change
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
		case mask&unix.IN_IGNORED != 0: // the directory is gone
			delete(w.dirs, id)
			continue
		case !known || name == "":
			continue
		default:
			c = change{path: filepath.Join(dir, name), dir: mask&unix.IN_ISDIR != 0, other: mask&unix.IN_MODIFY == 0}
		}
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}
