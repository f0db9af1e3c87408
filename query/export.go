package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// ExportDeps are what exports stand on. All of them are their maker's to close.
type ExportDeps struct {
	Conn       driver.Conn // to ClickHouse over HTTP, for exports alone; nil: they are answered 501
	History    *History    // whose breaker exports share
	Tapes      Tapes
	Log        Log
	Committed  CommittedWait
	Placement  func(workspace string) schema.Placement
	Types      func(workspace string) schema.TypeTable // codes of the workspace's event types; nil: the built-in ones
	Erased     Erasures                                // what is not shown; nil: all is
	Epoch      uint8                                   // of the log
	Logger     *slog.Logger
	Metrics    *Metrics              // of questions to ClickHouse
	Registerer prometheus.Registerer // of the metrics of exports; nil: none
}

// CommittedWait is Committed whose offsets can be waited for. *Watermarks is one.
type CommittedWait interface {
	Committed
	// Wait blocks until the partition's offset is at least next, or returns ctx's cause.
	Wait(ctx context.Context, partition uint16, next int64) error
}

// Exports answers the paths of exports. It is safe for concurrent use.
type Exports struct {
	cfg        ExportConfig
	deps       ExportDeps
	conn       driver.Conn
	breaker    *breaker
	queries    *Metrics
	metrics    *exportMetrics
	formats    []*exportFormat
	pool       sync.Pool     // of *[]byte with room for pieceBytes
	windowRows int64         // of the windows that small ones are joined to
	ahead      chan struct{} // Config.ReadAhead; one stands in it for each statement read ahead

	stop    context.CancelCauseFunc
	life    context.Context // ends with Close
	mu      sync.Mutex      // guards running and closed
	running map[string]int  // exports by workspace
	total   int
	closed  bool
	done    sync.WaitGroup // of exports; added to under mu while not closed
}

// NewExports returns the paths over deps. Close ends what they begin.
func NewExports(cfg ExportConfig, deps ExportDeps) *Exports {
	x := &Exports{
		cfg: cfg, deps: deps, conn: deps.Conn, breaker: deps.History.breaker, queries: deps.Metrics, metrics: newExportMetrics(deps.Registerer),
		formats: exportFormats(), windowRows: exportWindow, ahead: make(chan struct{}, cfg.ReadAhead), running: make(map[string]int),
	}
	x.pool.New = func() any { b := make([]byte, pieceBytes); return &b }
	x.life, x.stop = context.WithCancelCause(context.Background())
	return x
}

// errStopping ends exports of a node that stops.
var errStopping = errors.New("the node is stopping")

// Close cuts off the exports that run, and waits for their end.
func (x *Exports) Close(ctx context.Context) error {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.stop(errStopping)
	ended := make(chan struct{})
	go func() { // ends with the exports, which all end by themselves
		x.done.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end exports: %w", context.Cause(ctx))
	}
}

// Routes adds the paths to app, which must authenticate before them.
func (x *Exports) Routes(app fiber.Router) {
	read := httpapi.Require(control.ScopeRead)
	app.Get("/v1/sessions/:id/export", read, x.exportSession)
	app.Get("/v1/export", read, x.exportWorkspace)
}

// exportSession answers GET /v1/sessions/{id}/export.
func (x *Exports) exportSession(c *fiber.Ctx) error {
	who, session := httpapi.From(c), string([]byte(c.Params("id"))) // the router's string dies with the handler
	return x.serve(c, schema.Scope{Workspace: who.Workspace, Session: session}, isExportParam)
}

// exportWorkspace answers GET /v1/export.
func (x *Exports) exportWorkspace(c *fiber.Ctx) error {
	return x.serve(c, schema.Scope{Workspace: httpapi.From(c).Workspace}, isWorkspaceExportParam)
}

func (x *Exports) serve(c *fiber.Ctx, scope schema.Scope, allowed func(string) bool) error {
	who := httpapi.From(c)
	q, err := httpapi.Query(c)
	if err != nil {
		return err
	}
	if err := httpapi.CheckParams(q, allowed); err != nil {
		return err
	}
	var types schema.TypeTable
	if x.deps.Types != nil {
		types = x.deps.Types(who.Workspace)
	}
	req, err := x.parseExport(q, c.Get(fiber.HeaderAcceptEncoding), types)
	if err != nil {
		return err
	}
	switch {
	case x.conn == nil:
		return httpapi.Errorf(501, "export_unsupported", "This node has no HTTP connection to ClickHouse, which exports need (setting query.export.dsn).")
	case !c.Request().Header.IsHTTP11():
		return httpapi.Errorf(400, httpapi.CodeBadRequest, "An export needs HTTP/1.1: without it a client could not tell a cut body from a whole one.")
	case scope.Session != "" && !mayExist(who, scope.Session):
		return errNoSession()
	case req.workflow != "" && who.Workflow != "" && req.workflow != who.Workflow:
		return httpapi.NotFound("workflow")
	}
	whole := scope.Session == ""
	if whole {
		scope.Session, scope.Workflow = who.Session, who.Workflow
		if req.workflow != "" {
			scope.Workflow = req.workflow
		}
	}
	if c.Method() == fiber.MethodHead {
		c.Set(fiber.HeaderContentType, req.format.contentType)
		return nil
	}
	release, err := x.admit(who.Workspace, req.format.name)
	if err != nil {
		return err
	}
	o, err := x.open(c.UserContext(), who, scope, &req, whole)
	if err != nil {
		release()
		return historyError(err)
	}
	o.release, o.requestID = release, httpapi.RequestID(c)
	o.head = exportHead(c, &req, o)
	x.handOver(c, o)
	return nil
}

// retryExport is when to come back for a place.
const retryExport = 5 * time.Second

// admit takes a place for an export of the workspace, which release gives back, once.
func (x *Exports) admit(workspace, format string) (release func(), err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	full := func(of string, limit int) error {
		x.metrics.exports.WithLabelValues(format, exportRefused).Inc()
		return httpapi.Errorf(429, "export_limit_exceeded", "As many exports run as may, %d of the %s.", limit, of).
			WithDetail("of", of).WithDetail("limit", limit).WithRetryAfter(retryExport)
	}
	switch {
	case x.closed:
		return nil, httpapi.ShuttingDown()
	case x.running[workspace] >= x.cfg.MaxPerWorkspace:
		return nil, full("workspace", x.cfg.MaxPerWorkspace)
	case x.total >= x.cfg.MaxRunning:
		return nil, full("node", x.cfg.MaxRunning)
	}
	x.running[workspace]++
	x.total++
	x.done.Add(1)
	x.metrics.running.Inc()
	return sync.OnceFunc(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.running[workspace]--; x.running[workspace] == 0 {
			delete(x.running, workspace)
		}
		x.total--
		x.metrics.running.Dec()
		x.done.Done()
	}), nil
}

// opening is an export that is ready to be sent.
type opening struct {
	req     exportRequest
	plan    *exportPlan
	cursor  schema.Cursor  // where it ends
	next    schema.EventID // where the next part begins; zero: this is the last
	behind  int64
	began   time.Time
	head    []byte
	release func()

	requestID string
}

// open finds out what the export holds. Its error is for historyError.
func (x *Exports) open(ctx context.Context, who control.Principal, scope schema.Scope, req *exportRequest, whole bool) (*opening, error) {
	o := &opening{req: *req, began: time.Now()}
	partitions := slices.Sorted(slices.Values(scope.Partitions(x.deps.Placement(scope.Workspace))))
	ends, err := x.ends(ctx, partitions)
	if err != nil {
		return nil, err
	}
	if !whole {
		if err := x.checkSession(ctx, who, scope.Session, partitions[0], ends[partitions[0]]); err != nil {
			return nil, err
		}
	}
	b := exportBounds{req: &o.req, epoch: x.deps.Epoch, session: scope.Session != ""}
	if err := b.check(partitions, ends); err != nil {
		return nil, err
	}
	q := &exportQuery{scope: scope, filter: &o.req.filter, erased: x.deps.Erased}
	past, err := x.pastLegs(ctx, q, x.deps.Epoch)
	if err != nil {
		return nil, err
	}
	for _, l := range past {
		q.legs = append(q.legs, b.leg(l))
	}
	var reached []schema.NextOffset
	wait, cancel := context.WithTimeout(ctx, x.cfg.SyncTimeout)
	defer cancel()
	for _, p := range partitions {
		l := b.leg(exportLeg{epoch: x.deps.Epoch, partition: p, to: ends[p]})
		committed := x.deps.Committed.Get(p)
		if committed < l.to {
			_ = x.deps.Committed.Wait(wait, p, l.to) // how far it has come is what counts
			committed = x.deps.Committed.Get(p)
		}
		if committed < l.to {
			if !o.req.end.IsZero() {
				return nil, &UnavailableError{RetryAfter: retryHistory, Cause: errBehind}
			}
			o.behind += l.to - committed
			l.to = committed
		}
		q.legs = append(q.legs, l)
		reached = append(reached, schema.NextOffset{Partition: p, Offset: l.to})
	}
	if o.cursor = o.req.end; o.cursor.IsZero() {
		o.cursor = schema.CursorAt(x.deps.Epoch, reached, o.began.UnixMilli())
	}
	o.cursor.Filter = 0
	if !o.req.after.IsZero() {
		q.beginAfter(o.req.after.Position)
	}
	q.dropEmpty()
	if o.req.maxRows > 0 {
		if o.next, err = x.cut(ctx, q, o.req.maxRows); err != nil {
			return nil, err
		}
	}
	o.plan = x.plan(q)
	return o, o.plan.prime(ctx) // so that ClickHouse's absence is an answer, not a cut body
}

// errBehind reports that ClickHouse does not hold yet what an export was to end with.
var errBehind = errors.New("clickhouse has not reached the end of the export")

// ends returns the high watermarks of partitions, none older than the call.
func (x *Exports) ends(ctx context.Context, partitions []uint16) (map[uint16]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, exportLogTimeout)
	defer cancel()
	ends := make(map[uint16]int64, len(partitions))
	for _, p := range partitions {
		end, err := x.deps.Log.HighWatermark(ctx, p)
		if err != nil {
			return nil, httpapi.LogUnavailable(err)
		}
		ends[p] = end
	}
	return ends, nil
}

// exportLogTimeout bounds asking Kafka for the ends of a workspace's partitions.
const exportLogTimeout = 5 * time.Second

// checkSession returns an error unless the session exists and the caller may see it.
func (x *Exports) checkSession(ctx context.Context, who control.Principal, session string, partition uint16, end int64) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	tape, err := x.deps.Tapes.Open(ctx, partition)
	if err == nil {
		err = tape.WaitFor(ctx, end)
	}
	if err != nil {
		return httpapi.LogUnavailable(fmt.Errorf("open tape of partition %d: %w", partition, err))
	}
	state, err := tape.Session(ctx, who.Workspace, session)
	if err != nil {
		return err
	}
	if !state.Exists() || !who.MaySee(session, state.Workflow) {
		return errNoSession()
	}
	return nil
}

// exportBounds narrows legs to what a request asks for.
type exportBounds struct {
	req     *exportRequest
	epoch   uint8
	session bool
}

// check returns an error for a position that cannot be one of this export's.
func (b *exportBounds) check(partitions []uint16, ends map[uint16]int64) error {
	for _, at := range []struct {
		name string
		c    schema.Cursor
	}{{"cursor", b.req.cursor}, {"end", b.req.end}, {"after", schema.Cursor{ID: b.req.after}}} {
		if at.c.IsZero() {
			continue
		}
		if at.c.ID.Epoch > b.epoch {
			return invalidPosition(at.name, "Parameter %s is of a log that does not exist yet.", at.name)
		}
		if at.c.ID.Epoch < b.epoch {
			continue
		}
		for _, p := range partitions {
			next, ok := at.c.Next(p)
			switch {
			case ok && next > ends[p]:
				return invalidPosition(at.name, "Parameter %s lies beyond the end of the log.", at.name)
			case !ok && (at.name == "end" || b.session && at.name == "cursor"):
				return invalidPosition(at.name, "Parameter %s says nothing about partition %d of the log, which this export reads.", at.name, p)
			}
		}
	}
	return nil
}

// leg narrows a leg by cursor and end.
func (b *exportBounds) leg(l exportLeg) exportLeg {
	if c := b.req.cursor; !c.IsZero() && c.ID.Epoch >= l.epoch {
		next, ok := c.Next(l.partition)
		switch {
		case c.ID.Epoch > l.epoch:
			l.from = l.to
		case ok:
			l.from = max(l.from, next)
		default: // an event's own id: elsewhere what was appended then or later
			l.sinceMs = c.ID.TimeMs
		}
	}
	if c := b.req.end; !c.IsZero() && c.ID.Epoch <= l.epoch {
		next, _ := c.Next(l.partition)
		if c.ID.Epoch < l.epoch {
			next = 0
		}
		l.to = min(l.to, next)
	}
	l.from = min(l.from, l.to)
	return l
}

// exportHead is the response before the body.
func exportHead(c *fiber.Ctx, req *exportRequest, o *opening) []byte {
	b := []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nCache-Control: no-store\r\n")
	line := func(name, value string) {
		b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
	}
	line(fiber.HeaderContentType, req.format.contentType)
	if req.format.coded {
		line(fiber.HeaderVary, fiber.HeaderAcceptEncoding)
	}
	if req.coding != "" {
		line(fiber.HeaderContentEncoding, req.coding)
	}
	line(httpapi.HeaderExportCursor, o.cursor.String())
	if !o.next.IsZero() {
		line(httpapi.HeaderExportNext, o.next.String())
	}
	if o.behind > 0 {
		line(httpapi.HeaderExportBehind, strconv.FormatInt(o.behind, 10))
	}
	line(fiber.HeaderDate, o.began.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
	b = httpapi.AppendHijackHeaders(b, c)
	return append(b, "\r\n"...)
}

// takeOverTimeout is how long an export waits for its connection, which the server hands
// over as soon as earlier answers on it are flushed. It drops a hijack without a word if
// the connection breaks first.
const takeOverTimeout = 3 * time.Second

// handOver sends the export once the server has handed over the connection.
func (x *Exports) handOver(c *fiber.Ctx, o *opening) {
	lost := time.AfterFunc(takeOverTimeout, o.release)
	c.Context().HijackSetNoResponse(true)
	c.Context().Hijack(func(nc net.Conn) {
		defer func() { _ = nc.Close() }() // the end of a body that was cut
		if !lost.Stop() {
			return
		}
		defer o.release()
		x.send(nc, o)
	})
}
