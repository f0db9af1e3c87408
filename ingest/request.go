package ingest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// fate is where an item of a request stands.
type fate uint8

const (
	fateNew      fate = iota // to be appended
	fateSettled              // its Result is final
	fateWaiting              // another request, or an earlier item, is appending its message id
	fateProduced             // handed to Kafka
)

// request is one Append on its way. Its steps run in the order in which Append calls
// them, on one goroutine; Kafka's client then calls acknowledge for each record.
type request struct {
	a      *Appender
	caller Caller
	nowMs  int64 // Unix ms; from judge on the timestamp of all its records, but of a backfill's later slices

	items   []Item
	results []Result
	fates   []fate
	targets []*target
	owned   []bool         // the item holds the claim of its message id
	keys    []xxh3.Uint128 // of items with a message id
	waits   map[int]claim  // of items that wait for another's outcome
	byName  map[string]*target

	sliced  bool // by produceSlices
	began   time.Time
	pending atomic.Int64  // records in flight, and one until all are handed over
	done    chan struct{} // closed when pending is 0; results are final then

	mu           sync.Mutex // guards results and the fields below while records are in flight
	acknowledged int
	payload      int
	failure      error
	failedAt     uint16
}

var errNoHistory = errors.New("this process has no access to history")

func (a *Appender) newRequest(caller Caller, items []Item) *request {
	n := len(items)
	return &request{
		a: a, caller: caller, items: items,
		nowMs:   a.now().UnixMilli(),
		results: make([]Result, n),
		fates:   make([]fate, n),
		targets: make([]*target, n),
		owned:   make([]bool, n),
		keys:    make([]xxh3.Uint128, n),
		byName:  make(map[string]*target),
		done:    make(chan struct{}),
	}
}

func (r *request) new(i int) bool { return r.fates[i] == fateNew }

func (r *request) refuse(i int, err *httpapi.Error) {
	r.results[i].Err = err
	r.fates[i] = fateSettled
}

func (r *request) duplicate(i int, id schema.EventID) {
	res := &r.results[i]
	res.ID, res.Duplicate, res.Err = id, true, nil
	r.fates[i] = fateSettled
}

// place finds each item's session, its partition and the partition's tail.
func (r *request) place(ctx context.Context) {
	placement, ok := r.a.layout.Placement(r.caller.Workspace)
	for i := range r.items {
		item := &r.items[i]
		item.Event.Workspace = r.caller.Workspace
		r.results[i].MessageID = item.Event.MessageID
		session := item.Event.Session
		switch {
		case item.Err != nil:
			r.refuse(i, item.Err)
			continue
		case !ok, r.caller.Session != "" && r.caller.Session != session:
			r.refuse(i, notFound("session_id"))
			continue
		}
		if i > 0 && r.targets[i-1] != nil && r.targets[i-1].key.session == session {
			r.targets[i] = r.targets[i-1]
		} else {
			r.targets[i] = r.target(ctx, placement, session)
		}
		if err := r.targets[i].err; err != nil {
			r.refuse(i, err)
		}
	}
}

func (r *request) target(ctx context.Context, placement schema.Placement, session string) *target {
	if t := r.byName[session]; t != nil {
		return t
	}
	partition := placement.Partition(r.caller.Workspace, session)
	t := &target{
		key:            sessionKey{r.caller.Workspace, session},
		lane:           r.a.lane(partition),
		kkey:           schema.RecordKey(r.caller.Workspace, session),
		acknowledgedAt: -1,
	}
	r.byName[session] = t
	var err error
	if t.tail, err = r.a.tail(ctx, t.lane); err != nil {
		t.err = httpapi.LogUnavailable(err)
		return t
	}
	r.a.metrics.unpassed.Sub(float64(t.lane.prune(t.tail.Next())))
	return t
}

// classify claims each new message id and tells repeats apart.
//
// The claim comes before the look at the tail: were it the other way round, a record
// could be appended, acknowledged, passed by the tail and its claim dropped in between.
func (r *request) classify() {
	for i := range r.items {
		id := r.items[i].Event.MessageID
		if !r.new(i) || id == "" {
			continue
		}
		t := r.targets[i]
		r.keys[i] = schema.MessageKey(r.caller.Workspace, t.key.session, id)
		if t.lane.full() {
			r.refuse(i, overloaded("acknowledged message ids that the partition's tail has yet to pass"))
			continue
		}
		held, ok := t.lane.take(r.keys[i], r, i)
		switch {
		case ok:
			r.owned[i] = true
			if first, seen := t.tail.Duplicate(r.keys[i], r.nowMs); seen {
				r.duplicate(i, first)
			}
		case held.req == nil:
			r.duplicate(i, held.id)
		default:
			if r.waits == nil {
				r.waits = make(map[int]claim)
			}
			r.waits[i] = held
			r.fates[i] = fateWaiting
		}
	}
}

// searchHistory finds repeats of messages that are older than the tail's window.
func (r *request) searchHistory(ctx context.Context) {
	var refs []MessageRef
	for i := range r.items {
		if r.new(i) && r.owned[i] && !r.withinWindow(r.targets[i]) {
			refs = append(refs, MessageRef{r.items[i].Event.Session, r.items[i].Event.MessageID})
		}
	}
	if len(refs) == 0 {
		return
	}
	var found map[MessageRef]schema.EventID
	var err error
	if r.a.history == nil {
		err = errNoHistory
	} else {
		found, err = r.a.history.FindMessages(ctx, r.caller.Workspace, refs)
	}
	for i := range r.items {
		if !r.new(i) || !r.owned[i] || r.withinWindow(r.targets[i]) {
			continue
		}
		if err != nil {
			r.refuse(i, httpapi.HistoryUnavailable(retryAfter).WithCause(err))
			continue
		}
		if first, seen := found[MessageRef{r.items[i].Event.Session, r.items[i].Event.MessageID}]; seen {
			r.duplicate(i, first)
		}
	}
}

// withinWindow reports whether the tail's dedupe window reaches back to the session's
// first event, so that ClickHouse could only repeat what the tail has said. That spares
// the import of new sessions a search a batch.
func (r *request) withinWindow(t *target) bool {
	if !t.known {
		return false
	}
	young := r.nowMs-t.startedMs < (r.a.rule.Age - clockSkew).Milliseconds()
	return !t.exists || young && t.tail.Next()-t.firstOffset < r.a.rule.Offsets
}

// clockSkew is how far the clocks of nodes that stamp events are allowed to be apart.
const clockSkew = time.Minute

// sessionLookups is how many sessions of one request are looked up at once: a cold one
// is a question to ClickHouse.
const sessionLookups = 8

// loadSessions asks the tails for the sessions of the items that need it.
func (r *request) loadSessions(ctx context.Context, need func(i int) bool) {
	var load []*target
	for i, t := range r.targets {
		if t == nil || t.loaded || t.err != nil || !need(i) {
			continue
		}
		t.loaded = true
		load = append(load, t)
	}
	if len(load) == 1 { // nearly always
		r.load(ctx, load[0])
		return
	}
	var g errgroup.Group
	g.SetLimit(sessionLookups)
	for _, t := range load {
		g.Go(func() error {
			r.load(ctx, t)
			return nil
		})
	}
	_ = g.Wait()
}

func (r *request) load(ctx context.Context, t *target) {
	s, err := t.tail.Session(ctx, t.key.workspace, t.key.session)
	switch {
	case err == nil:
		t.known, t.exists, t.ended = true, s.Exists(), s.Ended()
		t.startedMs, t.workflow, t.firstOffset = s.StartedMs, s.Workflow, s.First.Offset
	case ctx.Err() != nil:
		t.err = httpapi.LogUnavailable(err)
	default:
		r.a.metrics.unknown.Inc()
	}
}

// checkBinding refuses what a caller that is bound to a workflow may not touch, before
// any answer could tell that it exists.
func (r *request) checkBinding() {
	for i := range r.items {
		if !r.new(i) {
			continue
		}
		t, e := r.targets[i], &r.items[i].Event
		switch {
		case t.err != nil:
			r.refuse(i, t.err)
		case e.Workflow != "" && e.Workflow != r.caller.Workflow:
			r.refuse(i, notFound("workflow_id"))
		case !t.known:
			r.refuse(i, httpapi.HistoryUnavailable(retryAfter))
		case t.exists && t.workflow != r.caller.Workflow:
			r.refuse(i, notFound("session_id"))
		default:
			if !t.exists {
				t.workflow = t.lane.begin(t.key, r, r.nowMs, r.caller.Workflow).workflow
				t.starting = true
				if t.workflow != r.caller.Workflow {
					r.refuse(i, notFound("session_id"))
					continue
				}
			}
			e.Workflow = r.caller.Workflow
		}
	}
}

// judge decides what may be appended, and fills in what the client left out.
func (r *request) judge() {
	// The lookups may have taken their time, and kgo counts a record's delivery timeout
	// from its timestamp.
	r.nowMs = r.a.now().UnixMilli()
	for i := range r.items {
		t, item := r.targets[i], &r.items[i]
		if t == nil || r.results[i].Err != nil {
			continue
		}
		if r.new(i) {
			if err := r.judgeNew(t, item); err != nil {
				r.refuse(i, err)
				continue
			}
		}
		r.results[i].TMs = r.tMs(i)
	}
}

func (r *request) judgeNew(t *target, item *Item) *httpapi.Error {
	e := &item.Event
	switch {
	case t.err != nil:
		return t.err
	case t.ended:
		return refuse(409, codeSessionEnded, "session_id", "Session %s has ended and takes no more events.", schema.Quote(t.key.session))
	case !t.known && !item.TMsGiven:
		return httpapi.HistoryUnavailable(retryAfter).WithParam("t_ms").
			WithDetail("hint", "an event with t_ms is taken while history is away")
	}
	if t.known && !t.exists {
		s := t.lane.begin(t.key, r, r.nowMs, e.Workflow)
		t.startedMs, t.workflow, t.starting = s.ms, s.workflow, true
	}
	switch {
	case e.Workflow == "":
		e.Workflow = t.workflow
	case t.workflow == "":
		t.workflow = e.Workflow
	case t.workflow != e.Workflow:
		return refuse(400, httpapi.CodeInvalidField, "workflow_id", "workflow_id is %s; session %s belongs to workflow %s.",
			schema.Quote(e.Workflow), schema.Quote(t.key.session), schema.Quote(t.workflow))
	}
	if !item.TMsGiven {
		e.TMs = max(0, r.nowMs-t.startedMs)
	}
	return nil
}

// tMs returns the t_ms of an item's result: of a repeat that named none, when its first
// was appended; -1 if that cannot be told.
func (r *request) tMs(i int) int64 {
	t, item := r.targets[i], &r.items[i]
	switch {
	case item.TMsGiven || r.new(i):
		return item.Event.TMs
	case r.results[i].Duplicate && t.known && t.exists:
		return max(0, r.results[i].ID.TimeMs-t.startedMs)
	default:
		return -1
	}
}

// admit reserves room in the producer for all new items.
func (r *request) admit() *httpapi.Error {
	events, bytes := int64(0), int64(0)
	for i := range r.items {
		if r.new(i) {
			events++
			bytes += int64(r.items[i].Event.Size())
		}
	}
	return r.a.producer.admit(events, bytes)
}

func (r *request) firstError() *httpapi.Error {
	for i := range r.results {
		if err := r.results[i].Err; err != nil {
			if len(r.results) > 1 && err != r.items[i].Err {
				err.WithDetail("index", i)
			}
			return err
		}
	}
	return nil
}

// abandon refuses all that was to be appended and was not admitted yet.
func (r *request) abandon(err *httpapi.Error) {
	for i := range r.items {
		if r.new(i) {
			r.refuse(i, err)
		}
	}
}
