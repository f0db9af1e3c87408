// Command playhead is the whole of Playhead in one binary.
//
//	playhead dev                 everything on this machine, in a data directory
//	playhead serve               any set of roles against Kafka and ClickHouse
//	playhead import FILE…        append a file of events through the public API
//	playhead migrate             bring ClickHouse's tables to another version
//	playhead rebuild             make rows of the history anew from Kafka
//	playhead dead-letters        list records that are no events, and append them again
//	playhead version
//
// Exit codes: 0 done; 1 failed; 2 wrong usage; 130 interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/playhead-dev/playhead/internal/engine"
)

// version is set at the build by -ldflags.
var version = "devel"

const usage = `usage: playhead <command> [flags]

  dev           run everything on this machine, in a data directory
  serve         run roles against Kafka and ClickHouse
  import        append a file of events (NDJSON) through the public API
  migrate       bring the tables in ClickHouse to another version of the schema
  rebuild       make rows of the history anew from Kafka
  dead-letters  list records that are no events, and append them again
  version       print the version

playhead <command> -h lists a command's flags.
`

// errUsage marks errors of the command line, which exit with 2. Its message has been
// printed.
var errUsage = errors.New("wrong usage")

func main() {
	// The first signal ends run in order; once it has been seen, the next one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "playhead:", err)
		os.Exit(exitCode(err))
	}
}

func exitCode(err error) int {
	if errors.Is(err, context.Canceled) {
		return 130
	}
	return 1
}

// run is the program without the process: env reads one environment variable.
func run(ctx context.Context, args []string, env func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return errUsage
	}
	switch command, rest := args[0], args[1:]; command {
	case "dev":
		return runDev(ctx, rest, env, stdout, stderr)
	case "serve":
		return runServe(ctx, rest, env, stderr)
	case "import":
		return runImport(ctx, rest, env, stdin, stdout, stderr)
	case "migrate":
		return runMigrate(ctx, rest, env, stdout, stderr)
	case "rebuild":
		return runRebuild(ctx, rest, env, stdout, stderr)
	case "dead-letters":
		return runDeadLetters(ctx, rest, env, stdout, stderr)
	case "version", "-version", "--version":
		fmt.Fprintln(stdout, "playhead", version)
		return nil
	case "engine": // the child of playhead dev that holds the embedded ClickHouse
		return engine.ChildMain(ctx)
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	default:
		fmt.Fprintf(stderr, "playhead: unknown command %q\n\n%s", command, usage)
		return errUsage
	}
}
