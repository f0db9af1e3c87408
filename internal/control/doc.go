// Package control keeps what every node must agree on besides events: workspaces, API
// keys, the codes of event types, erasures and the epoch of the log. It lives in one compacted
// Kafka topic, playhead.control, of one partition, as JSON records that every node folds
// into memory and follows; a change is known everywhere within a second, without restart.
//
// A record's key says what it describes (workspace/<id>, key/<id>, event_type/<id>,
// erasure/<id>, epoch/<n>), its value is a JSON object with a field "v", the version of the format; a
// record without a value removes the thing. Records that cannot be read (another version,
// not JSON, an unknown kind) are counted, logged and skipped, so that an older node keeps
// working beside a newer one.
//
// Keys are stored as the SHA-256 of their text. The text is 32 random characters, so
// a plain hash is as good as a slow one: there is nothing to guess.
package control
