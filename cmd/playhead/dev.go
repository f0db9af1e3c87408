package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/playhead-dev/playhead/internal/control"
	"github.com/playhead-dev/playhead/internal/engine"
	"github.com/playhead-dev/playhead/internal/kafka"
)

// Defaults of playhead dev.
const (
	defaultDataDir = "playhead-data"
	devStateFile   = "dev.json"
	kafkaDir       = "kafka"
	clickhouseDir  = "clickhouse"
	devPartitions  = 8

	devWorkspaceName = "dev"
)

// devState is what playhead dev keeps from one start to the next, and what playhead
// import reads to find the server: dev.json in the data directory, mode 0600, since it
// holds the key.
type devState struct {
	URL         string `json:"url"`
	WorkspaceID string `json:"workspace_id"`
	Key         string `json:"key"`

	// Where the parts of this start listen (brokers separated by commas), for tools that look behind the API
	// (integration/bench). The DSN holds a password of this start.
	Kafka      string `json:"kafka,omitempty"`
	ClickHouse string `json:"clickhouse_dsn,omitempty"`

	fresh bool // there was no file
}

// runDev runs everything in this process and one child, in a data directory.
func runDev(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) (err error) {
	listen, dataDir, level := "", defaultDataDir, "warn"
	var key, dsn, limits, brokers string
	if err := parseSettings("dev", args, env, stderr, []setting{
		{"listen", "PLAYHEAD_LISTEN", "address to listen on, default 127.0.0.1:8080", &listen},
		{"data-dir", "PLAYHEAD_DATA_DIR", "directory for everything that is kept", &dataDir},
		{"key", "PLAYHEAD_DEV_KEY", "API key to use; default: made at the first start", &key},
		{"clickhouse-dsn", "PLAYHEAD_CLICKHOUSE_DSN", "use this ClickHouse instead of the embedded engine", &dsn},
		{"kafka-brokers", "PLAYHEAD_KAFKA_BROKERS", "use these brokers (host:port), separated by commas, instead of the embedded one", &brokers},
		{"limits", "PLAYHEAD_DEV_LIMITS", `"default" gives the workspace the usual limits; none otherwise`, &limits},
		{"log-level", "PLAYHEAD_LOG_LEVEL", "debug, info, warn or error", &level},
	}); err != nil {
		return err
	}
	cfg := DefaultConfig()
	override(&cfg.HTTP.Listen, listen)
	cfg.HTTP.CORS.AllowedOrigins = []string{"*"} // on loopback, and no page has the key by itself
	if err := cfg.Log.Level.UnmarshalText([]byte(level)); err != nil {
		fmt.Fprintf(stderr, "log-level is %q; want debug, info, warn or error\n", level)
		return errUsage
	}
	if limits != "" && limits != "default" {
		fmt.Fprintf(stderr, "limits is %q; want default, or nothing for none\n", limits)
		return errUsage
	}
	logger := cfg.Log.logger(stderr)

	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := checkParts(dataDir, brokers != ""); err != nil {
		return err
	}
	state, err := loadDevState(filepath.Join(dataDir, devStateFile), key)
	if err != nil {
		return err
	}
	parts, err := startParts(ctx, dataDir, brokers, dsn, engine.LibraryPath(env), logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parts.close()) }()
	cfg.Kafka = parts.kafka
	cfg.Kafka.Partitions = devPartitions
	cfg.ClickHouse.DSN = parts.dsn
	if err := cfg.Validate(); err != nil {
		return err
	}

	n, err := startNode(ctx, cfg, logger)
	if err != nil {
		return err
	}
	if parts.broker != nil { // another broker may tell of its end before it knows all of it
		if err := n.checkLogEnds(ctx, dataDir); err != nil {
			return n.stopAfter(err)
		}
	}
	if parts.engine != nil {
		n.health.Add("engine", parts.engineReady)
	}
	if state.fresh {
		state.WorkspaceID = workspaceToAdopt(n.control.Workspaces(), state.WorkspaceID)
	}
	if _, erased := n.control.Erasure(state.WorkspaceID, ""); erased { // its id is not used again
		state.WorkspaceID = newDevWorkspaceID()
	}
	n.cfg.DeadLetters.OperatorWorkspace = state.WorkspaceID // nobody asks before listen
	workspace := control.Workspace{ID: state.WorkspaceID, Name: devWorkspaceName, Plan: control.PlanPro, Limits: control.Unlimited()}
	if limits == "default" {
		workspace.Limits = control.DefaultLimits()
	}
	if err := n.ensureWorkspace(ctx, workspace, state.Key); err != nil {
		return n.stopAfter(err)
	}
	if err := n.control.UpdateWorkspace(ctx, workspace); err != nil { // the limits are those of this start
		return n.stopAfter(err)
	}
	if err := n.listen(ctx); err != nil {
		return n.stopAfter(err)
	}
	state.URL = "http://" + n.addr()
	state.Kafka, state.ClickHouse = strings.Join(parts.kafka.Brokers, ","), parts.dsn
	if err := state.save(filepath.Join(dataDir, devStateFile)); err != nil {
		return n.stopAfter(err)
	}
	state.greet(stdout, dataDir)
	return n.run(ctx)
}

// workspaceToAdopt returns the workspace of a start without dev.json: the one that an
// earlier start made in this log, or else otherwise. The file was lost, the events were not.
func workspaceToAdopt(all []control.Workspace, otherwise string) string {
	for _, w := range all {
		if w.Name == devWorkspaceName {
			return w.ID
		}
	}
	return otherwise
}

// checkParts refuses a data directory whose log is gone while its history is not. A new
// log would begin at offset 0 again, in the epoch of the old one: old rows and new events
// would share positions. The other way round is no harm: history is made anew from the log.
// With a log elsewhere, it refuses a directory that has one of its own.
func checkParts(dataDir string, elsewhere bool) error {
	log, err := holdsFiles(filepath.Join(dataDir, kafkaDir))
	if err == nil && log && elsewhere {
		return fmt.Errorf("%s holds the log of an embedded broker; other brokers' events want another data directory",
			filepath.Join(dataDir, kafkaDir))
	}
	if err != nil || log || elsewhere {
		return err
	}
	history, err := holdsFiles(filepath.Join(dataDir, clickhouseDir))
	if err != nil || !history {
		return err
	}
	return fmt.Errorf("%s holds history, but its log in %s is gone; put that back, or remove %[1]s as well to begin anew",
		filepath.Join(dataDir, clickhouseDir), filepath.Join(dataDir, kafkaDir))
}

// checkLogEnds refuses a log that ends before what was copied of it: its files have lost
// events, and new ones would get their places.
func (n *node) checkLogEnds(ctx context.Context, dataDir string) error {
	for p := range n.log.Partitions() {
		end, err := n.log.HighWatermark(ctx, uint16(p))
		if err != nil {
			return err
		}
		if copied := n.watermarks.Get(uint16(p)); copied > end {
			return fmt.Errorf("partition %d of the log in %s ends at offset %d, but was copied to the history up to %d: its files have lost events; put a copy of them back, or remove all of %s to begin anew",
				p, filepath.Join(dataDir, kafkaDir), end, copied, dataDir)
		}
	}
	return nil
}

func holdsFiles(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("data directory: %w", err)
	}
	return len(entries) > 0, nil
}

// parts are the embedded Kafka and ClickHouse.
type parts struct {
	broker *kafka.Embedded // nil if brokers were named instead
	engine *engine.Process // nil if a ClickHouse was named instead
	kafka  kafka.Config
	dsn    string
}

// startParts starts both at once, but for what brokers and dsn name instead. library is
// the file of the engine.
func startParts(ctx context.Context, dataDir, brokers, dsn, library string, logger *slog.Logger) (*parts, error) {
	p := &parts{dsn: dsn}
	var group errgroup.Group
	if brokers == "" {
		group.Go(func() (err error) {
			p.broker, err = kafka.StartEmbedded(filepath.Join(dataDir, kafkaDir), "127.0.0.1:0", devPartitions, logger)
			return err
		})
	}
	if dsn == "" {
		group.Go(func() (err error) {
			p.engine, err = engine.Start(ctx, engine.Config{
				DataPath: filepath.Join(dataDir, clickhouseDir), LibraryPath: library,
				ChildArgs: []string{"engine"}, Log: logger,
			})
			if errors.Is(err, engine.ErrLibraryNotFound) {
				err = fmt.Errorf("%w (--clickhouse-dsn clickhouse://host:9000/database)", err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if p.engine != nil {
		p.dsn = p.engine.DSN()
	}
	if p.broker != nil {
		p.kafka = p.broker.Config()
	} else {
		p.kafka = kafka.DefaultConfig()
		p.kafka.Brokers, p.kafka.ReplicationFactor = strings.Split(brokers, ","), 0
	}
	return p, nil
}

// close ends what was started, the engine first: nothing writes to it any more.
func (p *parts) close() error {
	var errs []error
	if p.engine != nil {
		errs = append(errs, p.engine.Close())
	}
	if p.broker != nil {
		errs = append(errs, p.broker.Close())
	}
	return errors.Join(errs...)
}

func (p *parts) engineReady(context.Context) error {
	if p.engine.Pid() == 0 {
		return errors.New("the engine is being restarted")
	}
	return nil
}

// loadDevState reads what the last start kept, or makes it. A key that was given
// replaces the kept one from now on; the old one stays valid.
func loadDevState(path, key string) (*devState, error) {
	if key != "" {
		if err := control.CheckKeyText(key); err != nil {
			return nil, fmt.Errorf("PLAYHEAD_DEV_KEY %w", err)
		}
	}
	s := &devState{}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.fresh = true
		s.WorkspaceID = newDevWorkspaceID()
	case err != nil:
		return nil, fmt.Errorf("read the state of the last start: %w", err)
	default:
		if err := json.Unmarshal(b, s); err != nil {
			return nil, fmt.Errorf("%s is damaged (%w); repair it, or remove it: the next start makes a new key for the same workspace", path, err)
		}
		s.Kafka, s.ClickHouse = "", "" // of the last start
	}
	if key != "" {
		s.Key = key
	}
	if s.Key == "" {
		s.Key = control.KeyPrefix + (rand.Text() + rand.Text())[:32]
	}
	return s, s.save(path)
}

func newDevWorkspaceID() string { return "ws_" + strings.ToLower(rand.Text()[:16]) }

// save writes the file so that a crash leaves the old one or the new one.
func (s *devState) save(path string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	// A file of its own, which nobody else can have opened or made a link: mode 0600.
	temp, err := os.CreateTemp(filepath.Dir(path), devStateFile+".new-*")
	if err != nil {
		return fmt.Errorf("save the state of this start: %w", err)
	}
	_, err = temp.Write(append(b, '\n'))
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("save the state of this start: %w", errors.Join(err, os.Remove(temp.Name())))
	}
	return nil
}

// greet prints the key and three lines that work as they are.
func (s *devState) greet(w io.Writer, dataDir string) {
	fmt.Fprintf(w, `Playhead is ready on %[1]s, its data in %[3]s.
API key: %[2]s

Append an event, listen to its session, and page through it:

  curl -X POST %[1]s/v1/sessions/demo/events -H 'Authorization: Bearer %[2]s' -H 'Content-Type: application/json' -d '{"type":"greeting","payload":{"text":"hello"}}'
  curl -N '%[1]s/v1/sessions/demo/events/stream?from=start' -H 'Authorization: Bearer %[2]s'
  curl '%[1]s/v1/sessions/demo/events?include=payload' -H 'Authorization: Bearer %[2]s'

Ctrl-C stops.
`, s.URL, s.Key, dataDir)
}

// localAddr names the address that clients on this machine connect to.
func localAddr(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	return fmt.Sprintf("127.0.0.1:%d", tcp.Port)
}
