package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/playhead-dev/playhead/internal/simulation"
)

// simServer is ClickHouse in a simulation: a table, the deduplication log of its inserts,
// and the statements that run. An insert is kept whole or not at all, unless the server
// dies meanwhile. An insert with a token that is known is acknowledged and not kept; one with
// the query id of a statement that runs is refused.
type simServer struct {
	w *simulation.World
	s *simulation.Stream

	mu      sync.Mutex // guards what follows
	rows    map[uint16][]row
	copies  map[uint16]map[int64]int // rows by offset
	tokens  map[string]bool
	running map[string]*simStatement
	down    bool
	life    int // connections end with the server's life
}

// simStatement is an insert that runs.
type simStatement struct {
	rows    []row
	part    uint16
	killed  chan struct{} // closed by KILL
	kill    func()
	ended   chan struct{} // closed by whoever takes it out of simServer.running
	crashed bool          // the server died; guarded by simServer.mu
}

func newSimServer(w *simulation.World) *simServer {
	return &simServer{
		w: w, s: w.Stream("clickhouse"), rows: make(map[uint16][]row), copies: make(map[uint16]map[int64]int),
		tokens: make(map[string]bool), running: make(map[string]*simStatement),
	}
}

var (
	errSimDown    = errors.New("simulated clickhouse is down")
	errSimCrashed = errors.New("simulated clickhouse died")
	errSimLost    = errors.New("simulated answer was lost")
	errSimRunning = &clickhouse.Exception{Code: 216, Message: "query with this id is already running"}
	errSimRefused = &clickhouse.Exception{Code: 497, Message: "not enough privileges"}
)

// keep puts rows into the table. mu is held.
func (v *simServer) keep(partition uint16, rows []row) {
	if v.copies[partition] == nil {
		v.copies[partition] = make(map[int64]int)
	}
	for _, r := range rows {
		v.rows[partition] = append(v.rows[partition], r)
		v.copies[partition][r.offset]++
		if n := v.copies[partition][r.offset]; n > 1 {
			v.w.Failf("partition %d holds %d rows of offset %d", partition, n, r.offset)
		}
	}
}

// exec runs an insert to its end.
func (v *simServer) exec(token string, partition uint16, rows []row, takes time.Duration, life int) error {
	v.mu.Lock()
	switch {
	case v.down || v.life != life:
		v.mu.Unlock()
		return errSimDown
	case v.running[token] != nil:
		v.mu.Unlock()
		return errSimRunning
	}
	st := &simStatement{rows: rows, part: partition, killed: make(chan struct{}), ended: make(chan struct{})}
	st.kill = sync.OnceFunc(func() { close(st.killed) })
	v.running[token] = st
	v.mu.Unlock()
	timer := time.NewTimer(takes)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-st.killed:
		v.s.Rest(0, 20*time.Millisecond)
		if v.s.Chance(0.7) { // else it was about to end anyway
			v.mu.Lock()
			defer v.mu.Unlock()
			if !st.crashed {
				v.end(token, st)
			}
			v.w.Tracef("clickhouse", "%s is killed", token)
			return errSimCrashed
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if st.crashed {
		return errSimCrashed
	}
	v.end(token, st)
	if v.tokens[token] {
		v.w.Tracef("clickhouse", "%s is a repeat", token)
		return nil
	}
	v.tokens[token] = true
	v.keep(partition, rows)
	v.w.Tracef("clickhouse", "%s is kept, %d rows", token, len(rows))
	return nil
}

// end takes a statement out of those that run. mu is held.
func (v *simServer) end(token string, st *simStatement) {
	delete(v.running, token)
	close(st.ended)
}

// crash ends the server as a kill or a power loss does: what becomes of each insert that
// runs is for the seed. powerLoss also forgets tokens, which are never synced to disk.
func (v *simServer) crash(powerLoss bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down = true
	v.life++
	tokens := make([]string, 0, len(v.running))
	for token := range v.running {
		tokens = append(tokens, token)
	}
	slices.Sort(tokens)
	for _, token := range tokens {
		st := v.running[token]
		st.crashed = true
		v.end(token, st)
		known := v.tokens[token]
		what := v.s.IntN(5)
		switch {
		case known:
		case what == 0: // between the log of tokens and the part
			v.tokens[token] = true
		case what == 1: // kept, and not answered
			v.tokens[token] = true
			v.keep(st.part, st.rows)
		case what == 2 && len(st.rows) > 1: // a disk that failed
			v.tokens[token] = true
			v.keep(st.part, st.rows[:v.s.Between(1, len(st.rows)-1)])
		case what == 3 && powerLoss: // the part is kept and the token lost
			v.keep(st.part, st.rows)
		}
		v.w.Tracef("clickhouse", "dies during %s: outcome %d, token was known %v", token, what, known)
	}
	if powerLoss {
		clear(v.tokens)
	}
}

func (v *simServer) up() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down = false
}

// holds returns how many rows the table has of an offset.
func (v *simServer) holds(partition uint16, offset int64) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.copies[partition][offset]
}

// simStore is the table as one process reaches it.
type simStore struct {
	*simServer
	node    *simulation.Node
	streams []*simulation.Stream // by partition
	timeout time.Duration        // of one statement
	errors  float64              // how often a statement fails
	slow    float64              // how often one takes very long
}

var _ store = (*simStore)(nil)

func newSimStore(r *simRun, node *simulation.Node, timeout time.Duration) *simStore {
	s := &simStore{simServer: r.server, node: node, timeout: timeout, errors: r.errors, slow: r.slow}
	for p := range r.log.Placement.Partitions {
		s.streams = append(s.streams, r.w.Stream("%s/store%d", node.Name, p))
	}
	return s
}

// of returns the stream of the partition that a token names.
func (s *simStore) of(token string) *simulation.Stream {
	p, err := strconv.Atoi(strings.Split(token, "/")[2])
	if err != nil {
		panic(err)
	}
	return s.streams[p]
}

func (s *simStore) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, ErrStoreTimeout)
}

// takes is how long a piece of the way takes.
func (s *simStore) takes(stream *simulation.Stream, usual time.Duration) time.Duration {
	if stream.Fault(s.slow) {
		return stream.Duration(usual, 40*time.Second)
	}
	return stream.Duration(50*time.Microsecond, usual)
}

func (s *simStore) insert(ctx context.Context, token string, b *batch) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	stream := s.streams[b.partition]
	rows := make([]row, b.len())
	for i := range rows {
		rows[i] = b.row(i)
	}
	if err := s.node.Step(ctx, stream, 0, s.takes(stream, 5*time.Millisecond)); err != nil {
		return err
	}
	if stream.Fault(s.errors) {
		return errSimDown // nothing was sent
	}
	stream.Tracef("sends %s, %d rows", token, len(rows))
	s.mu.Lock()
	life := s.life
	s.mu.Unlock()
	there, running, back := s.takes(stream, 20*time.Millisecond), s.takes(stream, 100*time.Millisecond), s.takes(stream, 20*time.Millisecond)
	lost, torn := stream.Fault(s.errors), stream.Fault(0.5)
	answer := make(chan error, 1)
	s.w.Go(func() {
		time.Sleep(there)
		if torn && ctx.Err() != nil {
			return // the connection ended before all of the block was sent
		}
		err := s.exec(token, b.partition, rows, running, life)
		time.Sleep(back)
		if err == nil && lost {
			err = errSimLost
		}
		answer <- err
	})
	select {
	case err := <-answer:
		if dead := s.node.Gate(stream); dead != nil {
			return dead
		}
		stream.Tracef("is answered %s: %v", token, err)
		return err
	case <-ctx.Done():
		if dead := s.node.Gate(stream); dead != nil {
			return dead
		}
		stream.Tracef("gives up %s: %v", token, context.Cause(ctx))
		return context.Cause(ctx)
	}
}

// ask is what stands before every other statement.
func (s *simStore) ask(ctx context.Context, stream *simulation.Stream) error {
	if err := s.node.Step(ctx, stream, 0, s.takes(stream, 20*time.Millisecond)); err != nil {
		return err
	}
	if stream.Fault(s.errors) {
		return errSimLost
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errSimDown
	}
	return nil
}

func (s *simStore) count(ctx context.Context, partition uint16, r offsetRange) (h held, err error) {
	stream := s.streams[partition]
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.ask(ctx, stream); err != nil {
		return h, err
	}
	s.mu.Lock()
	for _, row := range s.rows[partition] {
		if row.offset >= r.start && row.offset < r.end && (r.maxMs == 0 || row.ms >= r.minMs && row.ms <= r.maxMs) {
			h.rows++
		}
	}
	for offset := range s.copies[partition] {
		if offset >= r.start && offset < r.end {
			h.distinct++
		}
	}
	s.mu.Unlock()
	return h, s.node.Step(ctx, stream, 0, s.takes(stream, 5*time.Millisecond))
}

func (s *simStore) offsets(ctx context.Context, partition uint16, r offsetRange) (out []int64, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.ask(ctx, s.streams[partition]); err != nil {
		return nil, err
	}
	s.mu.Lock()
	for offset := range s.copies[partition] {
		if offset >= r.start && offset < r.end {
			out = append(out, offset)
		}
	}
	s.mu.Unlock()
	slices.Sort(out)
	return out, nil
}

func (s *simStore) end(ctx context.Context, partition uint16, from int64) (int64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.ask(ctx, s.streams[partition]); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	end := from
	for offset := range s.copies[partition] {
		end = max(end, offset+1)
	}
	return end, nil
}

func (s *simStore) kill(ctx context.Context, token string) error {
	stream := s.of(token)
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.ask(ctx, stream); err != nil {
		return err
	}
	if stream.Fault(s.errors / 4) {
		return fmt.Errorf("kill: %w", errSimRefused)
	}
	s.mu.Lock()
	st := s.running[token]
	s.mu.Unlock()
	if st == nil {
		return nil
	}
	stream.Tracef("kills %s", token)
	st.kill()
	select {
	case <-st.ended:
	case <-ctx.Done():
	}
	return s.node.Step(ctx, stream, 0, s.takes(stream, 5*time.Millisecond))
}

var errSimRemoves = errors.New("simulated clickhouse removes nothing: nobody asks for a rebuild")

func (s *simStore) remove(context.Context, uint16, offsetRange, string) error { return errSimRemoves }

func (s *simStore) removed(context.Context, string) error { return errSimRemoves }
