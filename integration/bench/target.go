package main

import (
	"context"
	"fmt"
	"time"
)

// target is a server that is compared with others: it takes events for named channels
// and streams them to listeners by SSE. Its methods are called after start and before
// stop, by several goroutines.
type target interface {
	start(ctx context.Context) error
	stop() error
	addr() string
	// processes are the roots of what it consists of: their descendants count as well.
	processes() []int
	// create makes a channel, so that it can be listened to before its first event.
	create(channel string) error
	// publisher returns a way to publish to a channel, for one goroutine.
	publisher(channel string) (publisher, error)
	// stream is the request for a channel's stream.
	stream(channel string, from position) streamRequest
	// ids says how to read, off the stream, the position that stream takes.
	ids() mark
}

// publisher publishes to one channel.
type publisher interface {
	// publish sends events in order and returns once all are acknowledged.
	publish(ctx context.Context, events [][]byte) error
	close()
}

// position is where a stream begins: one of those below, or what was read off it.
type position string

const (
	fromNow   position = ""
	fromStart position = "\x00start"
)

// streamRequest is the part of a request for a stream that differs between targets.
type streamRequest struct {
	path   string
	header string // whole lines
}

// contestant is a kind of target: what the comparison has a column of.
type contestant struct {
	name string
	what string // in words, with versions and settings
	// enter returns one that is not started, on an empty directory; an error says why it
	// cannot be had here.
	enter func(b *bench, dir string) (target, error)
}

func contestantNames() []string {
	var names []string
	for _, c := range contestants() {
		names = append(names, c.name)
	}
	return names
}

func contestants() []contestant {
	return []contestant{
		{name: "playhead", enter: newPlayhead, what: "`playhead dev`: every event is in Kafka's log, synced to disk, before it is acknowledged, and in ClickHouse moments later"},
		{name: "nchan", enter: newNchan, what: "nginx with Nchan (Debian's packages), one worker a core, messages in shared memory and nowhere else; batches are pipelined POSTs"},
		{name: "durable-streams", enter: newDurableStreams, what: "Durable Streams' Node.js server (npm), streams in files, synced to disk before the acknowledgement"},
	}
}

// feed publishes stamped and numbered events to one channel.
type feed struct {
	pub    publisher
	tail   string // of each event, behind stamp and number
	number int64  // of the newest event
	buf    []byte
	events [][]byte
}

// Each event has a number of this many digits, the first of a channel firstNumber+1: JSON
// has no leading zeros.
const (
	numberDigits = 10
	firstNumber  = 1_000_000_000
)

// newFeed returns a feed of events of size bytes.
func newFeed(t target, channel string, size int) (*feed, error) {
	if err := t.create(channel); err != nil {
		return nil, err
	}
	pub, err := t.publisher(channel)
	if err != nil {
		return nil, err
	}
	return &feed{pub: pub, tail: eventTail(size), number: firstNumber}, nil
}

func (f *feed) close() { f.pub.close() }

// published is how many events the feed has published.
func (f *feed) published() int { return int(f.number - firstNumber) }

// send publishes n events made now and returns how long it took until they were
// acknowledged.
func (f *feed) send(ctx context.Context, n int) (ack time.Duration, err error) {
	begun := time.Now()
	f.events, f.buf = f.events[:0], f.buf[:0]
	ends := make([]int, 0, 128)
	for range n {
		f.number++
		f.buf = fmt.Appendf(f.buf, `{"at":%d,"seq":%d%s`, begun.UnixNano(), f.number, f.tail)
		ends = append(ends, len(f.buf))
	}
	from := 0
	for _, end := range ends { // only now: appending moves the buffer
		f.events = append(f.events, f.buf[from:end:end])
		from = end
	}
	err = f.pub.publish(ctx, f.events)
	return time.Since(begun), err
}

// fill publishes n events in batches.
func (f *feed) fill(ctx context.Context, n int) error {
	for ; n > 0; n -= batchEvents {
		if _, err := f.send(ctx, min(n, batchEvents)); err != nil {
			return err
		}
	}
	return nil
}

// pace publishes single events at a rate, for a time, and returns how long each took. One
// is sent when the one before is acknowledged: if the server is slower than the rate,
// there are fewer.
func (f *feed) pace(ctx context.Context, rate int, d time.Duration) (acks latencies, err error) {
	begun := time.Now()
	for i := range int(d.Seconds() * float64(rate)) {
		due := begun.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if err := pause(ctx, time.Until(due)); err != nil {
			return acks, err
		}
		if time.Since(begun) > d {
			break
		}
		ack, err := f.send(ctx, 1)
		if err != nil {
			return acks, err
		}
		acks = append(acks, ack)
	}
	return acks, nil
}
