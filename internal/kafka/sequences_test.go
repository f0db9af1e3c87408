package kafka_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/schema"
)

// TestKilledBrokerKnowsItsProducers sends batches again that the broker before has taken,
// as a producer does that has not heard so: they get the places that they have.
func TestKilledBrokerKnowsItsProducers(t *testing.T) {
	const batches = 7
	dir := t.TempDir()
	broker := start(t, dir, 1)
	cl := producer(t, broker.Config())
	for i := range batches {
		two := []*kgo.Record{
			{Topic: schema.TopicEvents, Value: fmt.Appendf(nil, "a%d", i)}, {Topic: schema.TopicEvents, Value: fmt.Appendf(nil, "b%d", i)},
		}
		if err := cl.ProduceSync(t.Context(), two...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	// What a kill leaves is what the files hold now.
	after := t.TempDir()
	if err := os.CopyFS(after, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	cl.Close()
	if err := broker.Close(); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(after, "partitions", schema.TopicEvents+"-0", "0.dat"))
	if err != nil {
		t.Fatal(err)
	}
	var sent [][]byte
	for len(log) > 0 {
		n := 12 + int(binary.BigEndian.Uint32(log[8:])) // the length counts what follows it
		sent, log = append(sent, log[:n]), log[n:]
	}
	next := start(t, after, 1)
	t.Cleanup(func() { _ = next.Close() }) // what counts was checked before
	again := producer(t, next.Config())
	id := topicID(t, again)
	for _, i := range []int{len(sent) - 1, len(sent) - 5} {
		batch := sent[i]
		want := int64(binary.BigEndian.Uint64(batch))
		binary.BigEndian.PutUint64(batch, 0) // producers count from 0
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis = -1, 5000
		topic := kmsg.NewProduceRequestTopic()
		topic.Topic, topic.TopicID = schema.TopicEvents, id
		part := kmsg.NewProduceRequestTopicPartition()
		part.Records = batch
		topic.Partitions = append(topic.Partitions, part)
		req.Topics = append(req.Topics, topic)
		res, err := req.RequestWith(t.Context(), again)
		if err != nil {
			t.Fatal(err)
		}
		got := res.Topics[0].Partitions[0]
		if got.ErrorCode != 0 || got.BaseOffset != want {
			t.Errorf("batch %d of %d again: error code %d, offset %d; want it at %d, where it lies", i, len(sent), got.ErrorCode, got.BaseOffset, want)
		}
	}
}

func topicID(t *testing.T, cl *kgo.Client) [16]byte {
	t.Helper()
	topics, err := kadm.NewClient(cl).ListTopics(t.Context(), schema.TopicEvents)
	if err != nil {
		t.Fatal(err)
	}
	return topics[schema.TopicEvents].ID
}
