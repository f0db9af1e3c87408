package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/playhead-dev/playhead/integration/cluster"
	"github.com/playhead-dev/playhead/internal/engine"
)

// server returns the path of playhead, built once for all tests.
var server = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "playhead-chaos-test-")
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

var builtIn string // the directory of the built server, for TestMain to remove

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == cluster.BrokerCommand {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if err := cluster.BrokerMain(ctx, os.Args[2:], os.Stderr); err != nil {
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

// newConfig is what the command line with these arguments says, for a server that is built
// as the tests are.
func newConfig(t *testing.T, args ...string) config {
	t.Helper()
	library := engine.LibraryPath(os.Getenv)
	if _, err := os.Stat(library); err != nil {
		if os.Getenv("PLAYHEAD_REQUIRE_ENGINE") == "1" {
			t.Fatalf("the engine library is required and missing: %v", err)
		}
		t.Skipf("the engine library is not installed (scripts/fetch-engine.sh): %v", err)
	}
	path, err := server()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := parseFlags(append([]string{"-server", path, "-dir", t.TempDir()}, args...), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	cfg.library, cfg.self = library, []string{os.Args[0], cluster.BrokerCommand}
	return cfg
}

// want fails the test unless the outcome is good, and says what was found.
func want(t *testing.T, r outcome, err error) {
	t.Helper()
	var text bytes.Buffer
	r.print(&text)
	t.Log(text.String())
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() {
		t.Error("a promise was broken")
	}
}

// seeds of rounds that have failed once, and what it was. They stay.
var seeds = []struct {
	seed uint64
	why  string
}{
	{1, "the first"},
}

// TestShortCampaign breaks three nodes for a short while.
func TestShortCampaign(t *testing.T) {
	for _, s := range seeds {
		t.Run(fmt.Sprint(s.seed), func(t *testing.T) {
			cfg := newConfig(t, "-seed", fmt.Sprint(s.seed), "-duration", "25s")
			r, err := campaign(t.Context(), cfg, t.Output())
			want(t, r, err)
		})
	}
}

// TestOverload asks ten times of a node what it can do.
func TestOverload(t *testing.T) {
	cfg := newConfig(t, "-mode", "overload", "-duration", "6s", "-streams", "400", "-resident", fmt.Sprint(residentInTests))
	r, err := overload(t.Context(), cfg, t.Output())
	want(t, r, err)
}

// TestMutantsAreUpToDate: what the mutants break stands in the code, once.
func TestMutantsAreUpToDate(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		if _, err := m.apply(root); err != nil {
			t.Error(err)
		}
	}
}

func TestFlagsAreChecked(t *testing.T) {
	f := func(want string, args ...string) {
		t.Helper()
		if _, err := parseFlags(args, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseFlags(%q) = %v, want %s named", args, err, want)
		}
	}
	f("-mode", "-mode", "x")
	f("-nodes", "-nodes", "0")
	f("-duration", "-duration", "-1s")
	f("-faults", "-faults", "-1")
	f("arguments", "x")
}

// TestSameSeedSameFaults: what a hand picks follows from the seed.
func TestSameSeedSameFaults(t *testing.T) {
	picks := func(seed uint64) (names []string) {
		h := newHand(newRound(config{}, seed, 0), 0, processFaults())
		for range 50 {
			names = append(names, h.pick().name)
		}
		return names
	}
	a, b, c := picks(7), picks(7), picks(8)
	if strings.Join(a, ",") != strings.Join(b, ",") {
		t.Errorf("seed 7 picks %q and then %q", a, b)
	}
	if strings.Join(a, ",") == strings.Join(c, ",") {
		t.Errorf("seeds 7 and 8 both pick %q", a)
	}
}
