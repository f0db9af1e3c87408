package kafka

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// durability puts what the embedded broker has written on disk before anybody hears of
// it. kfake can sync by itself (SyncWrites), but then its one goroutine stands still for
// two syncs a batch, the second of an index that can be told from the segment, and their
// errors are lost. Here an answer waits for one sync, which it shares with every answer
// that is due meanwhile.
type durability struct {
	dir string
	log *slog.Logger

	// fsync is (*os.File).Sync but in tests. Guarded by flushing.
	fsync func(*os.File) error

	transactions atomic.Bool // a client has used them; see counts

	mu     sync.Mutex // guards gather. Taken after flushing
	gather *flushRound

	flushing sync.Mutex // held by the round under way; guards what follows
	watch    *watcher
	dirty    map[string]struct{} // files written to since they were last synced
	files    map[string]*os.File // what has been synced before, to sync again
	failed   error               // the first failure; it stays
}

// flushRound is one flush, for all who asked before it began. Guarded by
// durability.flushing.
type flushRound struct {
	done bool
	err  error
}

// newDurability counts nothing in dir, which must exist, as being on disk yet: a broker
// that was killed leaves what the system has not written back. It fails where files
// cannot be watched.
func newDurability(dir string, log *slog.Logger) (*durability, error) {
	watch, err := newWatcher()
	if err != nil {
		return nil, err
	}
	d := &durability{
		dir: dir, log: log, fsync: (*os.File).Sync, watch: watch,
		dirty: make(map[string]struct{}), files: make(map[string]*os.File),
	}
	if err := d.adopt(dir); err != nil {
		return nil, errors.Join(err, watch.close())
	}
	return d, nil
}

// wait returns nil once all that was written to the directory before the call is on
// disk. After an error every call fails: a system that could not write a page may forget
// it, and the next sync succeed without it (fsync(2)).
func (d *durability) wait() error {
	d.mu.Lock()
	if d.gather == nil {
		d.gather = &flushRound{}
	}
	r := d.gather
	d.mu.Unlock()

	d.flushing.Lock()
	defer d.flushing.Unlock()
	if r.done {
		return r.err
	}
	d.mu.Lock()
	d.gather = nil // what is written from now on may be too late for this flush
	d.mu.Unlock()
	if d.failed == nil {
		if d.failed = d.flush(); d.failed != nil {
			d.log.Error("embedded kafka takes no more until it is restarted: its files cannot be synced", "error", d.failed)
		}
	}
	r.done, r.err = true, d.failed
	return r.err
}

// close closes the files after a last flush. Later calls of wait fail.
func (d *durability) close() error {
	err := d.wait()
	d.flushing.Lock()
	defer d.flushing.Unlock()
	if errors.Is(d.failed, ErrClosed) {
		return nil
	}
	for _, f := range d.files {
		err = errors.Join(err, f.Close())
	}
	d.files, d.failed = nil, ErrClosed
	return errors.Join(err, d.watch.close())
}

// flush syncs the files that have been written to.
func (d *durability) flush() error {
	if err := d.watch.changes(d.changed); err != nil {
		return err
	}
	for path := range d.dirty {
		if !d.counts(path) {
			continue
		}
		if err := d.sync(path); err != nil {
			return err
		}
		delete(d.dirty, path)
	}
	return nil
}

// change is something that happened to a file or a directory.
type change struct {
	path  string // empty: unknown, anything may have changed
	dir   bool
	other bool // it was made, removed or replaced, and not only written to
}

func (d *durability) changed(c change) error {
	switch {
	case c.path == "":
		for path := range d.files {
			d.forget(path)
		}
		return d.adopt(d.dir)
	case c.dir:
		return d.adopt(c.path)
	case c.other:
		d.forget(c.path)
	}
	d.dirty[c.path] = struct{}{}
	return nil
}

// adopt watches a directory and all below it, and takes every file there for written to.
// What comes after add is watched, what came before is listed.
func (d *durability) adopt(dir string) error {
	if err := d.watch.add(dir); err != nil {
		return ignoreMissing(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() {
			d.dirty[path] = struct{}{}
		} else if err := d.adopt(path); err != nil {
			return err
		}
	}
	return nil
}

// ignoreMissing is for what has been removed meanwhile: a deleted topic is no failure.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// counts reports whether a file must be on disk: the segments (.dat) and the logs of
// groups and producer ids. All others kfake syncs before it goes on, but for a segment's
// index (.idx): that tells no more of a batch than the segment does, except whether it
// is part of a transaction.
func (d *durability) counts(path string) bool {
	switch filepath.Ext(path) {
	case ".dat", ".log":
		return true
	case ".idx":
		return d.transactions.Load()
	default:
		return false
	}
}

// sync writes a file out, through a descriptor of its own.
func (d *durability) sync(path string) error {
	f := d.files[path]
	if f == nil {
		var err error
		if f, err = os.Open(path); err != nil {
			return ignoreMissing(err)
		}
		d.files[path] = f
	}
	if err := d.fsync(f); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

func (d *durability) forget(path string) {
	if f := d.files[path]; f != nil {
		_ = f.Close() // it was never written to
		delete(d.files, path)
	}
}
