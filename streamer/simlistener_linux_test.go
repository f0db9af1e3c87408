package streamer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/simulation"
	"github.com/playhead-dev/playhead/schema"
)

// simListener is a client of a simulation: it listens to one scope, with one filter, on one
// node after the other, and resumes by the last id it was given. It knows the log, and
// checks every frame: what it gets is what lies behind its position, in order, once, but
// for what it is told of as lost.
type simListener struct {
	run  *simRun
	name string
	s    *simulation.Stream
	req  Request // of every connection
	slow bool    // it stops reading now and then

	partitions []uint16

	mu       sync.Mutex       // guards next, finished and dropped
	next     map[uint16]int64 // all it wants below has come, or was told as lost
	last     string           // the id to resume from; "": none
	finished bool             // the session has ended, and the stream with it

	// Of the connection.
	conn    *simConn
	sub     *subscription
	node    *simNode
	opened  time.Duration
	began   map[uint16]int64 // the log's ends before it was asked for
	dropped int64            // told, and not yet seen to be missing
	text    []byte           // not yet a whole line
	frame   simFrame
}

// simFrame is what is read of a frame.
type simFrame struct{ event, id, data string }

// listen is the listener's life, until the run is over.
func (l *simListener) listen() {
	l.s.Rest(0, 20*time.Second)
	for !l.run.over() && !l.finished {
		n := l.run.pick(l.s)
		if n == nil || !l.connect(n) {
			l.s.Rest(0, 2*time.Second)
			continue
		}
		l.receive()
		if err := l.conn.hangUp(); err != nil {
			l.run.w.Failf("hang up: %v", err)
		}
	}
}

// connect opens a stream on a node, as Hub.open does, and reports whether there is one.
func (l *simListener) connect(n *simNode) bool {
	h := n.hub
	l.began = l.ends()
	l.opened = l.run.w.Now()
	b := begin{param: "Last-Event-ID"}
	if l.last == "" {
		b.start = l.s.Chance(0.5)
	} else {
		var err error
		if b.cursor, err = schema.ParseCursor(l.last); err != nil {
			l.run.w.Failf("%s was given id %q: %v", l.name, l.last, err)
			return false
		}
	}
	req := l.req
	o := opening{id: fmt.Sprintf("%s-%d", l.name, l.s.IntN(1<<30)), wire: sse{req.View}, release: func() {}}
	o.ctx = simulation.NewCaller(l.run.w, o.id).Context(context.Background())
	ctx, cancel := context.WithTimeout(o.ctx, openTimeout)
	defer cancel()
	o.erased = h.erasedBelow(req.Scope)
	p, err := h.resolve(ctx, control.Principal{Workspace: req.Scope.Workspace}, &req, b)
	if err != nil {
		l.refused(n, err)
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if req.CloseAtEnd && p.over {
		l.ended()
		return false
	}
	if err := h.Reserve(); err != nil {
		return false
	}
	size := 4 << 10
	if l.s.Chance(0.3) {
		size = 64 << 10
	}
	conn, err := newSimConn(size)
	if err != nil {
		h.Release()
		l.run.w.Failf("%v", err)
		return false
	}
	n.mu.Lock()
	n.conns = append(n.conns, conn)
	n.mu.Unlock()
	if n.node.Dead() {
		h.Release()
		_ = conn.Close()
		_ = conn.hangUp()
		return false
	}
	l.begin(p, b)
	o.req, o.legs = req, p.legs
	l.conn, l.node, l.dropped, l.text, l.frame = conn, n, 0, nil, simFrame{}
	l.s.Tracef("listens on %s from %q, next %v", n.node.Name, l.last, l.next)
	l.sub = h.adopt(conn, o)
	return true
}

// ends returns where the log of each partition ends now.
func (l *simListener) ends() map[uint16]int64 {
	out := make(map[uint16]int64)
	for _, p := range l.partitions {
		_, out[p], _ = l.run.log.Bounds(p)
	}
	return out
}

// begin notes where the connection begins.
func (l *simListener) begin(p resolved, b begin) {
	l.next = make(map[uint16]int64)
	for _, leg := range p.legs {
		partition := leg.from.Partition
		switch {
		case l.last != "":
			next, ok := behind(b.cursor, partition)
			if !ok {
				l.run.w.Failf("%s was given id %q, which says nothing of partition %d", l.name, l.last, partition)
			}
			l.next[partition] = next
		case b.start:
			l.next[partition] = 0
		default:
			_, end, _ := l.run.log.Bounds(partition)
			if leg.from.Offset < l.began[partition] || leg.from.Offset > end {
				l.run.w.Failf("%s is to begin at offset %d of partition %d; now is from %d to %d",
					l.name, leg.from.Offset, partition, l.began[partition], end)
			}
			l.next[partition] = leg.from.Offset
		}
	}
}

// behind returns the offset behind a cursor. It is Cursor.Next, written anew.
func behind(c schema.Cursor, partition uint16) (int64, bool) {
	if c.ID.Partition == partition {
		return c.ID.Offset + 1, true
	}
	for _, o := range c.Others {
		if o.Partition == partition {
			return o.Offset, true
		}
	}
	return 0, false
}

// refused looks at why there is no stream.
func (l *simListener) refused(n *simNode, err error) {
	l.s.Tracef("is refused by %s: %v", n.node.Name, err)
	var e *httpapi.Error
	if !errors.As(err, &e) {
		l.run.w.Failf("%s is refused without a reason to be told: %v", l.name, err)
		return
	}
	switch {
	case e.Status == 503:
	case e.Status == 404 && l.run.erasures:
		l.last = "" // the session is erased, or about to be begun anew
	case e.Status == 404 && l.last == "":
	default:
		l.run.w.Failf("%s is refused id %q by %s: %v", l.name, l.last, n.node.Name, err)
	}
}

// receive reads until the connection ends, or the listener has had enough of it.
func (l *simListener) receive() {
	until := l.run.w.Now() + l.s.Duration(0, 60*time.Second)
	for {
		timer := time.NewTimer(l.s.Duration(2*time.Second, 8*time.Second))
		select {
		case <-l.conn.data:
			timer.Stop()
			l.s.Rest(10*time.Microsecond, 10*time.Millisecond)
		case <-timer.C:
			l.sub.beatDue.Store(true)
			l.sub.Wake()
		}
		if l.slow && l.s.Fault(0.2) {
			l.s.Tracef("does not read")
			l.s.Rest(time.Second, 50*time.Second)
		}
		b, end := l.conn.take()
		l.mu.Lock()
		l.read(b)
		if end {
			l.closed()
		}
		l.mu.Unlock()
		switch {
		case end:
			return
		case l.run.over():
			l.hangUp()
			return
		case l.run.w.Now() > until && !l.run.w.IsCalm():
			l.hangUp()
			return
		}
	}
}

// hangUp ends the connection. The node may hear of it at once, or when it writes.
func (l *simListener) hangUp() {
	l.s.Tracef("hangs up")
	if l.s.Chance(0.7) || l.run.over() {
		l.sub.end(errHungUp)
	}
}

// closed looks at why the node has ended the stream.
func (l *simListener) closed() {
	reason := context.Cause(l.sub.ctx)
	l.s.Tracef("is cut off: %v", reason)
	if errors.Is(reason, errSessionEnded) {
		l.ended()
	}
}

// ended checks a stream that was closed with its session: all of that had come.
func (l *simListener) ended() {
	l.finished = true
	if l.run.erasures {
		return
	}
	for _, p := range l.partitions {
		for _, j := range l.run.log.Judged(p) {
			if j.Kind != simulation.Event || !l.req.Scope.Holds(j.Event) {
				continue
			}
			if j.Event.Type == schema.TypeSessionEnded {
				return
			}
			if l.wants(&j) && j.Record.Offset >= l.next[p] && l.last != "" {
				l.run.w.Failf("%s was ended before offset %d of partition %d had come", l.name, j.Record.Offset, p)
			}
		}
	}
}

// read takes what has come, line by line.
func (l *simListener) read(b []byte) {
	l.text = append(l.text, b...)
	for {
		line, rest, ok := bytes.Cut(l.text, []byte("\n"))
		if !ok {
			return
		}
		l.text = rest
		name, value, _ := strings.Cut(string(line), ": ")
		switch {
		case len(line) == 0:
			l.take(l.frame)
			l.frame = simFrame{}
		case name == "":
			l.comment(value)
		case name == "event":
			l.frame.event = value
		case name == "id":
			l.frame.id = value
		case name == "data":
			l.frame.data = value
		case name == "retry":
		default:
			l.run.w.Failf("%s reads line %q, which is not of an event stream", l.name, line)
		}
	}
}

func (l *simListener) comment(text string) {
	if number, ok := strings.CutPrefix(text, "dropped "); ok {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < 1 {
			l.run.w.Failf("%s is told %q", l.name, text)
		}
		l.s.Tracef("is told: dropped %d", n)
		l.dropped += n
		if l.req.ReplayWhenSlow {
			l.run.w.Failf("%s has asked for a replay when it is slow, and %d events are dropped", l.name, n)
		}
	}
}

// take looks at a frame.
func (l *simListener) take(f simFrame) {
	switch f.event {
	case "playhead.caught_up":
		for _, p := range l.partitions {
			if n := l.missing(p, l.began[p]); n > l.dropped {
				l.run.w.Failf("%s is told that it has caught up, and %d events of partition %d have not come", l.name, n, p)
			}
		}
	case "playhead.gap":
		l.takeGap(f.data)
	case "error", "heartbeat":
	case "":
		if f.id != "" && f.data == "" {
			l.takePosition(f.id)
		}
	default:
		l.takeEvent(f)
	}
	if f.id != "" {
		l.last = f.id
	}
}

// takeEvent checks an event.
func (l *simListener) takeEvent(f simFrame) {
	c, err := schema.ParseCursor(f.id)
	if err != nil {
		l.run.w.Failf("%s is given id %q: %v", l.name, f.id, err)
		return
	}
	p, offset := c.ID.Partition, c.ID.Offset
	l.s.Tracef("has %d/%d %s", p, offset, f.event)
	j := l.run.find(p, offset)
	switch {
	case j == nil || !j.Visible() && !l.mayRepeat(j) || !l.req.Scope.Holds(j.Event) || !l.req.Filter.Match(j.Event):
		l.run.w.Failf("%s is given offset %d of partition %d, which is not for it", l.name, offset, p)
		return
	case offset < l.next[p]:
		l.run.w.Failf("%s is given offset %d of partition %d again; its position was %d", l.name, offset, p, l.next[p])
		return
	case l.run.knewErased(l.node.node.Name, j.Event, l.opened):
		l.run.w.Failf("%s is given offset %d of partition %d, which was erased", l.name, offset, p)
	case f.event != j.Event.Type || !strings.Contains(f.data, string(j.Event.Payload)):
		l.run.w.Failf("%s is given offset %d of partition %d as %s %s, want %s %s", l.name, offset, p, f.event, f.data, j.Event.Type, j.Event.Payload)
	}
	l.pass(p, offset)
	l.next[p] = offset + 1
	l.checkOthers(c)
}

// mayRepeat reports whether nobody could tell that a record is a repeat: Kafka had deleted what
// it repeats before that was copied, or before the node opened its tape.
func (l *simListener) mayRepeat(j *simulation.Judged) bool {
	return j.Kind == simulation.Duplicate && !j.Event.Hidden() &&
		(l.run.gaps || l.node.opened.tooLate(j.Event.ID.Partition, j.Repeats, j.Record.Offset))
}

// pass accounts for what is missing below an offset: it must have been told.
func (l *simListener) pass(p uint16, offset int64) {
	n := l.missing(p, offset)
	if n > l.dropped {
		l.run.w.Failf("%s has lost %d events of partition %d below offset %d (its position was %d), and is told of %d",
			l.name, n, p, offset, l.next[p], l.dropped)
	}
	if exact := len(l.partitions) == 1 && !l.run.erasures && !l.run.gaps; exact && n < l.dropped {
		l.run.w.Failf("%s is told of %d lost events of partition %d below offset %d (its position was %d), and %d are missing",
			l.name, l.dropped, p, offset, l.next[p], n)
	}
	l.dropped = max(0, l.dropped-n)
	if len(l.partitions) == 1 {
		l.dropped = 0
	}
}

// missing counts the events below an offset of a partition that the listener wants, that must
// come, and have not.
func (l *simListener) missing(p uint16, offset int64) (n int64) {
	all := l.run.log.Judged(p)
	i := sort.Search(len(all), func(i int) bool { return all[i].Record.Offset >= l.next[p] })
	for ; i < len(all) && all[i].Record.Offset < offset; i++ {
		if l.wants(&all[i]) {
			n++
		}
	}
	return n
}

// wants reports whether an event must come.
func (l *simListener) wants(j *simulation.Judged) bool {
	return j.Visible() && l.req.Scope.Holds(j.Event) && l.req.Filter.Match(j.Event) &&
		!l.run.everErased(j.Event) && !l.run.table.lost(uint16(j.Record.Partition), j.Record.Offset)
}

// takePosition checks an id that stands alone: nothing below it is still to come.
func (l *simListener) takePosition(id string) {
	c, err := schema.ParseCursor(id)
	if err != nil {
		l.run.w.Failf("%s is given id %q: %v", l.name, id, err)
		return
	}
	for _, p := range l.partitions {
		next, ok := behind(c, p)
		switch {
		case !ok && l.next[p] > 0:
			l.run.w.Failf("%s is given id %q, which says nothing of partition %d", l.name, id, p)
		case !ok:
		case next < l.next[p]:
			l.run.w.Failf("%s is given id %q, which is at offset %d of partition %d; it was at %d", l.name, id, next, p, l.next[p])
		default:
			l.pass(p, next)
			l.next[p] = next
		}
	}
}

// checkOthers checks what an event's id says of the partitions that it is not of.
func (l *simListener) checkOthers(c schema.Cursor) {
	for _, o := range c.Others {
		switch n := l.missing(o.Partition, o.Offset); {
		case o.Offset < l.next[o.Partition]:
			l.run.w.Failf("%s is given id %s, which is at offset %d of partition %d; it was at %d", l.name, c, o.Offset, o.Partition, l.next[o.Partition])
		case n > l.dropped:
			l.run.w.Failf("%s is given id %s, which is beyond %d events of partition %d that have not come", l.name, c, n, o.Partition)
		}
	}
}

// takeGap checks what the listener is told is gone.
func (l *simListener) takeGap(data string) {
	var gap struct{ From, To string }
	if err := json.Unmarshal([]byte(data), &gap); err != nil {
		l.run.w.Failf("%s is told of a gap %q: %v", l.name, data, err)
		return
	}
	from, err := schema.ParseEventID(gap.From)
	to, terr := schema.ParseEventID(gap.To)
	if err = errors.Join(err, terr); err != nil {
		l.run.w.Failf("%s is told of a gap %q: %v", l.name, data, err)
		return
	}
	l.s.Tracef("is told of a gap in partition %d from %d to %d", from.Partition, from.Offset, to.Offset)
	// What was copied in the last second and then deleted too soon is in history, and the node
	// may not have heard of it.
	start, _, _ := l.run.log.Bounds(to.Partition)
	if n := l.missing(to.Partition, to.Offset); n > 0 && (!l.run.gaps || to.Offset > start) {
		l.run.w.Failf("%s is told of a gap from %d to %d of partition %d, and %d events there are kept", l.name, from.Offset, to.Offset, to.Partition, n)
	}
	l.next[to.Partition] = max(l.next[to.Partition], to.Offset)
}

// behindBy says what has not come yet.
func (l *simListener) behindBy() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.finished {
		return ""
	}
	if l.next == nil {
		return l.name + " has no stream"
	}
	left := ""
	missing := int64(0)
	for p, end := range l.ends() {
		if n := l.missing(p, end); n > 0 {
			missing += n
			left = fmt.Sprintf("%s waits for %d events of partition %d from offset %d to %d, and was told that %d are lost",
				l.name, n, p, l.next[p], end, l.dropped)
		}
	}
	if missing <= l.dropped {
		return "" // what was last is what was lost
	}
	return left
}
