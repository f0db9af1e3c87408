package control

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// recordVersion is the version of the format that this program writes and reads.
// Fields may be added to a version; a record of another version is skipped.
const recordVersion = 1

// Kinds of records, the part of the Kafka key before the slash.
const (
	kindWorkspace = "workspace"
	kindKey       = "key"
	kindEpoch     = "epoch"
	kindEventType = "event_type"
)

var (
	errUnknownKind    = errors.New("unknown kind")
	errUnknownVersion = errors.New("unknown version")
)

type workspaceRecord struct {
	V      int           `json:"v"`
	Name   string        `json:"name,omitempty"`
	Plan   Plan          `json:"plan"`
	Limits *limitsRecord `json:"limits,omitempty"` // absent: DefaultLimits
	Shards int           `json:"shards"`
}

// limitsRecord tells the limits that early records lack from those that are 0.
type limitsRecord struct {
	Limits
	EventStreamsPerKey      *int     `json:"event_streams_per_key"`
	EventsPerMinute         *int     `json:"events_per_minute"`
	BackfillEventsPerSecond *float64 `json:"backfill_events_per_second"`
}

func newLimitsRecord(l Limits) *limitsRecord {
	return &limitsRecord{
		Limits: l, EventStreamsPerKey: &l.EventStreamsPerKey, EventsPerMinute: &l.EventsPerMinute,
		BackfillEventsPerSecond: &l.BackfillEventsPerSecond,
	}
}

// limits fills in what the record lacks: the defaults, or nothing if the workspace was
// made without a limit on streams.
func (r *limitsRecord) limits() Limits {
	l := r.Limits
	var absent Limits
	if l.StreamsPerKey > 0 {
		absent = DefaultLimits()
	}
	if l.EventStreamsPerKey = absent.EventStreamsPerKey; r.EventStreamsPerKey != nil {
		l.EventStreamsPerKey = *r.EventStreamsPerKey
	}
	if l.EventsPerMinute = absent.EventsPerMinute; r.EventsPerMinute != nil {
		l.EventsPerMinute = *r.EventsPerMinute
	}
	if l.BackfillEventsPerSecond = absent.BackfillEventsPerSecond; r.BackfillEventsPerSecond != nil {
		l.BackfillEventsPerSecond = *r.BackfillEventsPerSecond
	}
	return l
}

type keyRecord struct {
	V         int      `json:"v"`
	Workspace string   `json:"workspace"`
	Name      string   `json:"name,omitempty"`
	SHA256    string   `json:"sha256"` // hex
	Scopes    []string `json:"scopes"`
	Session   string   `json:"session,omitempty"`
	Workflow  string   `json:"workflow,omitempty"`
	Browser   bool     `json:"browser,omitempty"`
	CreatedMs int64    `json:"created_ms"`
	CreatedBy string   `json:"created_by,omitempty"`
	ExpiresMs int64    `json:"expires_ms,omitempty"`
	RevokedMs int64    `json:"revoked_ms,omitempty"`
}

type epochRecord struct {
	V          int    `json:"v"`
	TopicID    string `json:"topic_id"` // hex
	Partitions int    `json:"partitions"`
	StartedMs  int64  `json:"started_ms"`
}

// same reports whether both records describe one life of the topic.
func (r epochRecord) same(q epochRecord) bool {
	return r.TopicID == q.TopicID && r.Partitions == q.Partitions
}

// storedKey is a key with the hash of its text.
type storedKey struct {
	Key
	hash keyHash
}

// splitRecordKey splits "kind/id".
func splitRecordKey(key []byte) (kind, id string, err error) {
	kind, id, ok := strings.Cut(string(key), "/")
	if !ok || id == "" {
		return "", "", fmt.Errorf("%w: key %s", errUnknownKind, schema.Quote(string(key)))
	}
	return kind, id, nil
}

// decodeValue reads a record's value after looking at its version.
func decodeValue(value []byte, into any) error {
	var head struct {
		V int `json:"v"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return fmt.Errorf("value is not a JSON object: %w", err)
	}
	if head.V != recordVersion {
		return fmt.Errorf("%w %d", errUnknownVersion, head.V)
	}
	return json.Unmarshal(value, into)
}

func decodeWorkspace(id string, value []byte) (Workspace, error) {
	var r workspaceRecord
	if err := decodeValue(value, &r); err != nil {
		return Workspace{}, err
	}
	w := Workspace{ID: id, Name: r.Name, Plan: r.Plan, Limits: DefaultLimits(), Shards: r.Shards}
	if r.Limits != nil {
		w.Limits = r.Limits.limits()
	}
	return w, w.validate()
}

func encodeWorkspace(w Workspace) ([]byte, error) {
	return json.Marshal(workspaceRecord{V: recordVersion, Name: w.Name, Plan: w.Plan, Limits: newLimitsRecord(w.Limits), Shards: w.Shards})
}

func decodeKey(id string, value []byte) (storedKey, error) {
	var r keyRecord
	if err := decodeValue(value, &r); err != nil {
		return storedKey{}, err
	}
	k := storedKey{Key: Key{
		ID: id, Workspace: r.Workspace, Name: r.Name, Session: r.Session, Workflow: r.Workflow, Browser: r.Browser,
		CreatedAt: fromMs(r.CreatedMs), CreatedBy: r.CreatedBy, ExpiresAt: fromMs(r.ExpiresMs), RevokedAt: fromMs(r.RevokedMs),
	}}
	hash, err := hex.DecodeString(r.SHA256)
	if err != nil || len(hash) != len(k.hash) {
		return storedKey{}, errors.New("sha256 is not 64 hex digits")
	}
	k.hash = keyHash(hash)
	if k.Scopes, err = ParseScopes(r.Scopes); err != nil {
		return storedKey{}, err
	}
	if r.Workspace == "" {
		return storedKey{}, errors.New("workspace is missing")
	}
	return k, nil
}

func encodeKey(k storedKey) ([]byte, error) {
	return json.Marshal(keyRecord{
		V: recordVersion, Workspace: k.Workspace, Name: k.Name, SHA256: hex.EncodeToString(k.hash[:]), Scopes: k.Scopes.Names(),
		Session: k.Session, Workflow: k.Workflow, Browser: k.Browser,
		CreatedMs: toMs(k.CreatedAt), CreatedBy: k.CreatedBy, ExpiresMs: toMs(k.ExpiresAt), RevokedMs: toMs(k.RevokedAt),
	})
}

func decodeEpoch(id string, value []byte) (uint8, epochRecord, error) {
	n, err := strconv.ParseUint(id, 10, 8)
	if err != nil || n == 0 {
		return 0, epochRecord{}, fmt.Errorf("epoch %s is not 1 to 255", schema.Quote(id))
	}
	var r epochRecord
	if err := decodeValue(value, &r); err != nil {
		return 0, epochRecord{}, err
	}
	if r.Partitions < 1 {
		return 0, epochRecord{}, fmt.Errorf("partitions is %d; want 1 or more", r.Partitions)
	}
	return uint8(n), r, nil
}

// toMs and fromMs keep the zero time as 0.
func toMs(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMs(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
