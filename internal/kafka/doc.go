// Package kafka is how Playhead reaches its log: connection settings shared by every
// client (Config), the topics (EnsureTopics), random access to the events topic (Log)
// and the embedded broker of `playhead dev` (Embedded).
//
// Everything speaks Kafka's protocol: embedded and production differ in addresses only.
package kafka
