package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/mattn/go-isatty"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/internal/importer"
)

const importUsage = `Usage: playhead import [flags] FILE...

Sends events to a Playhead server: one JSON event a line, as POST /v1/events takes them,
plain, gzip or zstd (found by content, not by name). A FILE that is - is standard input.

Each session's events keep the order of the file. Lost connections, restarts of the
server and its requests to slow down are retried. Running the same command again is
safe: what is there already is answered as a duplicate; events without a message_id get
one that is computed from the file. An interrupted import of files goes on where it was.

The server and the key are those of "playhead dev" on this machine, unless given.

Flags:
`

const importExitCodes = `
Exit codes: 0 all events are in (accepted now, or duplicates); 1 some are not; 2 wrong
usage; 130 interrupted: run the same command to resume.
`

// interruptedError ends an import that was cancelled.
type interruptedError struct{ resumable bool }

func (e interruptedError) Error() string {
	if e.resumable {
		return "interrupted; run the same command to resume"
	}
	return "interrupted; running the same command again sends what is missing"
}

// Unwrap makes it an interruption for main's exit code.
func (interruptedError) Unwrap() error { return context.Canceled }

// runImport is `playhead import`. Progress and refused lines go to stderr, the closing
// line to stdout. Cancelling ctx stops it, resumable.
func runImport(ctx context.Context, args []string, env func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	opts, err := parseImport(args, env, stderr)
	if err != nil {
		return err
	}
	complain := func(err error) error {
		fmt.Fprintln(stderr, "playhead import:", err)
		return errUsage
	}
	cfg := opts.cfg
	if cfg.URL, cfg.Key, err = opts.server.choose(env); err != nil {
		return complain(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = cfg.Lanes
	defer transport.CloseIdleConnections()
	cfg.Transport = transport
	cfg.UserAgent = "playhead-import/" + version

	im, err := importer.New(cfg, importer.NewProgress(stderr, isTerminal(stderr)))
	if err != nil {
		return complain(err)
	}
	var sources []importer.Source
	for _, name := range opts.files {
		if name == "-" {
			sources = append(sources, importer.Source{Name: "standard input", Reader: stdin})
		} else {
			sources = append(sources, importer.Source{Path: name})
		}
	}

	summary, err := im.Run(ctx, sources)
	fmt.Fprintln(stdout, summary)
	switch {
	case ctx.Err() != nil:
		return interruptedError{resumable: cfg.StateDir != ""}
	case err != nil:
		return explainImport(err)
	case summary.Failed > 0:
		return fmt.Errorf("%d events were not imported; the lines are named above", summary.Failed)
	}
	return nil
}

// explainImport adds what to do about the error of a run.
func explainImport(err error) error {
	if _, ok := errors.AsType[*importer.LineError](err); ok {
		return errors.New("stopped at the first line that cannot be imported; mend it and run the same command again, or give --on-error=skip")
	}
	if errors.Is(err, importer.ErrGaveUp) {
		return fmt.Errorf("%w; run the same command to resume", err)
	}
	if status, ok := errors.AsType[*importer.StatusError](err); ok {
		if status.Param == httpapi.ParamLane {
			return fmt.Errorf("%w; give --lane=live to a server that is older than this program", err)
		}
		switch status.Status {
		case http.StatusUnauthorized:
			return fmt.Errorf("%w; give a valid key by --key or PLAYHEAD_KEY", err)
		case http.StatusForbidden:
			return fmt.Errorf("%w; the key needs the scope ingest", err)
		case http.StatusNotFound:
			return fmt.Errorf("%w; is the url that of a Playhead server?", err)
		}
	}
	return err
}

// importOptions is the parsed command line.
type importOptions struct {
	cfg    importer.Config // without URL and Key
	files  []string
	server serverFlags
}

// parseImport reads the command line. Whatever is wrong with it has been printed when it
// returns errUsage.
func parseImport(args []string, env func(string) string, stderr io.Writer) (*importOptions, error) {
	opts := &importOptions{cfg: importer.DefaultConfig()}
	cfg := &opts.cfg
	onError, lane := "stop", httpapi.LaneBackfill

	fs := flag.NewFlagSet("playhead import", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, importUsage)
		fs.PrintDefaults()
		fmt.Fprint(stderr, importExitCodes)
	}
	opts.server.register(fs, env, "ingest")
	fs.StringVar(&cfg.StateDir, "state-dir", defaultStateDir(), "`folder` for positions to resume from; \"\" keeps none")
	fs.BoolVar(&cfg.Restart, "restart", false, "begin from the first line, whatever an interrupted import has sent")
	fs.StringVar(&onError, "on-error", onError, "at a line that cannot be imported: `stop`, or skip it and go on")
	fs.StringVar(&lane, "lane", lane, "backfill, which has a quota of its own and makes way for live appends, or `live`")
	fs.IntVar(&cfg.Lanes, "lanes", cfg.Lanes, "requests in flight; one session's events never overtake each other")
	fs.IntVar(&cfg.BatchEvents, "batch-events", cfg.BatchEvents, "events a request, at most")
	fs.IntVar(&cfg.BatchBytes, "batch-bytes", cfg.BatchBytes, "bytes a request before compression, at most")
	fs.DurationVar(&cfg.RequestTimeout, "timeout", cfg.RequestTimeout, "for the answer to one request; then it is retried")
	fs.DurationVar(&cfg.RetryFor, "retry-for", cfg.RetryFor, "give up after a request has failed for so long; 0 retries nothing")

	var err error
	if opts.files, err = parseInterspersed(fs, args); errors.Is(err, flag.ErrHelp) {
		return nil, err
	} else if err != nil {
		return nil, errUsage // the flag package has said why
	}
	complain := func(format string, args ...any) (*importOptions, error) {
		fmt.Fprintf(stderr, "playhead import: "+format+"\n", args...)
		return nil, errUsage
	}
	if onError != "stop" && onError != "skip" {
		return complain("--on-error is %q; want stop or skip", onError)
	}
	cfg.SkipErrors = onError == "skip"
	if lane != httpapi.LaneBackfill && lane != httpapi.LaneLive {
		return complain("--lane is %q; want %s or %s", lane, httpapi.LaneBackfill, httpapi.LaneLive)
	}
	cfg.Live = lane == httpapi.LaneLive
	if len(opts.files) == 0 {
		return complain("no file given; playhead import -h has the usage")
	}
	stdins := 0
	for _, name := range opts.files {
		if name == "-" {
			stdins++
		}
	}
	if stdins > 1 {
		return complain("standard input (-) is given more than once")
	}
	return opts, nil
}

// parseInterspersed parses flags before, between and after the other arguments, and
// returns those. After "--" nothing is a flag.
func parseInterspersed(fs *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		left := fs.Args()
		if consumed := len(args) - len(left); consumed > 0 && args[consumed-1] == "--" {
			return append(rest, left...), nil
		}
		if len(left) == 0 {
			return rest, nil
		}
		rest, args = append(rest, left[0]), left[1:]
	}
}

// readDevFile reads what playhead dev leaves for other commands on its machine.
func readDevFile(path string) (*devState, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	dev := new(devState)
	if err := json.Unmarshal(text, dev); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return dev, nil
}

// defaultStateDir is "" where there is no home to keep anything in.
func defaultStateDir() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "playhead", "import")
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
