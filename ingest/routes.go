package ingest

import (
	"context"
	"errors"
	"strings"

	"github.com/gofiber/fiber/v2"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

// API is ingest's part of the public HTTP API.
type API struct {
	cfg      Config
	appender *Appender
	decoder  *Decoder
	bodies   *Bodies
}

// NewAPI returns the handlers that append through a.
func NewAPI(cfg Config, a *Appender) *API {
	return &API{
		cfg:      cfg,
		appender: a,
		decoder:  NewDecoder(Limits{EventBytes: cfg.MaxEventBytes, BatchEvents: cfg.MaxBatchEvents, JSONDepth: cfg.MaxJSONDepth}),
		bodies:   NewBodies(cfg),
	}
}

// Register adds the routes. What authenticates requests must stand before them.
func (a *API) Register(app fiber.Router) {
	scope := httpapi.Require(control.ScopeIngest)
	app.Post("/v1/sessions", scope, a.createSession)
	app.Post("/v1/sessions/:id/end", scope, a.endSession)
	app.Post("/v1/sessions/:id/events", scope, a.appendToSession)
	app.Post("/v1/events", scope, a.appendBatch)
}

func caller(c *fiber.Ctx) Caller {
	p := httpapi.From(c)
	return Caller{Workspace: p.Workspace, Session: p.Session, Workflow: p.Workflow}
}

// sessionParam returns the session id of the path, safe to keep.
func sessionParam(c *fiber.Ctx) (string, error) {
	id := strings.Clone(c.Params("id"))
	if err := schema.CheckID(id); err != nil {
		return "", httpapi.InvalidParameter("id", "The session id of the path %v.", err)
	}
	return id, nil
}

// appendQuery is what the query of an append may say.
type appendQuery struct {
	materialised  bool // ack=materialised
	searchHistory bool // dedupe=history
	backfill      bool // lane=backfill
}

func isAppendParam(name string) bool {
	return name == "ack" || name == "dedupe" || name == httpapi.ParamLane
}

func parseAppendQuery(c *fiber.Ctx) (q appendQuery, err error) {
	values, err := httpapi.Query(c)
	if err != nil {
		return q, err
	}
	if err := httpapi.CheckParams(values, isAppendParam); err != nil {
		return q, err
	}
	choice := func(name, normal, special string) (bool, error) {
		v, err := httpapi.One(values, name)
		switch {
		case err != nil:
			return false, err
		case v == special:
			return true, nil
		case v == normal, !values.Has(name):
			return false, nil
		}
		return false, httpapi.InvalidParameter(name, "%s is %s; want %s or %s.", name, schema.Quote(v), normal, special)
	}
	if q.materialised, err = choice("ack", "log", "materialised"); err != nil {
		return q, err
	}
	if q.searchHistory, err = choice("dedupe", "window", "history"); err != nil {
		return q, err
	}
	q.backfill, err = choice(httpapi.ParamLane, httpapi.LaneLive, httpapi.LaneBackfill)
	return q, err
}

// options are the Append's, of a path that refuses all for one bad event or does not.
func (q appendQuery) options(allOrNothing bool) Options {
	return Options{AllOrNothing: allOrNothing, SearchHistory: q.searchHistory, Backfill: q.backfill}
}

// receive reads the request's events, on the lane it asks for, and hands them to then,
// which appends and answers.
func (a *API) receive(c *fiber.Ctx, q appendQuery, session string, then func(context.Context, *Batch) error) error {
	if q.backfill {
		return a.receiveBackfill(c, session, then)
	}
	batch, _, err := a.decode(c.UserContext(), c, session)
	if err != nil {
		return a.refused(err)
	}
	return then(c.UserContext(), batch)
}

func (a *API) receiveBackfill(c *fiber.Ctx, session string, then func(context.Context, *Batch) error) error {
	lane := a.appender.backfill
	leave, refused := lane.enter()
	if refused != nil {
		return a.refused(refused)
	}
	defer leave()
	ctx, cancel := context.WithTimeout(c.UserContext(), a.cfg.BackfillTimeout)
	defer cancel()
	var batch *Batch
	var err error
	done, refused := lane.decode(ctx, func() (bytes int) {
		batch, bytes, err = a.decode(ctx, c, session)
		return bytes
	})
	if refused != nil {
		return a.refused(refused)
	}
	defer done()
	events := 1 // what cannot be read costs something too
	if err == nil {
		events = len(batch.Items)
	}
	if over := httpapi.Charge(c, httpapi.ClassBackfill, events); err == nil {
		err = over
	}
	if err != nil {
		return a.refused(err)
	}
	return then(ctx, batch)
}

// decode reads the request's body into events, which keep so many bytes in memory, about.
// session is empty for the endpoint of many sessions.
func (a *API) decode(ctx context.Context, c *fiber.Ctx, session string) (batch *Batch, bytes int, err error) {
	attributes := cloudEventHeaders(c)
	structured := strings.HasPrefix(strings.ToLower(c.Get(fiber.HeaderContentType)), "application/cloudevents")
	format := FormatJSON
	if attributes == nil || structured {
		var err error
		if format, err = ParseFormat(c.Get(fiber.HeaderContentType)); err != nil {
			return nil, 0, acceptPost(c, err)
		}
	}
	// The body is copied: events outlive the request if Kafka takes its time.
	body, err := a.bodies.Decode(ctx, c.Get(fiber.HeaderContentEncoding), c.Request().Body())
	if err != nil {
		return nil, 0, acceptPost(c, err)
	}
	if attributes != nil && !structured {
		batch, err = a.decoder.DecodeCloudEventHeaders(attributes, strings.Clone(c.Get(fiber.HeaderContentType)), body, session)
	} else {
		batch, err = a.decoder.Decode(format, body, session)
	}
	return batch, len(body), err
}

// acceptPost tells a client whose body we cannot read what it could send (RFC 9110,
// 12.5.3, and RFC 5789, 3.1).
func acceptPost(c *fiber.Ctx, err error) error {
	if e, ok := errors.AsType[*httpapi.Error](err); ok && e.Status == 415 {
		c.Set(fiber.HeaderAcceptEncoding, "gzip, zstd")
		c.Set("Accept-Post", "application/json, application/x-ndjson, application/cloudevents+json, application/cloudevents-batch+json")
	}
	return err
}

// cloudEventHeaders returns the ce- headers of a CloudEvent in binary mode, nil if the
// request is none.
func cloudEventHeaders(c *fiber.Ctx) map[string]string {
	const prefix = "ce-"
	if len(c.Request().Header.Peek("Ce-Specversion")) == 0 {
		return nil
	}
	attributes := make(map[string]string)
	c.Request().Header.VisitAll(func(k, v []byte) {
		if len(k) > len(prefix) && strings.EqualFold(string(k[:len(prefix)]), prefix) {
			attributes[strings.ToLower(string(k[len(prefix):]))] = string(v)
		}
	})
	return attributes
}

// appendToSession is POST /v1/sessions/{id}/events: all of the events or none.
func (a *API) appendToSession(c *fiber.Ctx) error {
	a.appender.metrics.appends.WithLabelValues("session").Inc()
	session, err := sessionParam(c)
	if err != nil {
		return a.refused(err)
	}
	q, err := parseAppendQuery(c)
	if err != nil {
		return a.refused(err)
	}
	who := caller(c)
	if who.Session != "" && who.Session != session {
		return a.refused(notFound("id"))
	}
	return a.receive(c, q, session, func(ctx context.Context, batch *Batch) error {
		if err := batch.FirstError(); err != nil {
			return a.refused(err)
		}
		results, err := a.appender.Append(ctx, who, batch.Items, q.options(true))
		if err != nil {
			return a.refused(err)
		}
		if worst := worstError(results); worst != nil {
			return partial(worst, results)
		}
		return a.answer(c, q, results)
	})
}

// appendBatch is POST /v1/events: each event for itself.
func (a *API) appendBatch(c *fiber.Ctx) error {
	a.appender.metrics.appends.WithLabelValues("batch").Inc()
	q, err := parseAppendQuery(c)
	if err != nil {
		return a.refused(err)
	}
	return a.receive(c, q, "", func(ctx context.Context, batch *Batch) error {
		if batch.Single && batch.Items[0].Err != nil {
			return a.refused(batch.Items[0].Err)
		}
		results, err := a.appender.Append(ctx, caller(c), batch.Items, q.options(false))
		if err != nil {
			return a.refused(err)
		}
		// One event's error, and an outage that spares none, are the request's own.
		if worst := worstError(results); worst != nil && !anyAccepted(results) && (batch.Single || allUnavailable(results)) {
			if batch.Single {
				return worst
			}
			return partial(worst, results)
		}
		return a.answer(c, q, results)
	})
}

// refused counts a request that was refused whole.
func (a *API) refused(err error) error {
	if e, ok := errors.AsType[*httpapi.Error](err); ok {
		a.appender.metrics.refused.WithLabelValues(e.Code).Inc()
	}
	return err
}

// worstError returns the error with the highest status, nil if there is none.
func worstError(results []Result) (worst *httpapi.Error) {
	for i := range results {
		if err := results[i].Err; err != nil && (worst == nil || err.Status > worst.Status) {
			worst = err
		}
	}
	return worst
}

func anyAccepted(results []Result) bool {
	for i := range results {
		if results[i].Err == nil {
			return true
		}
	}
	return false
}

func allUnavailable(results []Result) bool {
	for i := range results {
		if results[i].Err == nil || results[i].Err.Status != 503 {
			return false
		}
	}
	return true
}

// partial is the answer when Kafka has taken only a part of a request, or none of it:
// details.results says what became of each event. Retrying the same request with the
// same message ids completes it.
func partial(worst *httpapi.Error, results []Result) error {
	e := *worst // the original may be shared by several results
	e.Details = map[string]any{"results": rawResults(results)}
	for k, v := range worst.Details {
		e.Details[k] = v
	}
	return &e
}

// answer writes the results: 200, 202 if ClickHouse has not got them in time, 207 if
// some failed.
func (a *API) answer(c *fiber.Ctx, q appendQuery, results []Result) error {
	status := fiber.StatusOK
	if q.materialised && !a.materialised(c.UserContext(), results) {
		status = fiber.StatusAccepted
	}
	if worstError(results) != nil {
		status = fiber.StatusMultiStatus
	}
	c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSONCharsetUTF8)
	c.Status(status).Context().SetBody(appendAnswer(nil, results))
	return nil
}

// materialised waits until ClickHouse holds all of the results, and reports whether it
// does.
func (a *API) materialised(ctx context.Context, results []Result) bool {
	if a.appender.history == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.MaterialisedTimeout)
	defer cancel()
	next := make(map[uint16]int64)
	for i := range results {
		// An id of an earlier epoch is of a topic that is gone: it is materialised or lost.
		if id := results[i].ID; results[i].Err == nil && id.Epoch == a.appender.layout.Epoch() {
			next[id.Partition] = max(next[id.Partition], id.Offset+1)
		}
	}
	for partition, n := range next {
		if err := a.appender.history.WaitMaterialised(ctx, partition, n); err != nil {
			return false
		}
	}
	return true
}
