package streamer

import (
	"context"
	"crypto/rand"
	"errors"
	"math"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/presence"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// openTimeout bounds what happens between a request for a stream and its first byte.
const openTimeout = 10 * time.Second

// openingWait is how long a request for a stream waits while as many as there may be are
// being opened.
const openingWait = 2 * time.Second

// open prepares the stream that a request asks for. done says that there is none to open:
// it would end at once, with nothing to send.
func (h *Hub) open(c *fiber.Ctx, v *View) (o opening, done bool, err error) {
	who := httpapi.From(c)
	q, err := httpapi.Query(c)
	if err != nil {
		return o, false, err
	}
	if err := httpapi.CheckParams(q, v.takesParam); err != nil {
		return o, false, err
	}
	id := strings.Clone(c.Params("id")) // the router's string dies with the handler
	o.req = Request{Scope: v.scope(who.Workspace, id), View: v, KeyID: who.KeyID, Expires: who.ExpiresAt}
	if err := h.parseOptions(&o.req, q); err != nil {
		return o, false, err
	}
	begin, err := parseBegin(q, c.Get("Last-Event-ID"))
	if err != nil {
		return o, false, err
	}
	ctx, cancel := context.WithTimeout(c.UserContext(), openTimeout)
	defer cancel()
	waiting, stop := context.WithTimeoutCause(ctx, openingWait, errOverloaded)
	defer stop()
	if err := h.openings.take(waiting, who.Workspace, nil, nil); err != nil {
		return o, false, httpapi.Errorf(http.StatusServiceUnavailable, "overloaded",
			"Too many streams are being opened on this node.").WithRetryAfter(spreadReturn())
	}
	defer h.openings.give(who.Workspace)
	o.erased = h.erasedBelow(o.req.Scope)
	p, err := h.resolve(ctx, who, &o.req, begin)
	if err != nil {
		return o, false, err
	}
	o.id = h.newID()
	o.legs = p.legs
	if v.WebSocket {
		o.wire = &socket{view: o.req.View}
	} else {
		o.wire = sse{o.req.View}
	}
	return o, o.req.CloseAtEnd && p.over, nil
}

var errOverloaded = errors.New("too many streams are being opened")

// spreadReturn is when a refused client should come back: at random, so that those who
// were refused together do not come back together.
func spreadReturn() time.Duration { return time.Second + mathrand.N(4*time.Second) }

// admit takes a place for the stream: on the node, and among those that its key and its
// workspace may have open.
func (h *Hub) admit(o *opening, path string) error {
	limits := presence.Limits{}
	class := ""
	if h.limits != nil {
		l := h.limits(o.req.Scope.Workspace)
		limits.PerKey, limits.PerWorkspace = l.StreamsPerKey, l.StreamsPerWorkspace
		if v := o.req.View; v.LimitedPath != "" && matchesRoute(v.LimitedPath, path) {
			class, limits.PerClass = "event_stream", l.EventStreamsPerKey
			o.req.EventsPerMinute = l.EventsPerMinute
		}
	}
	if err := h.Reserve(); err != nil {
		if errors.Is(err, errShutdown) {
			return httpapi.ShuttingDown()
		}
		return httpapi.Errorf(http.StatusServiceUnavailable, "overloaded",
			"This node holds as many streams as it may (%d).", h.cfg.MaxStreams).WithRetryAfter(spreadReturn())
	}
	o.release = func() {}
	if h.counts == nil {
		return nil
	}
	release, err := h.counts.Acquire(o.req.Scope.Workspace, o.req.KeyID, class, limits)
	if err != nil {
		h.Release()
		over, ok := errors.AsType[*presence.LimitError](err)
		if !ok {
			return err
		}
		return httpapi.Errorf(http.StatusTooManyRequests, "stream_limit_exceeded", "As many streams are open as %s may have (%d).",
			map[string]string{presence.OfWorkspace: "the workspace", presence.OfKey: "the key", presence.OfClass: "the key on this path"}[over.Of],
			over.Limit).WithDetail("limit", over.Limit).WithDetail("open", over.Open).WithDetail("of", over.Of).WithRetryAfter(spreadReturn())
	}
	o.release = release
	return nil
}

// scope is what a view's stream of an id reads.
func (v *View) scope(workspace, id string) schema.Scope {
	s := schema.Scope{Workspace: workspace}
	switch v.Of {
	case OfSession:
		s.Session = id
	case OfWorkflow:
		s.Workflow = id
	case OfWorkspace:
	}
	return s
}

// resolved is where a stream begins.
type resolved struct {
	legs []place
	over bool // the session has ended, and all of it lies before
}

// resolve finds out where a stream of req begins that the caller may see. Unknown and
// foreign sessions are the same 404; a workflow nobody has used is an empty stream.
func (h *Hub) resolve(ctx context.Context, who control.Principal, req *Request, b begin) (resolved, error) {
	scope := req.Scope
	switch {
	case scope.Session != "" && (schema.CheckID(scope.Session) != nil || who.Session != "" && who.Session != scope.Session):
		return resolved{}, httpapi.NotFound(req.View.noun())
	case scope.Workflow != "" && (schema.CheckID(scope.Workflow) != nil || who.Session != "" || who.Workflow != "" && who.Workflow != scope.Workflow):
		return resolved{}, httpapi.NotFound("workflow")
	case scope.Session == "" && scope.Workflow == "" && (who.Session != "" || who.Workflow != ""):
		return resolved{}, httpapi.NotFound("stream")
	}
	ends, err := h.openTapes(ctx, scope)
	if err != nil {
		return resolved{}, httpapi.LogUnavailable(err)
	}
	var state schema.Session
	if scope.Session != "" {
		state, err = ends[0].tape.Session(ctx, scope.Workspace, scope.Session)
		switch {
		case err != nil:
			return resolved{}, httpapi.HistoryUnavailable(historyRetryAfter).WithCause(err)
		case !state.Exists(), !who.MaySee(scope.Session, state.Workflow), req.View.Kind != "" && req.View.Kind != state.Kind:
			return resolved{}, httpapi.NotFound(req.View.noun())
		}
	}
	legs, err := h.positions(ctx, scope, b, &req.Filter, ends)
	if err != nil {
		return resolved{}, err
	}
	r := resolved{legs: legs}
	if scope.Session != "" && state.Ended() && req.CloseAtEnd {
		r.over = h.nothingLeft(ctx, req, legs[0], state)
	}
	return r, nil
}

// Bounds of finding out whether a stream has anything to send.
const (
	maxLookAhead     = 4 // reads
	lookAheadTimeout = 2 * time.Second
)

// nothingLeft reports whether a stream of an ended session would send nothing from its
// place on. A filter may take none of what is left: a transcript's takes every turn, and
// not the event that ended the call. Where it takes more than a few reads to know, the
// answer is no, and the stream finds out.
func (h *Hub) nothingLeft(ctx context.Context, req *Request, at place, state schema.Session) bool {
	last := lastOffset(state, at.tape.Epoch())
	behind := func(p schema.Position) bool { return p.Epoch == at.tape.Epoch() && p.Offset > last }
	if behind(at.from) {
		return true
	}
	if req.Filter.IsZero() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookAheadTimeout)
	defer cancel()
	if h.reads.take(ctx, req.Scope.Workspace, nil, nil) != nil {
		return false
	}
	defer h.reads.give(req.Scope.Workspace)
	s := newSource(h, req, at.tape)
	s.unhurried = true
	pos := at.from
	for range maxLookAhead {
		c, err := s.read(ctx, at.tape, pos, 1)
		switch {
		case err != nil, c.lost != nil, len(c.events) > 0:
			return false
		case c.edge, behind(c.next):
			return true
		}
		pos = c.next
	}
	return false
}

// noun is what the view's id names.
func (v *View) noun() string {
	switch {
	case v.Kind != "":
		return v.Kind
	case v.Of == OfWorkflow:
		return "workflow"
	default:
		return "session"
	}
}

// lastOffset is the offset of an ended session's last event. It lies before the end's own
// record, which clients never see, or behind it if the event came late.
func lastOffset(state schema.Session, epoch uint8) int64 {
	if state.Last.Epoch == epoch {
		return state.Last.Offset
	}
	return state.EndedAt
}

// end is a tape and where its log ended when it was asked for.
type end struct {
	tape *tape.Tape
	next int64
}

// openTapes opens the tapes of a scope, all at once, in the order of their partitions.
func (h *Hub) openTapes(ctx context.Context, scope schema.Scope) ([]end, error) {
	partitions := scope.Partitions(h.past.Placement(scope.Workspace))
	slices.Sort(partitions)
	ends := make([]end, len(partitions))
	errs := make([]error, len(partitions))
	var wg sync.WaitGroup
	for i, p := range partitions[1:] {
		wg.Go(func() { ends[i+1].tape, ends[i+1].next, errs[i+1] = h.tapes.Current(ctx, p) })
	}
	ends[0].tape, ends[0].next, errs[0] = h.tapes.Current(ctx, partitions[0])
	wg.Wait()
	return ends, errors.Join(errs...)
}

// takesParam reports whether name is a query parameter of the view's streams.
func (v *View) takesParam(name string) bool {
	switch name {
	case "last_event_id", "from", "on_slow", "close", "notices", "speed":
		return true
	case "heartbeat":
		return v.ChooseBeat
	case "envelope":
		return v.Envelope != nil
	}
	return schema.IsFilterParam(name)
}

func (h *Hub) parseOptions(req *Request, q url.Values) error {
	var err error
	if req.Filter, err = h.parseFilter(q, req.Scope.Workspace); err != nil {
		return httpapi.BadParam(err)
	}
	if types := req.View.Types; types != nil {
		req.Filter.Only(types...)
	}
	onSlow, err := choice(q, "on_slow", "drop", "replay")
	if err != nil {
		return err
	}
	req.ReplayWhenSlow = onSlow == "replay"
	byDefault, other := "never", "end"
	if req.View.CloseAtEnd {
		byDefault, other = other, byDefault
	}
	closing, err := choice(q, "close", byDefault, other)
	if err != nil {
		return err
	}
	req.CloseAtEnd = closing == "end" && req.Scope.Session != ""
	notices, err := choice(q, "notices", "0", "1")
	if err != nil {
		return err
	}
	req.Notices = notices == "1"
	if req.Speed, err = parseSpeed(q); err != nil {
		return err
	}
	if req.View.Envelope != nil {
		envelope, err := choice(q, "envelope", "0", "1")
		if err != nil {
			return err
		}
		if envelope == "1" {
			req.View = req.View.Envelope
		}
	}
	req.Heartbeat = time.Duration(req.View.Beat) * h.cfg.KeepAlive
	if q.Has("heartbeat") {
		req.Heartbeat, err = parseHeartbeat(q)
	}
	return err
}

// parseFilter reads a filter; codes stand for what they do in the workspace now.
func (h *Hub) parseFilter(q url.Values, workspace string) (schema.Filter, error) {
	var types schema.TypeTable
	if h.types != nil {
		types = h.types(workspace)
	}
	return schema.ParseFilter(q, types)
}

// Bounds of speed.
const (
	minSpeed = 1
	maxSpeed = 100
)

func parseSpeed(q url.Values) (float64, error) {
	text, err := httpapi.One(q, "speed")
	if err != nil || !q.Has("speed") {
		return 0, err
	}
	speed, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(speed) || speed < minSpeed || speed > maxSpeed {
		return 0, httpapi.InvalidParameter("speed", "Parameter speed is %s; want a number from %d to %d.", schema.Quote(text), minSpeed, maxSpeed)
	}
	return speed, nil
}

// minHeartbeat is the shortest time between heartbeats that a client may choose.
const minHeartbeat = 30 * time.Second

func parseHeartbeat(q url.Values) (time.Duration, error) {
	text, err := httpapi.One(q, "heartbeat")
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.Atoi(text)
	if d := time.Duration(seconds) * time.Second; err == nil && d >= minHeartbeat && d <= maxHeartbeat {
		return d, nil
	}
	return 0, httpapi.InvalidParameter("heartbeat", "Parameter heartbeat is %s; want whole seconds, %d to %d.",
		schema.Quote(text), int(minHeartbeat.Seconds()), int(maxHeartbeat.Seconds()))
}

// choice reads a parameter with two values; the first is the default.
func choice(q url.Values, name, byDefault, other string) (string, error) {
	v, err := httpapi.One(q, name)
	switch {
	case err != nil:
		return "", err
	case !q.Has(name):
		return byDefault, nil
	case v == byDefault || v == other:
		return v, nil
	default:
		return "", httpapi.InvalidParameter(name, "Parameter %s is %s; want %s or %s.", name, schema.Quote(v), byDefault, other)
	}
}

// nodeIDLen is long enough that no two nodes of a cluster have the same id.
const nodeIDLen = 10

// newNodeID returns a random id of the process, for the ids of its streams.
func newNodeID() string { return strings.ToLower(rand.Text()[:nodeIDLen]) }

// idPrefix begins the ids of streams; maxIDLen bounds what follows it.
const (
	idPrefix = "conn_"
	ownIDLen = 13
	maxIDLen = nodeIDLen + ownIDLen
)

// newID returns the id of a new stream: idPrefix, the node's, and its own. That is random: a
// number would tell every workspace how many streams the others open.
func (h *Hub) newID() string {
	return idPrefix + h.node + strings.ToLower(rand.Text()[:ownIDLen])
}
