package kafkacluster

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Names of the listeners.
const (
	openListener       = "OPEN"
	secureListener     = "SECURE"
	controllerListener = "CONTROLLER"
)

// properties is a broker's configuration (server.properties).
type properties map[string]string

// configuration returns that of broker b: what a production cluster of three has, but
// smaller and with shorter delays.
func (c *Cluster) configuration(b *Broker) properties {
	var voters []string
	for _, other := range c.brokers {
		voters = append(voters, fmt.Sprintf("%d@%s", other.number, other.controller))
	}
	n := strconv.Itoa
	replicas, inSync := n(len(c.brokers)), n(min(2, len(c.brokers)))
	return properties{
		"process.roles":                  "broker,controller",
		"node.id":                        n(b.number),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"controller.listener.names":      controllerListener,
		"inter.broker.listener.name":     openListener,
		"listeners":                      openListener + "://" + b.open + "," + secureListener + "://" + b.secure + "," + controllerListener + "://" + b.controller,
		"listener.security.protocol.map": openListener + ":PLAINTEXT," + secureListener + ":SASL_SSL," + controllerListener + ":PLAINTEXT",
		"log.dirs":                       b.data(),

		// Of the secure door. Who comes by the open one is ANONYMOUS, and may do everything.
		"authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":           "User:ANONYMOUS",
		"listener.name.secure.sasl.enabled.mechanisms":        "SCRAM-SHA-512",
		"listener.name.secure.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.secure.ssl.keystore.type":              "PEM",
		"listener.name.secure.ssl.keystore.location":          c.keyStore(),
		"default.replication.factor":                          replicas,
		"min.insync.replicas":                                 inSync,
		"unclean.leader.election.enable":                      "false",
		"offsets.topic.replication.factor":                    replicas,
		"transaction.state.log.replication.factor":            replicas,
		"transaction.state.log.min.isr":                       inSync,
		"share.coordinator.state.topic.replication.factor":    replicas,
		"share.coordinator.state.topic.min.isr":               inSync,
		"offsets.topic.num.partitions":                        "3", // 50 take seconds to make
		"transaction.state.log.num.partitions":                "3",
		"share.coordinator.state.topic.num.partitions":        "3",
		"group.initial.rebalance.delay.ms":                    "0", // 3 s for the first member of every group
		"log.segment.delete.delay.ms":                         "1000",
		"log.cleaner.dedupe.buffer.size":                      "4194304",
		"log.cleaner.backoff.ms":                              "500",
		"log.index.size.max.bytes":                            "1048576", // preallocated for each segment
		"num.network.threads":                                 "2",
		"num.io.threads":                                      "4",
		"broker.heartbeat.interval.ms":                        "500",  // a broker that is gone or hangs
		"broker.session.timeout.ms":                           "5000", // is replaced after that long
		"controlled.shutdown.enable":                          "true",
		"listener.name.secure.ssl.client.auth":                "none",
	}
}

// write writes the properties to a file; no value may hold a line break or a backslash.
func (p properties) write(path string) error {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(p)) {
		b.WriteString(key + "=" + p[key] + "\n")
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}
