package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Key is the API key of every cluster: long enough to pass for one and plainly nobody's.
const Key = "pk_test_cluster0123456789abcdef012345"

// The roles of a node.
const (
	RoleIngest       = "ingest"
	RoleStreamer     = "streamer"
	RoleQuery        = "query"
	RoleMaterializer = "materializer"
)

// Config says what a Cluster runs.
type Config struct {
	Dir     string   // where everything is kept; must exist
	Binary  string   // playhead
	Library string   // of the embedded engine
	Self    []string // a program and its first arguments that end up in BrokerMain
	Env     []string // for the nodes, beside the present environment

	// Settings are further lines of the nodes' configuration.
	Settings string

	// Partitions of playhead.events. Default 4.
	Partitions int

	// NewLog makes the Kafka under test; the embedded broker unless set.
	NewLog func(dir string) (Log, error)
}

// Cluster is Kafka, ClickHouse, nodes and all that lies between; or, made by StartDev, one
// playhead dev, which is all of that in one.
type Cluster struct {
	Log   Log         // nil of playhead dev
	Store *ClickHouse // likewise
	Nodes []*Node
	Dev   *Dev // nil otherwise

	cfg   Config
	dir   string
	front map[string]*Link // by role: where clients come in
	left  []*Node          // nodes that have left
	named int              // nodes that were ever there
}

// Start starts Kafka and ClickHouse. Nodes come by Join.
func Start(ctx context.Context, cfg Config) (c *Cluster, err error) {
	if cfg.Partitions == 0 {
		cfg.Partitions = 4
	}
	if cfg.NewLog == nil {
		cfg.NewLog = func(dir string) (Log, error) { return NewEmbeddedLog(dir, cfg.Self, cfg.Partitions) }
	}
	c = &Cluster{cfg: cfg, dir: cfg.Dir, front: make(map[string]*Link)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, role := range []string{RoleIngest, RoleStreamer, RoleQuery} {
		if c.front[role], err = OpenLink("front of " + role); err != nil {
			return c, err
		}
	}
	if c.Log, err = cfg.NewLog(cfg.Dir); err != nil {
		return c, err
	}
	if err = c.Log.Start(ctx); err != nil {
		return c, err
	}
	c.Store, err = startClickHouse(ctx, cfg.Dir, cfg.Binary, cfg.Library)
	return c, err
}

// Join adds nodes, each with roles (all if empty), and waits until they are ready.
func (c *Cluster) Join(ctx context.Context, roles ...string) ([]*Node, error) {
	var joined []*Node
	for _, r := range roles {
		c.named++
		n, err := c.newNode(fmt.Sprintf("node%d", c.named), r)
		if err != nil {
			return joined, err
		}
		c.Nodes = append(c.Nodes, n)
		joined = append(joined, n)
		if err := n.Up(); err != nil {
			return joined, err
		}
	}
	c.spread()
	for _, n := range joined {
		if err := n.awaitReady(ctx, time.Minute); err != nil {
			return joined, err
		}
	}
	return joined, nil
}

// Leave takes a node out of the front and ends it in order.
func (c *Cluster) Leave(n *Node, patience time.Duration) error {
	c.Nodes = slices.DeleteFunc(c.Nodes, func(m *Node) bool { return m == n })
	c.left = append(c.left, n)
	c.spread()
	return errors.Join(n.Stop(patience), n.close())
}

// spread tells the fronts which nodes there are.
func (c *Cluster) spread() {
	for role, link := range c.front {
		var doors []string
		for _, n := range c.Nodes {
			if n.Has(role) {
				doors = append(doors, n.door.Addr())
			}
		}
		link.SetBackends(doors...)
	}
}

// AwaitReady waits until every node that is wanted is ready.
func (c *Cluster) AwaitReady(ctx context.Context, within time.Duration) error {
	for _, n := range c.Nodes {
		if !n.Wanted() {
			continue
		}
		if err := n.awaitReady(ctx, within); err != nil {
			return err
		}
	}
	return nil
}

// Unlimit takes the workspace's limits away: a load is to be refused for want of room,
// not of a quota.
func (c *Cluster) Unlimit(ctx context.Context) error {
	cl := newClient(c, 10*time.Second)
	body := `{"streams_per_key":0,"streams_per_workspace":0,"event_streams_per_key":0,"events_per_minute":0,` +
		`"session_creates_per_second":0,"appends_per_second":0,"backfill_events_per_second":0,"reads_per_second":0}`
	for _, n := range c.Nodes { // each by itself knows at once what it was told
		err := await(ctx, 30*time.Second, "limits are taken away", func(ctx context.Context) error {
			a, err := cl.at(ctx, n.addr, http.MethodPatch, "/admin/v1/limits", "application/json", body)
			if err == nil && a.status != http.StatusOK {
				err = fmt.Errorf("%d %s", a.status, a.body)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Calm ends every fault: links heal, what is paused goes on, what is down comes up; and
// waits until all is ready.
func (c *Cluster) Calm(ctx context.Context) error {
	for _, l := range c.links() {
		l.mu.Lock()
		l.faults = make(map[string]Fault)
		l.wires = make(map[*Tripwire]struct{})
		l.change()
		l.mu.Unlock()
	}
	c.Store.Resume()
	for _, b := range c.Log.Brokers() {
		b.Resume()
		if err := b.Up(); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		n.Resume()
		if err := n.Up(); err != nil {
			return err
		}
	}
	if err := c.Store.awaitUp(ctx); err != nil {
		return err
	}
	return c.AwaitReady(ctx, 2*time.Minute)
}

func (c *Cluster) links() []*Link {
	var all []*Link
	for _, l := range c.front {
		all = append(all, l)
	}
	all = append(all, c.Log.Links()...)
	for _, n := range c.Nodes {
		all = append(all, n.door, n.toStore)
	}
	return all
}

// Outputs are what the processes write, by name.
func (c *Cluster) Outputs() map[string]*Output {
	if c.Dev != nil {
		return map[string]*Output{c.Dev.Name: c.Dev.Output}
	}
	out := map[string]*Output{"clickhouse": c.Store.Output}
	for _, n := range slices.Concat(c.Nodes, c.left) {
		out[n.Name] = n.Output
	}
	for _, b := range c.Log.Brokers() {
		if p, ok := b.(*Process); ok {
			out[p.Name] = p.Output
		}
	}
	return out
}

// kafka is where Kafka is reached.
func (c *Cluster) kafka() []string {
	if c.Dev != nil {
		return []string{c.Dev.state.Kafka}
	}
	return c.Log.Addrs()
}

// dsn is where ClickHouse is reached past all links.
func (c *Cluster) dsn() string {
	if c.Dev != nil {
		return c.Dev.state.ClickHouse
	}
	return c.Store.running().DSN()
}

// openStore connects to ClickHouse past all links.
func (c *Cluster) openStore() (driver.Conn, error) {
	opts, err := clickhouse.ParseDSN(c.dsn())
	if err != nil {
		return nil, fmt.Errorf("clickhouse: %w", err)
	}
	conn, err := clickhouse.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("clickhouse: %w", err)
	}
	return conn, nil
}

// Close ends everything. The directory stays.
func (c *Cluster) Close() error {
	var errs []error
	if c.Dev != nil {
		errs = append(errs, c.Dev.close())
	}
	for _, n := range c.Nodes {
		errs = append(errs, n.close())
	}
	if c.Store != nil {
		errs = append(errs, c.Store.close())
	}
	if c.Log != nil {
		errs = append(errs, c.Log.Close())
	}
	for _, l := range c.front {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// LastWords are the ends of all logs, for whoever has to find out what went wrong.
func (c *Cluster) LastWords(bytes int) string {
	var text strings.Builder
	paths, _ := filepath.Glob(filepath.Join(c.dir, "*.log")) // the pattern is right
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fmt.Fprintf(&text, "== %s\n%s\n", filepath.Base(path), b[max(0, len(b)-bytes):])
	}
	return text.String()
}
