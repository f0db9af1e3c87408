package kafkacluster

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"
)

// Asked reports whether tests are to run on a real cluster instead of the embedded broker:
// PLAYHEAD_TEST_KAFKA=apache.
func Asked(t testing.TB) bool {
	t.Helper()
	switch on := os.Getenv("PLAYHEAD_TEST_KAFKA"); on {
	case "":
		return false
	case "apache":
		return true
	default:
		t.Fatalf("PLAYHEAD_TEST_KAFKA is %q; want apache, or nothing for the embedded broker", on)
		return false
	}
}

// Shared is a cluster that the tests of a package share, one after the other. The zero
// value is ready; TestMain closes it.
type Shared struct {
	mu      sync.Mutex // guards the rest
	cluster *Cluster
	dir     string
	err     error // of the start
}

// wipeTimeout bounds a wipe while the machine does other things too.
const wipeTimeout = 2 * time.Minute

// Wiped returns the cluster, whole and with nothing on it. What used it before must have
// ended.
func (s *Shared) Wiped(t testing.TB) *Cluster {
	t.Helper()
	c, err := s.open(Need(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), wipeTimeout)
	defer cancel()
	for _, b := range c.brokers { // as a test may have left them
		if err := errors.Join(b.Start(), b.Resume()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Await(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// open starts the cluster, the first time.
func (s *Shared) open(installation Installation) (*Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster == nil && s.err == nil {
		if s.dir, s.err = os.MkdirTemp("", "playhead-kafka-"); s.err == nil {
			s.cluster, s.err = Start(context.Background(), installation, s.dir)
		}
	}
	return s.cluster, s.err
}

// Close ends the cluster, if it was started, and removes its files.
func (s *Shared) Close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster != nil {
		err = s.cluster.Close()
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}
