package kafka_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// TestDamagedFilesAreRefused damages what a broker has left, and wants the next one to
// refuse it where events would be lost, with all files as they are, and else to hold all
// that is whole.
func TestDamagedFilesAreRefused(t *testing.T) {
	const batches = 20
	segment := filepath.Join("partitions", schema.TopicEvents+"-0", "0.dat")
	cut := func(to func(size int) int) func([]byte) []byte {
		return func(b []byte) []byte { return b[:to(len(b))] }
	}
	f := func(name, file string, damage func([]byte) []byte, refused bool, left int) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			broker := start(t, dir, 1)
			cl := producer(t, broker.Config())
			for i := range batches {
				r := &kgo.Record{Topic: schema.TopicEvents, Value: fmt.Appendf(nil, "record %d", i)}
				if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			cl.Close()
			if err := broker.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, file)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			damaged := damage(bytes.Clone(whole))
			if damaged == nil {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, damaged, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			next, err := kafka.StartEmbedded(dir, "127.0.0.1:0", 1, discard)
			if got := errors.Is(err, kafka.ErrDamaged); got != refused {
				t.Fatalf("StartEmbedded() = %v, refused = %v, want %v", err, got, refused)
			}
			if refused {
				if b, err := os.ReadFile(path); err == nil && !bytes.Equal(b, damaged) {
					t.Errorf("%s was changed by a broker that refused it", file)
				}
				return
			}
			defer func() { _ = next.Close() }() // what counts was checked before
			l := openLog(t, next.Config())
			n := 0
			if _, err := l.Read(t.Context(), 0, 0, 1<<40, func(*kgo.Record) error { n++; return nil }); err != nil || n != left {
				t.Errorf("the log holds %d records (%v), want %d", n, err, left)
			}
		})
	}
	same := func(b []byte) []byte { return b }
	flip := func(at func(size int) int) func([]byte) []byte {
		return func(b []byte) []byte {
			b[at(len(b))] ^= 4
			return b
		}
	}
	f("whole", segment, same, false, batches)
	f("a last batch that was not written to its end", segment, cut(func(n int) int { return n - 5 }), false, batches-1)
	f("garbage behind the end", segment, func(b []byte) []byte { return append(b, "garbage"...) }, false, batches)
	f("zeros behind the end", segment, func(b []byte) []byte { return append(b, make([]byte, 5000)...) }, false, batches)
	f("a bit in the middle", segment, flip(func(n int) int { return n / 2 }), true, 0)
	f("a bit at the beginning", segment, flip(func(int) int { return 3 }), true, 0)
	f("a length", segment, flip(func(int) int { return 8 }), true, 0)
	f("meta.json gone", "meta.json", func([]byte) []byte { return nil }, true, 0)
	f("topics.json gone", "topics.json", func([]byte) []byte { return nil }, true, 0)
	f("topics.json empty", "topics.json", cut(func(int) int { return 0 }), true, 0)
	f("a topic by another name", "topics.json", func(b []byte) []byte {
		return bytes.Replace(b, []byte(schema.TopicEvents), []byte("playhead.evenus"), 1)
	}, true, 0)
	f("index gone", filepath.Join("partitions", schema.TopicEvents+"-0", "0.idx"), func([]byte) []byte { return nil }, false, batches)
}
