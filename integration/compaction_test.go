package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/integration/kafkacluster"
	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// TestControlTopicIsCompacted has Kafka compact the control topic under nodes that follow it:
// those that run go on, and one that starts reads, across the gaps, what they know.
func TestControlTopicIsCompacted(t *testing.T) {
	if !kafkacluster.Asked(t) {
		t.Skip("the embedded broker does not compact the control topic (make test-kafka)")
	}
	p := startParts(t)
	a := p.serve(t, "")
	var configs []kadm.AlterConfig
	for name, value := range map[string]string{"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "min.compaction.lag.ms": "0"} {
		configs = append(configs, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value})
	}
	altered, err := p.cluster.Admin().AlterTopicConfigs(t.Context(), configs, schema.TopicControl)
	if err == nil {
		_, err = altered.On(schema.TopicControl, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	status, body := a.do(http.MethodPost, "/v1/keys", "application/json", `{"scopes":["read"]}`)
	var key struct{ Key string }
	if err := json.Unmarshal(body, &key); err != nil || status != http.StatusCreated {
		t.Fatalf("key: %d %s", status, body)
	}

	cfg := kafka.DefaultConfig()
	cfg.Brokers = p.cluster.Brokers()
	topic, err := kafka.OpenTopic(t.Context(), cfg, schema.TopicControl)
	if err != nil {
		t.Fatal(err)
	}
	defer topic.Close()
	limit := 0
	eventually(t, 2*time.Minute, "the topic has gaps", func() error {
		limit++
		patch := fmt.Sprintf(`{"streams_per_key":%d}`, limit)
		if status, b := a.do(http.MethodPatch, "/admin/v1/limits", "application/json", patch); status != http.StatusOK {
			t.Fatalf("limits: %d %s", status, b)
		}
		start, end, err := topic.Bounds(t.Context(), 0)
		if err != nil {
			return err
		}
		var records int64
		if _, err := topic.Read(t.Context(), 0, start, end, func(*kgo.Record) error { records++; return nil }); err != nil {
			return err
		}
		if records > end-20 {
			return fmt.Errorf("%d records up to offset %d", records, end)
		}
		t.Logf("%d records up to offset %d", records, end)
		return nil
	})

	b := p.serve(t, "")
	for _, s := range []*server{a, b} {
		if got := getJSON[struct {
			Limits map[string]float64 `json:"limits"`
		}](s, "/v1/limits").Limits["streams_per_key"]; got != float64(limit) {
			t.Errorf("streams_per_key is %v, want %d", got, limit)
		}
	}
	b.key = key.Key
	if status, body := b.do(http.MethodGet, "/v1/limits", "", ""); status != http.StatusOK {
		t.Errorf("a key that was made before all that: %d %s", status, body)
	}
}
