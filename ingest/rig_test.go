package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/openapi/conform"
	"github.com/playhead-dev/playhead/schema"
)

const testPartitions = 4

// testKeys are the keys of the rig, by what they may do.
var testKeys = map[string]control.Principal{
	"full":      {Workspace: "ws1", Scopes: control.ScopeIngest},
	"other":     {Workspace: "ws2", Scopes: control.ScopeIngest},
	"reader":    {Workspace: "ws1", Scopes: control.ScopeRead},
	"session-a": {Workspace: "ws1", Scopes: control.ScopeIngest, Session: "a"},
	"workflow":  {Workspace: "ws1", Scopes: control.ScopeIngest, Workflow: "w1"},
	"nowhere":   {Workspace: "unknown", Scopes: control.ScopeIngest},
}

type keyring struct{}

func (keyring) Authenticate(key string) (control.Principal, error) {
	p, ok := testKeys[key]
	if !ok {
		return p, control.ErrUnknownKey
	}
	return p, nil
}

type testLayout struct{}

func (testLayout) Epoch() uint8 { return testEpoch }
func (testLayout) Placement(workspace string) (schema.Placement, bool) {
	return schema.Placement{Partitions: testPartitions, Shards: schema.DefaultShards}, workspace != "unknown"
}

// rig is ingest behind its HTTP API, in front of the in-process broker.
type rig struct {
	tb       testing.TB
	cluster  *kfake.Cluster
	tails    *logTails
	appender *Appender
	app      *fiber.App
	admin    *kadm.Client
}

type rigOption func(*rigConfig)

type rigConfig struct {
	ingest  Config
	history History
	now     func() time.Time
	limits  *control.Limits // nil: no limiter
}

func newCluster(tb testing.TB) *kfake.Cluster {
	tb.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(testPartitions))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cluster.Close)
	size := "2097152"
	admin := newAdmin(tb, cluster)
	if _, err := admin.CreateTopic(tb.Context(), testPartitions, 1, map[string]*string{"max.message.bytes": &size}, schema.TopicEvents); err != nil {
		tb.Fatal(err)
	}
	return cluster
}

func newAdmin(tb testing.TB, cluster *kfake.Cluster) *kadm.Client {
	tb.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return kadm.NewClient(client)
}

func newRig(tb testing.TB, options ...rigOption) *rig {
	tb.Helper()
	return newRigOn(tb, newCluster(tb), options...)
}

// newRigOn is another node on the same log.
func newRigOn(tb testing.TB, cluster *kfake.Cluster, options ...rigOption) *rig {
	tb.Helper()
	cfg := rigConfig{ingest: DefaultConfig()}
	for _, o := range options {
		o(&cfg)
	}
	r := &rig{tb: tb, cluster: cluster, admin: newAdmin(tb, cluster)}
	r.tails = newLogTails(tb, cluster.ListenAddrs(), testPartitions)
	var err error
	r.appender, err = NewAppender(cfg.ingest, Deps{
		Kafka:  []kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...)},
		Layout: testLayout{}, Tails: r.tails, History: cfg.history, Now: cfg.now,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = r.appender.Close(ctx) // a test may have left the broker without answers
	})
	edge := httpapi.DefaultConfig()
	edge.BodyLimit = 64 << 20 // so that ingest's own limit is what answers
	r.app = httpapi.NewApp(edge, slog.New(slog.DiscardHandler))
	r.app.Use(httpapi.Authenticate(keyring{}))
	if cfg.limits != nil {
		r.app.Use(httpapi.NewLimiter(func(string) control.Limits { return *cfg.limits }, nil, nil).Handler)
	}
	NewAPI(cfg.ingest, r.appender).Register(r.app)
	return r
}

// call is one request to the rig. The zero values are what most tests want.
type call struct {
	method, path, key string
	contentType       string // application/json if empty, none if "-"
	encoding          string
	header            map[string]string
	body              string
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r *rig) do(c call) reply {
	r.tb.Helper()
	if c.method == "" {
		c.method = http.MethodPost
	}
	if c.key == "" {
		c.key = "full"
	}
	req := httptest.NewRequest(c.method, c.path, bytes.NewReader([]byte(c.body)))
	req.Header.Set("Authorization", "Bearer "+c.key)
	switch c.contentType {
	case "":
		req.Header.Set("Content-Type", "application/json")
	case "-":
	default:
		req.Header.Set("Content-Type", c.contentType)
	}
	if c.encoding != "" {
		req.Header.Set("Content-Encoding", c.encoding)
	}
	for k, v := range c.header {
		req.Header.Set(k, v)
	}
	res, err := r.app.Test(req, 30_000)
	if err != nil {
		r.tb.Errorf("%s %s: %v", c.method, c.path, err)
		return reply{}
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.tb.Errorf("%s %s: read answer: %v", c.method, c.path, err)
	}
	path, _, _ := strings.Cut(c.path, "?")
	if err := conform.Check(conform.Answer{Method: c.method, Path: path, Status: res.StatusCode, Header: res.Header, Body: body}); err != nil {
		r.tb.Error(err)
	}
	return reply{status: res.StatusCode, header: res.Header, body: body}
}

func (r *rig) post(path, body string) reply {
	r.tb.Helper()
	return r.do(call{path: path, body: body})
}

// wireError is an error as clients see it.
type wireError struct {
	Code    string         `json:"code"`
	Message string         `json:"message"`
	Param   string         `json:"param"`
	Details map[string]any `json:"details"`
}

type wireResult struct {
	ID        string     `json:"id"`
	MessageID *string    `json:"message_id"`
	Duplicate bool       `json:"duplicate"`
	TMs       *int64     `json:"t_ms"`
	Error     *wireError `json:"error"`
}

type wireAnswer struct {
	Results    []wireResult `json:"results"`
	Accepted   int          `json:"accepted"`
	Duplicates int          `json:"duplicates"`
}

func (a reply) json(tb testing.TB, into any) {
	tb.Helper()
	if err := json.Unmarshal(a.body, into); err != nil {
		tb.Fatalf("answer %d %q: %v", a.status, a.body, err)
	}
}

func (a reply) error(tb testing.TB) wireError {
	tb.Helper()
	var e struct {
		Error wireError `json:"error"`
	}
	a.json(tb, &e)
	return e.Error
}

// appended makes a request that must succeed with the status, and returns its answer.
func (r *rig) appended(status int, c call) wireAnswer {
	r.tb.Helper()
	res := r.do(c)
	if res.status != status {
		r.tb.Fatalf("%s: status %d, body %s; want %d", c.path, res.status, res.body, status)
	}
	var a wireAnswer
	res.json(r.tb, &a)
	return a
}

// logged returns how many records the log holds.
func (r *rig) logged() int64 {
	r.tb.Helper()
	ends, err := r.admin.ListEndOffsets(r.tb.Context(), schema.TopicEvents)
	if err != nil {
		r.tb.Fatal(err)
	}
	n := int64(0)
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}

// events returns all events of the log that are no repeats, once the tails have seen
// all that is in it.
func (r *rig) events() []*schema.Event {
	r.tb.Helper()
	for p := range testPartitions {
		if _, err := r.tails.Open(r.tb.Context(), uint16(p)); err != nil {
			r.tb.Fatal(err)
		}
	}
	return r.tails.all()
}
