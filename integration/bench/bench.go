package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// bench is one invocation: what to measure, and what was.
type bench struct {
	cfg     config
	size    size
	stderr  io.Writer
	begun   time.Time
	report  *report
	payload *payloads
	filled  *server // stopped, with size.rows rows; made by the first who asks
	filling filling
	dirs    []string
}

// size is how much of everything is done.
type size struct {
	appendFor time.Duration // each measurement of appends

	subscribers int
	eventRate   int           // events/s to the subscribers, paced
	pacedFor    time.Duration // paced delivery
	floodFor    time.Duration // delivery as fast as it goes

	replayEvents  int
	replayClients int
	replayRepeats int // replays by one client in a run

	backlog    int           // events the materialiser has to catch up on
	trickleFor time.Duration // paced appends that wait to be materialised

	idleStreams int
	idleFor     time.Duration // before memory is looked at

	rows  int
	pages int // pages of each kind in a run
}

func fullSize() size {
	return size{
		appendFor:   5 * time.Second,
		subscribers: 200, eventRate: 100, pacedFor: 10 * time.Second, floodFor: 5 * time.Second,
		replayEvents: 10_000, replayClients: 20, replayRepeats: 10,
		backlog: 300_000, trickleFor: 10 * time.Second,
		idleStreams: 3000, idleFor: 20 * time.Second,
		rows: 1_000_000, pages: 300,
	}
}

func quickSize() size {
	return size{
		appendFor:   time.Second,
		subscribers: 200, eventRate: 100, pacedFor: 2 * time.Second, floodFor: time.Second,
		replayEvents: 10_000, replayClients: 20, replayRepeats: 3,
		backlog: 30_000, trickleFor: 3 * time.Second,
		idleStreams: 500, idleFor: 2 * time.Second,
		rows: 50_000, pages: 50,
	}
}

// The shape of the data, the same in every section that does not say otherwise.
const (
	batchEvents   = 100
	payloadBytes  = 300 // of an event
	shortPayload  = 200 // of an event that is streamed
	longPart      = 10  // one session has a tenth of the rows
	shortSessions = 1000
)

func newBench(cfg config, stderr io.Writer) *bench {
	b := &bench{cfg: cfg, stderr: stderr, begun: time.Now(), size: fullSize(), report: &report{}, payload: newPayloads(payloadBytes)}
	if cfg.quick {
		b.size = quickSize()
	}
	if cfg.rows > 0 {
		b.size.rows = cfg.rows
	}
	return b
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.stderr, "%6.1fs  %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
}

// tempDir returns a new directory that cleanUp removes.
func (b *bench) tempDir() (string, error) {
	dir, err := os.MkdirTemp(b.cfg.dir, "playhead-bench-")
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	b.dirs = append(b.dirs, dir)
	return dir, nil
}

func (b *bench) cleanUp() error {
	var errs []error
	for _, dir := range b.dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// freshServer starts a server on an empty directory. The caller stops it.
func (b *bench) freshServer(ctx context.Context, args ...string) (*server, error) {
	dir, err := b.tempDir()
	if err != nil {
		return nil, err
	}
	s, err := newServer(b.cfg.server, dir, args...)
	if err != nil {
		return nil, err
	}
	return s, s.start(ctx)
}

// pause sleeps, or returns ctx's cause.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// until polls a condition until it holds. An error with true ends the wait, one with
// false is only the reason why it does not hold yet.
func until(ctx context.Context, within time.Duration, what string, f func() (bool, error)) error {
	deadline := time.Now().Add(within)
	for {
		ok, err := f()
		if ok {
			return err
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("waited %s until %s", within, what), err)
		}
		if err := pause(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}
