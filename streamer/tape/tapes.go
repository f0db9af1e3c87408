package tape

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/schema"
)

// Log answers where a partition of the events topic begins and ends.
type Log interface {
	// Bounds returns the log start offset and the last stable offset.
	Bounds(ctx context.Context, partition uint16) (start, end int64, err error)
	// HighWatermark returns the end of the partition, no older than the call.
	HighWatermark(ctx context.Context, partition uint16) (int64, error)
	// OffsetForTime returns the first offset whose record was appended at ms (Unix) or
	// later, or the end of the partition.
	OffsetForTime(ctx context.Context, partition uint16, ms int64) (int64, error)
}

// Consumer reads the records of partitions that come and go. *kgo.Client is one.
type Consumer interface {
	PollFetches(ctx context.Context) kgo.Fetches
	AddConsumePartitions(partitions map[string]map[int32]kgo.Offset)
	RemoveConsumePartitions(partitions map[string][]int32)
	SetOffsets(offsets map[string]map[int32]kgo.EpochOffset)
	Close()
}

// Tapes are the tapes of one node. A partition is followed from its first use until
// nobody has asked for it for Config.IdleAfter; one Kafka client reads them all.
type Tapes struct {
	cfg        Config
	epoch      uint8
	partitions int
	placement  func(workspace string) schema.Placement
	log        Log
	past       Past
	client     Consumer
	metrics    *Metrics
	erased     schema.ErasedBelow
	logger     *slog.Logger
	now        func() time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the reader, and openings under way

	mu     sync.Mutex // guards tapes and closed
	tapes  map[uint16]*opening
	closed bool
}

// opening is a tape, or the wait for one.
type opening struct {
	ready chan struct{} // closed by follow when tape or err is set
	tape  *Tape
	err   error
	left  chan struct{} // made when the tape begins to be given up, closed by drop at the end; guarded by Tapes.mu
}

// Deps are the parts a Tapes works with.
type Deps struct {
	Kafka      []kgo.Opt // how to reach the brokers
	Consumer   Consumer  // in place of a client of them, for simulations; nil: there is none
	Log        Log
	Past       Past
	Epoch      uint8
	Partitions int // of the events topic
	// Placement says where a workspace's sessions lie; records elsewhere are left out.
	Placement func(workspace string) schema.Placement
	// Erased says which events the tapes leave out; nil: none. When it comes to know of
	// more, call Tapes.Erase.
	Erased  schema.ErasedBelow
	Metrics *Metrics
	Logger  *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Start returns the tapes of a node and starts their reader. The caller ends them by
// Close.
func Start(cfg Config, d Deps) (*Tapes, error) {
	client := d.Consumer
	if client == nil {
		var err error
		if client, err = newClient(cfg, d.Kafka); err != nil {
			return nil, fmt.Errorf("tape reader: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &Tapes{
		cfg: cfg, epoch: d.Epoch, partitions: d.Partitions, placement: d.Placement, log: d.Log, past: d.Past,
		client: client, metrics: d.Metrics, erased: d.Erased, logger: d.Logger, now: d.Now,
		ctx: ctx, cancel: cancel, tapes: make(map[uint16]*opening),
	}
	if t.now == nil {
		t.now = time.Now
	}
	t.wg.Go(t.read)
	return t, nil
}

// newClient returns the client that reads all tapes' partitions.
func newClient(cfg Config, kafka []kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that Next passes transaction markers
		kgo.FetchMaxBytes(int32(cfg.FetchMaxBytes)),
		kgo.FetchMaxPartitionBytes(int32(min(cfg.FetchMaxBytes, 4<<20))),
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.FetchMinBytes(1),
	}, kafka...)...)
}

// Close stops the reader and fails every tape with ErrClosed, as will later Opens.
func (t *Tapes) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
	t.client.Close()
	for _, tape := range t.open() {
		tape.fail(ErrClosed)
	}
}

// ErrClosed is the error of tapes after Close.
var ErrClosed = errors.New("tape is closed")

// Open returns the partition's tape. The first use starts following it and waits
// until it has warmed up (dedupe window, recent events) and passed the end the
// partition had then; later calls return at once.
func (t *Tapes) Open(ctx context.Context, partition uint16) (*Tape, error) {
	if int(partition) >= t.partitions {
		return nil, fmt.Errorf("partition %d: the log has %d", partition, t.partitions)
	}
	for {
		o, err := t.opening(partition)
		if err != nil {
			return nil, err
		}
		if err := await(ctx, o.ready); err != nil {
			return nil, err
		}
		if o.err != nil {
			return nil, o.err
		}
		if left := t.use(o); left != nil { // it is being given up just now
			if err := await(ctx, left); err != nil {
				return nil, err
			}
			continue
		}
		if err := o.tape.warm(ctx); err != nil {
			return nil, err
		}
		return o.tape, nil
	}
}

func await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// opening returns the partition's, begun if there is none.
func (t *Tapes) opening(partition uint16) (*opening, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	o := t.tapes[partition]
	if o == nil {
		o = &opening{ready: make(chan struct{})}
		t.tapes[partition] = o
		// Not on the caller's time: others wait for it too, and the caller may go away.
		t.wg.Go(func() { t.follow(o, partition) })
	}
	return o, nil
}

// use keeps the tape from being given up as idle for now, or returns what says when that
// is done.
func (t *Tapes) use(o *opening) (left <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o.left == nil {
		o.tape.used.Store(true)
	}
	return o.left
}

// Current returns the partition's tape once it holds all that was in the log when the call
// began, and where the log ended then.
func (t *Tapes) Current(ctx context.Context, partition uint16) (*Tape, int64, error) {
	tape, err := t.Open(ctx, partition)
	if err != nil {
		return nil, 0, err
	}
	// The end is asked for after the call began, and before the wait for it.
	end, err := t.log.HighWatermark(ctx, partition)
	if err != nil {
		return nil, 0, err
	}
	return tape, end, tape.WaitFor(ctx, end)
}

// follow makes an opening's tape and places the reader at the start of its warm-up.
func (t *Tapes) follow(o *opening, partition uint16) {
	defer close(o.ready)
	p, err := t.warmUp(t.ctx, partition)
	if err != nil {
		o.err = fmt.Errorf("open tape of partition %d: %w", partition, err)
		t.mu.Lock()
		delete(t.tapes, partition) // the next use tries again
		t.mu.Unlock()
		return
	}
	o.tape = newTape(t.cfg, t.epoch, partition, p.from, p.start, t.past, t.metrics)
	o.tape.warmAt, o.tape.erased = p.end, t.erased
	t.logger.Info("tape opened", "partition", partition, "offset", p.from, "start", p.start, "end", p.end)
	t.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{
		schema.TopicEvents: {int32(partition): kgo.NewOffset().At(p.from)},
	})
}

// warmUpPlan says where a tape's reader begins.
type warmUpPlan struct {
	from  int64 // first record to read: a record at start may repeat it
	start int64 // first record of the tape: the first of the last MaxAge
	end   int64 // the partition's end
}

// warmUp plans a tape that has the last MaxAge of events and judges every one of them
// as all other readers do.
func (t *Tapes) warmUp(ctx context.Context, partition uint16) (warmUpPlan, error) {
	first, end, err := t.log.Bounds(ctx, partition)
	if err != nil {
		return warmUpPlan{}, err
	}
	oldest := t.now().Add(-t.cfg.MaxAge)
	start, err := t.log.OffsetForTime(ctx, partition, oldest.UnixMilli())
	if err != nil {
		return warmUpPlan{}, err
	}
	// Records may have come since the end was read: the tape begins at the end then.
	// More than MaxBytes does not fit on it. Nor may one record with a time to come, which
	// the question about the time finds first, have it begin at the start of the log.
	start = max(first, min(start, end), end-int64(t.cfg.MaxBytes/schema.MinEventSize))
	byAge, err := t.log.OffsetForTime(ctx, partition, oldest.Add(-t.cfg.Rule().WarmUpAge()).UnixMilli())
	if err != nil {
		return warmUpPlan{}, err
	}
	from := max(first, min(start, max(byAge, start-t.cfg.DedupeOffsets)))
	return warmUpPlan{from: from, start: start, end: end}, nil
}

// warm waits until the tape has passed the end it was opened at.
func (t *Tape) warm(ctx context.Context) error {
	if err := t.WaitFor(ctx, t.warmAt); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return nil
}

// open returns the tapes that are being followed.
func (t *Tapes) open() []*Tape {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*Tape
	for _, o := range t.tapes {
		select {
		case <-o.ready:
			if o.err == nil {
				out = append(out, o.tape)
			}
		default:
		}
	}
	return out
}

func (t *Tapes) lookup(partition int32) *Tape {
	t.mu.Lock()
	o := t.tapes[uint16(partition)]
	t.mu.Unlock()
	if o == nil {
		return nil
	}
	<-o.ready // follow adds the partition last
	return o.tape
}

// trimEvery is how often tapes on which nothing arrives shed what has grown old.
const trimEvery = time.Second

// read hands fetched records to their tapes until Close.
func (t *Tapes) read() {
	for t.ctx.Err() == nil {
		poll, cancel := context.WithTimeout(t.ctx, trimEvery)
		fetches := t.client.PollFetches(poll)
		cancel()
		nowMs := t.now().UnixMilli()
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if p.Topic != schema.TopicEvents {
				return // kgo reports the end of a poll as an error of no topic
			}
			tape := t.lookup(p.Partition)
			if tape == nil {
				return
			}
			if p.Err != nil {
				t.fetchFailed(tape, p.Err)
				return
			}
			tape.append(t.decode(tape, p.Records), nowMs)
		})
		for _, tape := range t.open() {
			tape.mu.Lock()
			tape.trim(nowMs)
			tape.mu.Unlock()
			t.dropIdle(tape)
		}
	}
}

// decode turns Kafka records into the tape's. It runs outside the tape's lock.
func (t *Tapes) decode(tape *Tape, records []*kgo.Record) []record {
	out := make([]record, len(records))
	for i, r := range records {
		ms := r.Timestamp.UnixMilli()
		out[i] = record{offset: r.Offset, timeMs: min(max(ms, 0), schema.MaxEventTimeMs)}
		if r.Attrs.IsControl() {
			continue
		}
		e, err := schema.DecodePlaced(schema.EventID{
			Position: schema.Position{Epoch: t.epoch, Partition: tape.partition, Offset: r.Offset},
			TimeMs:   ms,
		}, r.Headers, r.Value, t.placement)
		if err != nil {
			t.metrics.poison.Inc() // the materialiser keeps it, with its reason
			continue
		}
		out[i].event = &Entry{Event: *e}
	}
	t.metrics.records.Add(float64(len(records)))
	return out
}

// fetchFailed decides what a fetch error means: kgo retries what can be retried, so
// what comes here is a lost place, a deleted topic or the end of the client.
func (t *Tapes) fetchFailed(tape *Tape, err error) {
	if t.ctx.Err() != nil || errors.Is(err, kgo.ErrClientClosed) || errors.Is(err, context.DeadlineExceeded) {
		return
	}
	if bad, ok := errors.AsType[*kgo.ErrDecompressTooLarge](err); ok {
		t.passBatch(tape, bad)
		return
	}
	if !errors.Is(err, kerr.OffsetOutOfRange) && !isDataLoss(err) {
		t.logger.Warn("tape fetch", "partition", tape.partition, "error", err)
		return
	}
	// Retention or an unclean leader election took the reader's place away. The tape
	// ends; who listens moves to replay, and the next use opens a new one.
	t.metrics.resets.Inc()
	t.logger.Error("tape lost its place", "partition", tape.partition, "offset", tape.Next(), "error", err)
	t.drop(tape, fmt.Errorf("%w: %w", ErrLostPlace, err))
}

// passBatch goes on behind a batch that cannot be decompressed: its offsets hold no events.
func (t *Tapes) passBatch(tape *Tape, bad *kgo.ErrDecompressTooLarge) {
	t.metrics.poison.Inc()
	t.logger.Warn("batch cannot be read", "partition", tape.partition, "offset", bad.Offset, "next", bad.NextOffset)
	tape.append([]record{{offset: bad.NextOffset - 1, timeMs: tape.End().TimeMs}}, t.now().UnixMilli())
	t.client.SetOffsets(map[string]map[int32]kgo.EpochOffset{
		schema.TopicEvents: {int32(tape.partition): {Epoch: bad.Epoch, Offset: bad.NextOffset}},
	})
}

// dropIdle gives a tape up that nobody has used for long.
func (t *Tapes) dropIdle(tape *Tape) {
	t.mu.Lock() // so that nobody opens it between the look and the end
	idle := tape.idle(t.now(), t.cfg.IdleAfter)
	if idle {
		t.leave(tape)
	}
	t.mu.Unlock()
	if idle {
		t.logger.Info("tape closed", "partition", tape.partition)
		t.drop(tape, ErrIdle)
	}
}

// leave has those who open the tape's partition wait for drop; mu is held.
func (t *Tapes) leave(tape *Tape) {
	t.tapes[tape.partition].left = make(chan struct{})
}

// drop ends a tape with err. The next use of its partition opens a new one: once the
// reader has left the partition, or it would take the new one's place away.
func (t *Tapes) drop(tape *Tape, err error) {
	t.mu.Lock()
	o := t.tapes[tape.partition]
	if o.left == nil {
		t.leave(tape)
	}
	t.mu.Unlock()
	t.client.RemoveConsumePartitions(map[string][]int32{schema.TopicEvents: {int32(tape.partition)}})
	t.mu.Lock()
	delete(t.tapes, tape.partition)
	close(o.left)
	t.mu.Unlock()
	tape.fail(err)
}

// ErrIdle is the error of a tape that nobody had used for Config.IdleAfter.
var ErrIdle = errors.New("tape was not in use")

// ErrLostPlace is the error of a tape whose partition no longer holds the offset that
// was to be read next.
var ErrLostPlace = errors.New("tape lost its place in the partition")

func isDataLoss(err error) bool {
	var loss *kgo.ErrDataLoss
	return errors.As(err, &loss)
}
