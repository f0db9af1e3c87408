package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/playhead-dev/playhead/internal/engine"
)

// playhead returns the path of playhead, built once for all tests.
var playhead = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "playhead-cluster-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	path := filepath.Join(dir, "playhead")
	args := append([]string{"build"}, raceFlags...)
	out, err := exec.Command("go", append(args, "-o", path, "github.com/playhead-dev/playhead/cmd/playhead")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build playhead: %w\n%s", err, out)
	}
	return path, nil
})

var builtIn string // the directory of the built binary, for TestMain to remove

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == BrokerCommand {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if err := BrokerMain(ctx, os.Args[2:], os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if builtIn != "" {
		_ = os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// start starts a cluster without nodes.
func start(t *testing.T) *Cluster {
	t.Helper()
	library := engine.LibraryPath(os.Getenv)
	if _, err := os.Stat(library); err != nil {
		if os.Getenv("PLAYHEAD_REQUIRE_ENGINE") == "1" {
			t.Fatalf("the engine library is required and missing: %v", err)
		}
		t.Skipf("the engine library is not installed (scripts/fetch-engine.sh): %v", err)
	}
	path, err := playhead()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.Context(), Config{Dir: t.TempDir(), Binary: path, Library: library, Self: []string{os.Args[0], BrokerCommand}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("last words:\n%s", c.LastWords(4000))
		}
		if err := c.Close(); err != nil {
			t.Errorf("close the cluster: %v", err)
		}
	})
	return c
}

func (c *Cluster) join(t *testing.T, roles ...string) []*Node {
	t.Helper()
	nodes, err := c.Join(t.Context(), roles...)
	if err == nil {
		err = c.Unlimit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

// settle ends faults and load, and wants nothing lost, doubled or reordered.
func (c *Cluster) settle(t *testing.T, l *Load) *Verdict {
	t.Helper()
	if err := c.Calm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	v, err := c.Audit(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(v)
	for _, f := range v.Findings {
		t.Errorf("%s: %s", f.Where, f.What)
	}
	if !v.OK() {
		t.Error("a promise was broken")
	}
	return v
}

// awaitWritten waits until n more events have been acknowledged: the cluster is at work.
func awaitWritten(t *testing.T, l *Load, n int) {
	t.Helper()
	count := func() (sum int) {
		for _, s := range l.Journal.all() {
			_, known := s.counts()
			sum += known
		}
		return sum
	}
	want := count() + n
	err := await(t.Context(), time.Minute, "more events are acknowledged", func(context.Context) error {
		if got := count(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestThreeNodes has three nodes with all roles under load killed, paused and rolled one
// by one, a fourth join and one leave.
func TestThreeNodes(t *testing.T) {
	c := start(t)
	nodes := c.join(t, "", "", "")
	l := StartLoad(c, DefaultLoad(1))
	awaitWritten(t, l, 100)
	nodes[0].Kill()
	awaitWritten(t, l, 100)
	if err := nodes[0].Up(); err != nil {
		t.Fatal(err)
	}
	nodes[1].Pause()
	awaitWritten(t, l, 100)
	nodes[1].Resume()
	for _, n := range nodes { // a rolling upgrade
		if err := n.Stop(30 * time.Second); err != nil {
			t.Error(err)
		}
		if err := n.Up(); err != nil {
			t.Fatal(err)
		}
		if err := n.awaitReady(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		awaitWritten(t, l, 50)
	}
	c.join(t, "")
	awaitWritten(t, l, 100)
	if err := c.Leave(nodes[2], 30*time.Second); err != nil {
		t.Error(err)
	}
	awaitWritten(t, l, 100)
	c.settle(t, l)
}

// TestRolesApartUnderFaults has each role in processes of its own, all of which die.
func TestRolesApartUnderFaults(t *testing.T) {
	c := start(t)
	nodes := c.join(t, RoleIngest, RoleIngest, RoleStreamer, RoleQuery, RoleMaterializer)
	l := StartLoad(c, DefaultLoad(2))
	awaitWritten(t, l, 100)
	for _, n := range nodes {
		n.Kill()
		if err := n.Up(); err != nil {
			t.Fatal(err)
		}
		awaitWritten(t, l, 50)
	}
	for _, n := range nodes {
		if err := n.Stop(30 * time.Second); err != nil {
			t.Error(err)
		}
		if err := n.Up(); err != nil {
			t.Fatal(err)
		}
		awaitWritten(t, l, 50)
	}
	c.settle(t, l)
}
