package kafka_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/playhead-dev/playhead/schema"
)

func TestTopicsAreMadeAsDocumented(t *testing.T) {
	_, c := startFake(t, 1, 3)
	c.Retention = time.Hour
	ensure(t, c)
	ensure(t, c) // existing ones are left as they are
	admin := kadm.NewClient(producer(t, c))
	topics, err := admin.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := func(topic string, partitions int, want map[string]string) {
		t.Helper()
		if got := len(topics[topic].Partitions); got != partitions {
			t.Errorf("%s has %d partitions, want %d", topic, got, partitions)
		}
		configs, err := admin.DescribeTopicConfigs(t.Context(), topic)
		if err != nil || len(configs) != 1 {
			t.Fatalf("describe %s: %v, %v", topic, configs, err)
		}
		got := map[string]string{}
		for _, kv := range configs[0].Configs {
			got[kv.Key] = kv.MaybeValue()
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s is %q, want %q", topic, k, got[k], v)
			}
		}
	}
	f(schema.TopicEvents, 3, map[string]string{"cleanup.policy": "delete", "retention.ms": "3600000", "max.message.bytes": "2097152"})
	f(schema.TopicControl, 1, map[string]string{"cleanup.policy": "compact"})
	f(schema.TopicDeadLetters, 1, map[string]string{"cleanup.policy": "delete"})
	f(schema.TopicPresence, 1, map[string]string{"cleanup.policy": "delete", "retention.ms": "600000", "segment.ms": "600000"})
}

func TestReplicasAreThoseAskedFor(t *testing.T) {
	for asked, want := range map[int]int{0: 3, 1: 1, 2: 2} { // 3 is this broker's default
		_, c := startFake(t, 3, 1)
		c.ReplicationFactor = asked
		ensure(t, c)
		topics, err := kadm.NewClient(producer(t, c)).ListTopics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for name, topic := range topics {
			if got := topic.Partitions.NumReplicas(); got != want {
				t.Errorf("replication factor %d: %s has %d replicas, want %d", asked, name, got, want)
			}
		}
	}
}
