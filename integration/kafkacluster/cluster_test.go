package kafkacluster_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/playhead-dev/playhead/integration/kafkacluster"
	"github.com/playhead-dev/playhead/internal/kafka"
)

const topic = "t"

// produce writes one record to a topic, acknowledged by all replicas in sync.
func produce(t *testing.T, cl *kgo.Client, value string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr()
}

// consume reads n values of a topic from its start.
func consume(t *testing.T, c *kafkacluster.Cluster, n int) (values []string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.ConsumeTopics(topic))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(values) < n && ctx.Err() == nil {
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

// TestCluster takes one cluster through all that it can do: a start costs seconds.
func TestCluster(t *testing.T) {
	installation := kafkacluster.Need(t)
	began := time.Now()
	c, err := kafkacluster.Start(t.Context(), installation, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	step := func(what string) { t.Logf("%v: %s", time.Since(began).Round(time.Millisecond), what) }
	step("started")
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.RequiredAcks(kgo.AllISRAcks()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := c.Admin().CreateTopic(ctx, 1, -1, nil, topic); err != nil {
		t.Fatal(err)
	}
	want := []string{"three are there"}
	wantProduced := func(value string) {
		t.Helper()
		if err := produce(t, cl, value); err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		want = append(want, value)
		step(value)
	}
	if err := produce(t, cl, want[0]); err != nil {
		t.Fatal(err)
	}

	leader, err := c.Leader(ctx, topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	if leader.Running() || leader.Pid() != 0 {
		t.Error("a killed broker runs")
	}
	wantProduced("the leader is dead")
	if err := c.Await(ctx); err == nil {
		t.Error("a cluster with a dead broker counts as whole")
	}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Await(ctx); err != nil {
		t.Fatal(err)
	}
	step("whole")

	if leader, err = c.Leader(ctx, topic, 0); err != nil {
		t.Fatal(err)
	}
	follower := c.Broker(leader.Number()%kafkacluster.Brokers + 1)
	if err := follower.Pause(); err != nil {
		t.Fatal(err)
	}
	wantProduced("a follower hangs")
	if err := follower.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := c.Await(ctx); err != nil {
		t.Fatal(err)
	}
	step("whole")

	if err := leader.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	wantProduced("the leader is stopped")
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Await(ctx); err != nil {
		t.Fatal(err)
	}
	step("whole")
	if got := consume(t, c, len(want)); !slices.Equal(got, want) {
		t.Errorf("the topic holds %q, want %q", got, want)
	}

	checkUsers(ctx, t, c)

	// A member that nobody said goodbye for, and a group with offsets.
	member, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers()...), kgo.ConsumerGroup("g"), kgo.ConsumeTopics(topic))
	if err != nil {
		t.Fatal(err)
	}
	member.PollFetches(ctx)
	member.CloseAllowingRebalance()
	if err := c.Wipe(ctx); err != nil {
		t.Fatal(err)
	}
	topics, err := c.Admin().ListTopics(ctx)
	if err != nil || len(topics) != 0 {
		t.Errorf("topics after a wipe: %v, %v", topics.Names(), err)
	}
	groups, err := c.Admin().ListGroups(ctx)
	if err != nil || len(groups) != 0 {
		t.Errorf("groups after a wipe: %v, %v", groups.Groups(), err)
	}
}

// checkUsers uses the secure door: by a right name and password, with the rights that were
// given.
func checkUsers(ctx context.Context, t *testing.T, c *kafkacluster.Cluster) {
	t.Helper()
	if err := c.AddUser(ctx, "reader", "right"); err != nil {
		t.Fatal(err)
	}
	reads := kafkacluster.ACL{User: "reader", Resource: kmsg.ACLResourceTypeTopic, Name: topic, Operation: kmsg.ACLOperationRead}
	if err := c.Allow(ctx, reads); err != nil {
		t.Fatal(err)
	}
	client := func(password string) *kgo.Client {
		cfg := kafka.DefaultConfig()
		cfg.Brokers = c.SecureBrokers()
		cfg.TLS = kafka.TLSConfig{Enabled: true, CAFile: c.CAFile()}
		cfg.SASL = kafka.SASLConfig{Mechanism: kafka.SASLScramSHA512, Username: "reader", Password: password}
		opts, err := cfg.Options()
		if err != nil {
			t.Fatal(err)
		}
		cl, err := kgo.NewClient(append(opts, kgo.RequestRetries(0))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		return cl
	}
	if _, err := kadm.NewClient(client("wrong")).ListTopics(ctx); !errors.Is(err, kerr.SaslAuthenticationFailed) {
		t.Errorf("with a wrong password: %v, want %v", err, kerr.SaslAuthenticationFailed)
	}
	cl := client("right")
	topics, err := kadm.NewClient(cl).ListTopics(ctx)
	if err != nil || len(topics) != 1 {
		t.Errorf("the reader sees %v, %v; want %s", topics.Names(), err, topic)
	}
	if err := produce(t, cl, "not allowed"); !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.ClusterAuthorizationFailed) {
		t.Errorf("the reader writes: %v, want a refusal", err)
	}
	if err := c.Revoke(ctx, reads); err != nil {
		t.Fatal(err)
	}
	if topics, err := kadm.NewClient(client("right")).ListTopics(ctx); err != nil || len(topics) != 0 {
		t.Errorf("without its right the reader sees %v, %v", topics.Names(), err)
	}
}

func TestFindNamesWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"PLAYHEAD_KAFKA_DIR": dir}
	if _, err := kafkacluster.Find(func(k string) string { return env[k] }); !errors.Is(err, kafkacluster.ErrMissing) {
		t.Errorf("without jars: %v, want %v", err, kafkacluster.ErrMissing)
	}
	jars := filepath.Join(dir, kafkacluster.Version)
	if err := os.MkdirAll(jars, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(jars, "jars.sha256"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env["JAVA_HOME"] = dir
	if _, err := kafkacluster.Find(func(k string) string { return env[k] }); !errors.Is(err, kafkacluster.ErrMissing) {
		t.Errorf("without java: %v, want %v", err, kafkacluster.ErrMissing)
	}
	java := filepath.Join(dir, "bin", "java")
	if err := os.MkdirAll(filepath.Dir(java), 0o700); err != nil {
		t.Fatal(err)
	}
	for version, want := range map[string]error{"11.0.2": kafkacluster.ErrMissing, "1.8.0_402": kafkacluster.ErrMissing, "17.0.1": nil, "25": nil} {
		script := "#!/bin/sh\necho 'openjdk version \"" + version + "\"' >&2\n"
		if err := os.WriteFile(java, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := kafkacluster.Find(func(k string) string { return env[k] }); !errors.Is(err, want) {
			t.Errorf("java %s: %v, want %v", version, err, want)
		}
	}
}
