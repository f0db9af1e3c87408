package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/ingest"
	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/query"
	"github.com/playhead-dev/playhead/query/materializer"
	"github.com/playhead-dev/playhead/schema"
	"github.com/playhead-dev/playhead/streamer"
	"github.com/playhead-dev/playhead/streamer/tape"
)

// This file is where the roles meet: each asks for what it needs by an interface of its
// own, and gets it here.

// placement says where a workspace's sessions lie. A workspace that nobody has made gets
// the default, so that every reader judges a foreign record alike.
func (n *node) placement(workspace string) schema.Placement {
	if w, ok := n.control.Workspace(workspace); ok {
		return w.Placement(n.log.Partitions())
	}
	return schema.Placement{Partitions: n.log.Partitions(), Shards: schema.DefaultShards}
}

// followWatermarks keeps n.watermarks at the materialiser's committed offsets.
func (n *node) followWatermarks() error {
	opts, err := n.cfg.Kafka.Options()
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("watermarks: %w", err)
	}
	n.onStop("watermarks client", func(context.Context) error { client.Close(); return nil })
	n.health.Note("history", incompleteHistory(materializer.NewDesk(kadm.NewClient(client))))
	committed := materializer.Committed(kadm.NewClient(client), n.control.Epoch())
	offsets, err := committed(context.Background())
	if err != nil {
		n.logger.Warn("committed offsets of the materialiser are unknown", "error", err)
	}
	for p, next := range offsets {
		n.watermarks.Set(p, next)
	}
	n.background("watermarks", func(ctx context.Context) error {
		return n.watermarks.Run(ctx, committed, n.logger)
	})
	return nil
}

// incompleteHistory tells which partitions' rows are being made anew: pages may lack them.
func incompleteHistory(desk *materializer.Desk) func(context.Context) string {
	return func(ctx context.Context) string {
		states, err := desk.States(ctx)
		if err != nil {
			return "" // the check of kafka tells
		}
		var notes []string
		for _, p := range slices.Sorted(maps.Keys(states)) {
			if b := states[p].Current; b.Incomplete() {
				notes = append(notes, fmt.Sprintf("partition %d is being rebuilt: offset %d of %d to %d", p, b.Next, b.Start, b.End))
			}
		}
		return strings.Join(notes, "; ")
	}
}

// materialize runs the materialiser until ctx ends.
func (n *node) materialize(ctx context.Context) error {
	opts, err := n.cfg.Kafka.Options()
	if err != nil {
		return err
	}
	// A pool of its own: inserts must not wait behind pages, nor pages behind inserts.
	pool := n.cfg.ClickHouse
	pool.MaxOpenConns = n.cfg.Materializer.Concurrency + materializerSpareConns
	pool.MaxIdleConns = pool.MaxOpenConns
	conn, err := query.Open(ctx, pool)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is in flight after Run
	m, err := materializer.New(n.cfg.Materializer, materializer.Deps{
		Kafka: opts, Log: n.log, Conn: conn, Epoch: n.control.Epoch(),
		Rule: n.cfg.Streamer.Tape.Rule(), Placement: n.placement, Published: n.watermarks.Set, Erased: n.control.ErasedBelow,
		Known: n.knownWorkspace, DeadLetters: letterKeeper{n},
		TTL:     n.cfg.ClickHouse.Table.TTL,
		Metrics: materializer.NewMetrics(n.reg), Logger: n.logger,
	})
	if err != nil {
		return err
	}
	return m.Run(ctx)
}

// materializerSpareConns are for counting and checking while inserts are in flight.
const materializerSpareConns = 2

func (n *node) openIngest() error {
	opts, err := n.cfg.Kafka.Options()
	if err != nil {
		return err
	}
	appender, err := ingest.NewAppender(n.cfg.Ingest, ingest.Deps{
		Kafka: opts, Layout: layout{n}, Tails: ingestTails{n.tapes},
		History: ingestHistory{n.history, n.control.ErasedBelow, n.watermarks}, Rule: n.cfg.Streamer.Tape.Rule(),
		Metrics: ingest.NewMetrics(n.reg), Log: n.logger,
	})
	if err != nil {
		return err
	}
	n.onStop("appends", appender.Close)
	n.appends = ingest.NewAPI(n.cfg.Ingest, appender)
	n.appends.Register(n.app)
	n.openDeadLetters()
	return nil
}

func (n *node) openStreamer() error {
	deps := streamer.Deps{
		Tapes: n.tapes, Past: n.past, Metrics: streamer.NewMetrics(n.reg), Logger: n.logger,
		Limits: n.limits, Types: n.control.EventTypes, Counts: n.presence, Live: n.control.Live, Relay: n.presence.Send,
	}
	if n.appends != nil {
		deps.Appender = streamAppender{n.appends, n.limiter}
	}
	hub, err := streamer.StartHub(n.cfg.Streamer, deps)
	if err != nil {
		return err
	}
	n.onStop("streams", hub.Close)
	n.hub.Store(hub)
	n.presence.Receive(hub.Deliver)
	stop := n.control.Watch(func(c control.Change) {
		if c.Kind == control.KeyRevoked {
			hub.EndKey(c.KeyID)
		}
	})
	n.onStop("key watch", func(context.Context) error { stop(); return nil })
	hub.Routes(n.app)
	return nil
}

// streamAppender is ingest as streams see it: where clients append on their sockets.
// Each event counts as a request of its own.
type streamAppender struct {
	api     *ingest.API
	limiter *httpapi.Limiter
}

func (a streamAppender) AppendJSON(ctx context.Context, who control.Principal, event []byte) ([]byte, error) {
	if q := a.limiter.Take(who, httpapi.ClassAppend); !q.OK {
		return nil, q.Refusal(httpapi.ClassAppend)
	}
	return a.api.AppendJSON(ctx, ingest.Caller{Workspace: who.Workspace, Session: who.Session, Workflow: who.Workflow}, event)
}

func (n *node) openQuery() error {
	api := query.NewAPI(n.cfg.Query, query.Deps{
		History: n.history, Tapes: queryTapes{n.tapes}, Log: n.log, Committed: n.watermarks,
		Placement: n.placement, PageSize: n.pageSize, Types: n.control.EventTypes, Epoch: n.control.Epoch(),
		Dedupe: n.cfg.Streamer.Tape.Rule(), Erased: n.control.ErasedBelow, Logger: n.logger, Metrics: n.queryMetrics,
	})
	api.Routes(n.app)
	n.background("lag", func(ctx context.Context) error {
		return api.ReportLag(ctx, n.log.Partitions(), query.NewLagMetrics(n.reg))
	})
	n.background("eraser", query.NewEraser(query.EraserDeps{
		Conn: n.clickhouse, Store: n.control, Log: n.log, Committed: n.watermarks, Partitions: n.log.Partitions(),
		Epoch: n.control.Epoch(), Logger: n.logger, Metrics: query.NewEraserMetrics(n.reg),
	}).Run)
	return n.openExports()
}

// openExports gives exports a pool of their own: a page must not wait behind them.
func (n *node) openExports() error {
	deps := query.ExportDeps{
		History: n.history, Tapes: queryTapes{n.tapes}, Log: n.log, Committed: n.watermarks,
		Placement: n.placement, Types: n.control.EventTypes, Erased: n.control, Epoch: n.control.Epoch(),
		Logger: n.logger, Metrics: n.queryMetrics, Registerer: n.reg,
	}
	if pool, ok := n.cfg.Query.Export.ClickHouse(n.cfg.ClickHouse); ok {
		conn, err := query.Open(context.Background(), pool)
		if err != nil {
			return err
		}
		n.onStop("clickhouse of exports", func(context.Context) error { return conn.Close() })
		deps.Conn = conn
	}
	exports := query.NewExports(n.cfg.Query.Export, deps)
	n.onStop("exports", exports.Close)
	exports.Routes(n.app)
	return nil
}

func (n *node) pageSize(workspace string) int {
	w, _ := n.control.Workspace(workspace)
	return w.PageSize()
}

// nameWorkspace names the caller's workspace on every answer.
func nameWorkspace(c *fiber.Ctx) error {
	c.Set(httpapi.HeaderWorkspace, httpapi.From(c).Workspace)
	return c.Next()
}

// ensureWorkspace makes the workspace, unless there is one of that id, and the key with
// every scope. A workspace that is there keeps its plan and limits.
func (n *node) ensureWorkspace(ctx context.Context, w control.Workspace, key string) error {
	_, err := n.control.CreateWorkspace(ctx, w)
	if err != nil && !errors.Is(err, control.ErrWorkspaceExists) {
		return fmt.Errorf("workspace %s: %w", w.ID, err)
	}
	_, _, err = n.control.CreateKey(ctx, control.KeySpec{
		Workspace: w.ID, Name: "made at the start", Scopes: control.AllScopes, Text: key,
	})
	if err != nil && !errors.Is(err, control.ErrKeyExists) {
		return fmt.Errorf("key of workspace %s: %w", w.ID, err)
	}
	return nil
}

// layout is ingest's view of the log's shape.
type layout struct{ n *node }

func (l layout) Placement(workspace string) (schema.Placement, bool) {
	_, ok := l.n.control.Workspace(workspace)
	return l.n.placement(workspace), ok
}

func (l layout) Epoch() uint8 { return l.n.control.Epoch() }

// ingestTails are the tapes as ingest sees them: Open waits for what other nodes wrote.
type ingestTails struct{ tapes *tape.Tapes }

func (t ingestTails) Open(ctx context.Context, partition uint16) (ingest.Tail, error) {
	opened, _, err := t.tapes.Current(ctx, partition)
	if err != nil {
		return nil, err // not a Tail that holds no tape
	}
	return opened, nil
}

// queryTapes are the tapes as query sees them.
type queryTapes struct{ tapes *tape.Tapes }

func (t queryTapes) Open(ctx context.Context, partition uint16) (query.Tape, error) {
	return t.tapes.Open(ctx, partition)
}

// ingestHistory is history as ingest sees it.
type ingestHistory struct {
	history    *query.History
	erased     schema.ErasedBelow
	watermarks *query.Watermarks
}

func (h ingestHistory) FindMessages(ctx context.Context, workspace string, ids []ingest.MessageRef) (map[ingest.MessageRef]schema.EventID, error) {
	refs := make([]query.MessageRef, len(ids))
	for i, id := range ids {
		refs[i] = query.MessageRef(id)
	}
	found, err := h.history.FindMessages(ctx, workspace, refs)
	if err != nil {
		return nil, err
	}
	out := make(map[ingest.MessageRef]schema.EventID, len(found))
	for ref, id := range found {
		if id.Precedes(h.erased.Of(workspace, ref.Session)) {
			continue // its row is not a stub yet
		}
		out[ingest.MessageRef(ref)] = id
	}
	return out, nil
}

func (h ingestHistory) WaitMaterialised(ctx context.Context, partition uint16, next int64) error {
	return h.watermarks.Wait(ctx, partition, next)
}

// replayHistory is history as streams see it.
type replayHistory struct {
	history    *query.History
	watermarks *query.Watermarks
}

func (h replayHistory) ReadChunk(ctx context.Context, scope schema.Scope, partition uint16, from, to schema.Position,
	f *schema.Filter, maxBytes int,
) ([]*schema.Event, schema.Position, error) {
	return h.history.ReadChunk(ctx, scope, partition, from, to, f, maxBytes)
}

func (h replayHistory) SessionBase(ctx context.Context, workspace, session string, to schema.Position) (schema.Session, error) {
	return h.history.SessionBase(ctx, query.SessionRef{Workspace: workspace, Session: session, Partition: to.Partition}, to)
}

func (h replayHistory) Watermark(partition uint16) int64 { return h.watermarks.Get(partition) }
