package materializer

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/playhead-dev/playhead/internal/kafka"
	"github.com/playhead-dev/playhead/schema"
)

// DeadLetters is where records that are no events are kept for people to look at.
type DeadLetters interface {
	// Keep returns nil once the letters are durable, or will never be, which it has said to
	// whom it concerns. Of letters with schema.ReasonWorkspace it leaves out those whose
	// workspace there is by now. Another error says to try again.
	Keep(ctx context.Context, letters []*schema.DeadLetter) error
}

// keepLetters has letters kept, however long Kafka is away. kept is false if the partition
// is to be given up meanwhile.
//
// Letters come before the intent: a range that is announced has its letters, so recovery
// owes none. A crash between the two leaves letters that the next owner writes once more;
// whoever reads them takes one for each position.
func (w *worker) keepLetters(letters []*schema.DeadLetter) (kept bool) {
	if len(letters) == 0 || w.letters == nil {
		return true
	}
	pause := backoff{random: w.random}
	for {
		err := w.letters.Keep(w.soft, letters)
		if err == nil {
			return true
		}
		if w.soft.Err() != nil {
			return false
		}
		w.metrics.retries.Inc()
		if !pause.quiet() {
			w.log.Warn("retrying", "doing", "keep dead letters", "error", err)
		}
		if !pause.wait(w.soft) {
			return false
		}
	}
}

// keepPassed keeps a letter of each batch that the tail has passed over.
func (w *worker) keepPassed(t *tail) {
	var letters []*schema.DeadLetter
	for _, bad := range t.passed {
		w.log.Warn("batch cannot be read", "offset", bad.Offset, "next", bad.NextOffset)
		letters = append(letters, unreadable(w.epoch, w.partition, bad))
	}
	t.passed = nil
	w.keepLetters(letters) // if not, the partition is given up below them
}

// unreadable returns the letter of a batch whose records nobody can have.
func unreadable(epoch uint8, partition uint16, bad *kgo.ErrDecompressTooLarge) *schema.DeadLetter {
	at := schema.Position{Epoch: epoch, Partition: partition, Offset: bad.Offset}
	why := fmt.Sprintf("the batch of offsets %d to %d cannot be decompressed, or to more than %d bytes",
		bad.Offset, bad.NextOffset-1, kafka.MaxBatchDecompressedBytes)
	l := schema.NewDeadLetter[kgo.RecordHeader](at, schema.Rejected(schema.ReasonUnreadable, why), -1, nil, nil, nil)
	l.Next = bad.NextOffset
	return l
}
