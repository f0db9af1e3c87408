package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// TestForeignTransactionsAreReadAsCommitted has another producer write to the log in
// transactions, of which it gives some up, beside appends: every reader shows what was
// committed, once, and none waits for the offsets in between.
func TestForeignTransactionsAreReadAsCommitted(t *testing.T) {
	p := startParts(t)
	s := p.serve(t, "")
	const session = "tx"
	s.append(session, `{"type":"said","payload":0}`)
	live := s.listen("/v1/sessions/"+session+"/events/stream?from=start", "")

	foreign, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(p.brokers, ",")...),
		kgo.TransactionalID("foreign"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	partition := schema.Placement{Partitions: 3, Shards: schema.DefaultShards}.Partition("ws_default", session)
	record := func(n int) *kgo.Record {
		e := &schema.Event{
			Workspace: "ws_default", Session: session, Type: "said",
			ContentType: schema.DefaultContentType, Payload: fmt.Append(nil, n),
		}
		return &kgo.Record{
			Topic: schema.TopicEvents, Partition: int32(partition), Key: schema.RecordKey(e.Workspace, e.Session),
			Value: e.Payload, Headers: schema.AppendHeaders([]kgo.RecordHeader(nil), e, fmt.Sprint("foreign-", n)),
		}
	}
	transaction := func(end kgo.TransactionEndTry, numbers ...int) {
		t.Helper()
		if err := foreign.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		var records []*kgo.Record
		for _, n := range numbers {
			records = append(records, record(n))
		}
		if err := foreign.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := foreign.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	transaction(kgo.TryCommit, 1, 2)
	transaction(kgo.TryAbort, 100, 101)
	s.append(session, `{"type":"said","payload":3}`)
	transaction(kgo.TryAbort, 102)
	transaction(kgo.TryCommit, 4)
	transaction(kgo.TryAbort, 103) // the log ends with what nobody sees
	want := []int{0, 1, 2, 3, 4}

	check := func(s *server) []string {
		t.Helper()
		var got []int
		var ids []string
		for _, e := range getJSON[page](s, "/v1/sessions/"+session+"/events?include=payload&pageSize=100").Data {
			var n int
			if err := json.Unmarshal(e.Payload, &n); err != nil {
				t.Fatal(err)
			}
			got, ids = append(got, n), append(ids, e.EventID)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("pages hold %v, want %v", got, want)
		}
		return ids
	}
	ids := check(s)
	live.awaitIDs(ids, 30*time.Second)
	if status, b := s.do(http.MethodPost, "/v1/sessions/other/events?ack=materialised", "application/json", `{"type":"said"}`); status != http.StatusOK {
		t.Errorf("ack=materialised: %d %s", status, b)
	}
	conn := p.clickhouse(t)
	eventually(t, 30*time.Second, "history holds what was committed", func() error {
		if n := count(t, conn, "session_id = '"+session+"'"); n != uint64(len(want)) {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})

	// History counts as complete up to the log's end, although no record lies there.
	eventually(t, 30*time.Second, "history has reached the end of the log", func() error {
		for _, m := range getJSON[struct {
			Data []struct {
				Partition int   `json:"partition"`
				LagEvents int64 `json:"lag_events"`
			} `json:"data"`
		}](s, "/v1/watermarks").Data {
			if m.LagEvents != 0 {
				return fmt.Errorf("%+v", m)
			}
		}
		return nil
	})
	res := s.open("/v1/sessions/"+session+"/export?format=ndjson", devKey, "")
	defer res.close()
	if behind := res.res.Header.Get("X-Playhead-Behind"); res.res.StatusCode != http.StatusOK || behind != "" {
		t.Errorf("export: %d, behind by %q", res.res.StatusCode, behind)
	}

	s.stop()
	check(p.serve(t, ""))
}
