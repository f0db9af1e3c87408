package kafka_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// childDirVariable makes TestMain run brokerChild instead of the tests.
const childDirVariable = "PLAYHEAD_TEST_BROKER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDirVariable); dir != "" {
		if err := brokerChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// brokerChild runs a broker and appends to it until it is killed, printing the value
// of each record after it was acknowledged.
func brokerChild(dir string) error {
	broker, err := kafka.StartEmbedded(dir, "127.0.0.1:0", 1, discard)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := kafka.EnsureTopics(ctx, broker.Config()); err != nil {
		return err
	}
	opts, err := broker.Config().Options()
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(append(opts, kgo.ProducerLinger(0))...)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		value := fmt.Sprintf("%d-%d", os.Getpid(), i)
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: schema.TopicEvents, Value: []byte(value)}).FirstErr(); err != nil {
			return err
		}
		fmt.Println(value)
	}
}

func TestKilledBrokerLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	var acked []string
	for range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDirVariable+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acked = append(acked, lines.Text())
			if n == 200 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // killed
	}
	if len(acked) < 600 {
		t.Fatalf("children acknowledged %d records, want at least 600", len(acked))
	}

	broker := start(t, dir, 1)            // the lock of a killed process is free
	defer func() { _ = broker.Close() }() // what counts was checked before
	l := openLog(t, broker.Config())
	at := 0
	_, err := l.Read(t.Context(), 0, 0, 1<<40, func(r *kgo.Record) error {
		// The last append of each life may be there without having been acknowledged.
		if at < len(acked) && string(r.Value) == acked[at] {
			at++
		}
		return nil
	})
	if err != nil || at != len(acked) {
		t.Errorf("the log holds %d of %d acknowledged records in order (%v)", at, len(acked), err)
	}
}
