package materializer

import (
	"context"
	"slices"
	"sync"
	"testing"
)

// memoryStore is a table in memory with the deduplication of ClickHouse: an insert
// whose token is known is acknowledged and not kept.
type memoryStore struct {
	mu     sync.Mutex
	tokens map[string]bool
	rows   map[uint16][]row
}

func newMemoryStore() *memoryStore {
	return &memoryStore{tokens: make(map[string]bool), rows: make(map[uint16][]row)}
}

func (s *memoryStore) insert(ctx context.Context, token string, b *batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if s.tokens[token] {
		return nil
	}
	s.tokens[token] = true
	for i := range b.len() {
		s.rows[b.partition] = append(s.rows[b.partition], b.row(i))
	}
	return nil
}

func (s *memoryStore) count(ctx context.Context, partition uint16, r offsetRange) (h held, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	offsets := make(map[int64]bool)
	for _, row := range s.rows[partition] {
		if row.offset >= r.start && row.offset < r.end && (r.maxMs == 0 || row.ms >= r.minMs && row.ms <= r.maxMs) {
			h.rows++
			offsets[row.offset] = true
		}
	}
	h.distinct = len(offsets)
	return h, context.Cause(ctx)
}

func (s *memoryStore) offsets(ctx context.Context, partition uint16, r offsetRange) (out []int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range s.rows[partition] {
		if row.offset >= r.start && row.offset < r.end {
			out = append(out, row.offset)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), context.Cause(ctx)
}

func (s *memoryStore) end(ctx context.Context, partition uint16, from int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := from
	for _, row := range s.rows[partition] {
		end = max(end, row.offset+1)
	}
	return end, context.Cause(ctx)
}

func (s *memoryStore) remove(ctx context.Context, partition uint16, r offsetRange, _ string) error {
	s.deleteRows(nil, partition, r.start, r.end)
	return context.Cause(ctx)
}

func (s *memoryStore) removed(ctx context.Context, _ string) error { return context.Cause(ctx) }

func (s *memoryStore) kill(ctx context.Context, _ string) error { return context.Cause(ctx) }

func (s *memoryStore) forgetTokens(*testing.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

func (s *memoryStore) deleteRows(_ *testing.T, partition uint16, from, to int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[partition] = slices.DeleteFunc(s.rows[partition], func(r row) bool { return r.offset >= from && r.offset < to })
}

func (s *memoryStore) types(_ *testing.T, partition uint16) map[int64]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[int64]string)
	for _, r := range s.rows[partition] {
		out[r.offset] = r.kind
	}
	return out
}

func (s *memoryStore) metadata(_ *testing.T, partition uint16, offset int64) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rows[partition] {
		if r.offset == offset {
			return r.metadata
		}
	}
	return nil
}
