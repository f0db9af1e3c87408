// Package kafkacluster runs real Apache Kafka for tests: three brokers, each a controller
// too (KRaft), as processes of their own on loopback, with replication factor 3 and
// min.insync.replicas 2.
//
// scripts/fetch-kafka.sh installs what it runs; Need finds that. Start formats and starts a
// cluster in a directory, in some 5 s; Cluster.Wipe makes it as good as new in less than a
// second, so one serves many tests, one after the other. A Broker stops, is killed, paused
// and started again by its number.
//
// Each broker has two doors: one that anybody may use for anything (Cluster.Brokers), and
// one behind TLS and SASL/SCRAM-SHA-512 (Cluster.SecureBrokers), where a user may do what
// its access control lists say and nothing else.
package kafkacluster
