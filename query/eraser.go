package query

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/schema"
)

// Bounds of the eraser's work.
const (
	// eraserInterval is between two looks at what is pending, and the most by which nodes
	// that look at the same time are apart.
	eraserInterval = time.Second

	// eraserDelay is how old an erasure is when it is carried out: every node has heard of
	// it by then, and those that follow each other share one mutation.
	eraserDelay = 2 * time.Second

	// maxErasedAtOnce bounds the sessions of one statement. Over HTTP their names travel in
	// the URL: those of the longest stay below 100 KB.
	maxErasedAtOnce = 500

	// maxMutations bounds those that one round begins. ClickHouse does all that wait for a
	// part at once; it slows inserts down at 500.
	maxMutations = 50

	// eraserRecheck is how often what is done is looked at again: a table put back from a
	// backup holds again what was erased of it.
	eraserRecheck = time.Hour

	// keepErasures is how long an erasure stays listed at least.
	keepErasures = 24 * time.Hour

	// eraserTimeout bounds one of its statements. A mutation is not waited for in it.
	eraserTimeout = time.Minute

	maxEraserPause = time.Minute // after failures
)

// ErasureStore is where erasures are remembered. *control.Store is one.
type ErasureStore interface {
	// ErasedWorkspaces returns the workspaces that something is erased of, or is pending in.
	ErasedWorkspaces(pending bool) []string
	// Erasures returns those of a workspace.
	Erasures(workspace string) []schema.Erasure
	// PendingErasures returns those that are not done.
	PendingErasures(workspace string) []schema.Erasure
	// FinishErasure notes that one is done.
	FinishErasure(ctx context.Context, id string) error
	// ForgetErasure removes the memory of one.
	ForgetErasure(ctx context.Context, id string) error
}

// EraserDeps are what an Eraser works with. Metrics may be nil.
type EraserDeps struct {
	Conn       driver.Conn
	Store      ErasureStore
	Log        Log
	Committed  Committed
	Partitions int   // of the log
	Epoch      uint8 // of the log
	Logger     *slog.Logger
	Metrics    *EraserMetrics
	Now        func() time.Time // nil: time.Now
}

// Eraser takes what was erased out of ClickHouse: it makes every row of it a stub, of
// which only the workspace, the place in the log and the time are left
// (schema.TypeErased), so that table and log can still be compared by counting. An
// erasure is done once all records below it are rows and none of them is anything but a
// stub; ClickHouse deletes the files that held the old rows within old_parts_lifetime
// after that (8 minutes unless set otherwise).
//
// Any number of nodes may run one. Each step can be repeated and is decided by what the
// table holds, so a crash anywhere costs nothing; before it begins mutations an Eraser
// looks whether any are under way, so that nodes hardly ever do the same work.
type Eraser struct {
	EraserDeps

	// targets are what the committed offsets must reach before an erasure is done, by its
	// id and partition. Of a workspace they are the ends that the partitions had when it
	// was first looked at.
	targets map[string]map[uint16]int64

	rechecked time.Time
}

// NewEraser returns an Eraser; Run starts it.
func NewEraser(deps EraserDeps) *Eraser {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Metrics == nil {
		deps.Metrics = NewEraserMetrics(nil)
	}
	return &Eraser{EraserDeps: deps, targets: make(map[string]map[uint16]int64)}
}

// Run works until ctx ends and returns nil. Kafka or ClickHouse being away is no reason to
// return: what is pending waits.
func (e *Eraser) Run(ctx context.Context) error {
	e.rechecked = e.Now().Add(-eraserRecheck + time.Duration(rand.Int64N(int64(time.Minute)))) // soon after the start
	failures := 0
	for {
		pause := eraserInterval/2 + rand.N(eraserInterval/2)
		err := e.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			e.Metrics.failures.Inc()
			if failures == 0 {
				e.Logger.Warn("erasures cannot be carried out now", "error", err)
			}
			failures++
			pause = min(pause<<min(failures, 8), maxEraserPause)
		case failures > 0:
			failures = 0
			e.Logger.Info("erasures are carried out again")
		}
		if err := pauseFor(ctx, pause); err != nil {
			return nil //nolint:nilerr // it was told to stop
		}
	}
}

// round does once what is due.
func (e *Eraser) round(ctx context.Context) error {
	e.observe()
	recheck := e.Now().Sub(e.rechecked) >= eraserRecheck
	pending := e.Store.ErasedWorkspaces(true)
	if len(pending) == 0 && !recheck {
		return nil
	}
	busy, err := e.busy(ctx)
	if err != nil || busy {
		return err
	}
	room := maxMutations
	for _, workspace := range pending {
		due := slices.DeleteFunc(e.Store.PendingErasures(workspace), func(x schema.Erasure) bool {
			return e.Now().UnixMilli()-x.AtMs < eraserDelay.Milliseconds()
		})
		if room, err = e.carryOut(ctx, workspace, due, room); err != nil || room == 0 {
			return err
		}
	}
	if !recheck || room < maxMutations {
		return nil
	}
	for _, workspace := range e.Store.ErasedWorkspaces(false) {
		done := slices.DeleteFunc(e.Store.Erasures(workspace), func(x schema.Erasure) bool { return !x.Done() })
		if room, err = e.carryOut(ctx, workspace, done, room); err != nil || room == 0 {
			return err
		}
		if err := e.forget(ctx, done); err != nil {
			return err
		}
	}
	if room == maxMutations { // otherwise once more, when they are done
		e.rechecked = e.Now()
	}
	return nil
}

// carryOut begins mutations, at most room, for the erasures of one workspace of which there
// are rows, and returns what room is left; those without rows are done. Of erasures that
// were done before only the rows are looked for.
func (e *Eraser) carryOut(ctx context.Context, workspace string, all []schema.Erasure, room int) (int, error) {
	for some := range slices.Chunk(all, maxErasedAtOnce) {
		// Before the rows are counted: then none comes after that.
		copied := make([]bool, len(some))
		for i := range some {
			var err error
			if copied[i], err = e.copied(ctx, &some[i]); err != nil {
				return room, err
			}
		}
		left, err := e.rows(ctx, workspace, some)
		if err != nil {
			return room, err
		}
		var rows uint64
		for i := range some {
			x := &some[i]
			n := left[x.Session]
			if x.Session == "" {
				n = sum(left)
			}
			rows += n
			if n > 0 || !copied[i] || x.Done() {
				continue
			}
			if err := e.finish(ctx, x); err != nil {
				return room, err
			}
		}
		if rows == 0 {
			continue
		}
		if some[0].Done() {
			e.Logger.Warn("the table holds again what was erased of it; erasing it once more", "workspace", workspace, "rows", rows)
		}
		if err := e.mutate(ctx, workspace, some); err != nil {
			return room, err
		}
		if room--; room == 0 {
			break
		}
	}
	return room, nil
}

func sum(counts map[string]uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// finish notes that x is done.
func (e *Eraser) finish(ctx context.Context, x *schema.Erasure) error {
	if err := e.Store.FinishErasure(ctx, x.ID); err != nil {
		return fmt.Errorf("finish erasure %s: %w", x.ID, err)
	}
	delete(e.targets, x.ID)
	e.Metrics.done.Inc()
	e.Logger.Info("erasure is done", "erasure", x.ID)
	return nil
}

// copied reports whether all records that x takes away are rows.
func (e *Eraser) copied(ctx context.Context, x *schema.Erasure) (bool, error) {
	if x.Done() {
		return true, nil
	}
	targets := e.targets[x.ID]
	if targets == nil {
		targets = make(map[uint16]int64)
		switch {
		case x.Session != "" && x.Below.Epoch == e.Epoch:
			targets[x.Below.Partition] = x.Below.Offset
		case x.Session == "":
			for p := range e.Partitions {
				end, err := e.Log.HighWatermark(ctx, uint16(p))
				if err != nil {
					return false, err
				}
				targets[uint16(p)] = end
			}
		}
		e.targets[x.ID] = targets
	}
	for partition, next := range targets {
		if e.Committed.Get(partition) < next {
			return false, nil
		}
	}
	return true, nil
}

// erasedRows selects the rows of erasures of one workspace that are not stubs: stubs name
// no session.
func erasedRows(workspace string, of []schema.Erasure) statement {
	var s statement
	s.and("workspace_id = %s", s.bind("String", workspace))
	sessions, ends, whole := erasedSessions(of)
	if whole {
		s.and("session_id != ''")
	} else {
		names := s.bind("Array(String)", sessions)
		s.and("session_id IN %s", names)
		s.and("%s < transform(session_id, %s, %s, toUInt64(0))", packedPosition, names, s.bind("Array(UInt64)", ends))
	}
	return s
}

// rows counts, by session, the rows that erasures have left to take away.
func (e *Eraser) rows(ctx context.Context, workspace string, of []schema.Erasure) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, eraserTimeout)
	defer cancel()
	s := erasedRows(workspace, of)
	rows, err := e.Conn.Query(ctx, "SELECT session_id, count() FROM "+schema.TableEvents+" WHERE "+s.condition()+
		" GROUP BY session_id", s.args...)
	if err != nil {
		return nil, fmt.Errorf("count erased rows: %w", err)
	}
	defer rows.Close()
	left := make(map[string]uint64)
	for rows.Next() {
		var session string
		var n uint64
		if err := rows.Scan(&session, &n); err != nil {
			return nil, fmt.Errorf("count erased rows: %w", err)
		}
		left[session] = n
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count erased rows: %w", err)
	}
	return left, nil
}

// mutate has ClickHouse make stubs of what erasures have left to take away. It returns when
// the server has taken that on; the parts that hold such rows are then written anew, one
// after the other.
func (e *Eraser) mutate(ctx context.Context, workspace string, of []schema.Erasure) error {
	ctx, cancel := context.WithTimeout(ctx, eraserTimeout)
	defer cancel()
	s := erasedRows(workspace, of)
	err := e.Conn.Exec(ctx, "ALTER TABLE "+schema.TableEvents+" UPDATE type = '"+schema.TypeErased+"', session_id = '', payload = '', metadata = map(),"+
		" message_id = '', workflow_id = '', frame_id = '', content_type = '', client_ts = NULL, t_ms = 0, confidence = NULL"+
		" WHERE "+s.condition()+" SETTINGS mutations_sync = 0", s.args...)
	if err != nil {
		return fmt.Errorf("erase rows: %w", err)
	}
	e.Metrics.mutations.Inc()
	e.Logger.Info("erasing rows", "workspace", workspace, "erasures", len(of))
	return nil
}

// busy reports whether the table is being changed already, by a mutation of ours or by a
// rebuild, whose copy a mutation might miss.
func (e *Eraser) busy(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, eraserTimeout)
	defer cancel()
	var mutations, rebuilds uint64
	var failure string
	err := e.Conn.QueryRow(ctx, "SELECT count(), max(latest_fail_reason) FROM system.mutations WHERE database = currentDatabase()"+
		" AND table = '"+schema.TableEvents+"' AND NOT is_done AND position(command, '"+schema.TypeErased+"') > 0").Scan(&mutations, &failure)
	if err == nil {
		err = e.Conn.QueryRow(ctx, "SELECT count() FROM system.tables WHERE database = currentDatabase()"+
			" AND startsWith(name, '"+schema.TableEvents+schema.NextSuffix+"')").Scan(&rebuilds)
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("look for mutations: %w", err)
	case failure != "":
		return true, fmt.Errorf("mutation of erased rows: %s", failure)
	default:
		return mutations+rebuilds > 0, nil
	}
}

// forget forgets those of done erasures that nothing can bring back: Kafka no longer holds
// what they took away.
func (e *Eraser) forget(ctx context.Context, done []schema.Erasure) error {
	starts := make(map[uint16]int64)
	for i := range done {
		x := &done[i]
		if x.Session == "" || e.Now().UnixMilli()-x.DoneMs < keepErasures.Milliseconds() {
			continue
		}
		if x.Below.Epoch == e.Epoch {
			p := x.Below.Partition
			if _, ok := starts[p]; !ok {
				start, _, err := e.Log.Bounds(ctx, p)
				if err != nil {
					return err
				}
				starts[p] = start
			}
			if starts[p] < x.Below.Offset {
				continue
			}
		}
		if err := e.Store.ForgetErasure(ctx, x.ID); err != nil {
			return fmt.Errorf("forget erasure %s: %w", x.ID, err)
		}
	}
	return nil
}

// observe sets the gauges.
func (e *Eraser) observe() {
	pending, oldest := 0, int64(0)
	known := make(map[string]bool)
	for _, workspace := range e.Store.ErasedWorkspaces(true) {
		for _, x := range e.Store.PendingErasures(workspace) {
			pending++
			known[x.ID] = true
			if oldest == 0 || x.AtMs < oldest {
				oldest = x.AtMs
			}
		}
	}
	maps.DeleteFunc(e.targets, func(id string, _ map[uint16]int64) bool { return !known[id] }) // done by another node
	e.Metrics.pending.Set(float64(pending))
	age := 0.0
	if pending > 0 {
		age = max(0, e.Now().Sub(time.UnixMilli(oldest)).Seconds())
	}
	e.Metrics.oldest.Set(age)
}

// EraserMetrics counts what Erasers do. Create it with NewEraserMetrics.
type EraserMetrics struct {
	pending, oldest           prometheus.Gauge
	done, mutations, failures prometheus.Counter
}

// NewEraserMetrics returns the metrics, registered with reg unless that is nil.
func NewEraserMetrics(reg prometheus.Registerer) *EraserMetrics {
	m := &EraserMetrics{
		pending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_erasures_pending", Help: "Erasures of which ClickHouse may still hold rows.",
		}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "playhead_erasures_pending_seconds", Help: "Age of the oldest pending erasure; 0 if none is pending.",
		}),
		done: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_erasures_done_total", Help: "Erasures that this node found to be done.",
		}),
		mutations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_erasure_mutations_total", Help: "Mutations that this node began to erase rows.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "playhead_erasure_failures_total", Help: "Times that erasures could not be carried out, to be tried again.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.pending, m.oldest, m.done, m.mutations, m.failures)
	}
	return m
}
