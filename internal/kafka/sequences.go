package kafka

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// sequences are what idempotent producers wrote last, found in the log's batches. Kafka
// makes its producers' state from the log after a crash; the embedded broker keeps it in a
// file that it writes when it stops in order, so that after a kill
//
//  1. a batch is on disk and its answer is lost,
//  2. its producer sends it again to the next broker,
//  3. which knows nothing of it and appends it a second time.
type sequences map[producerIn]*producerState

// producerIn is a producer as a partition knows it.
type producerIn struct {
	id        int64
	topic     string
	partition int
}

// producerState is what the broker keeps of a producer and partition, in the form of its
// file: the last batches, and the sequence number that comes next.
type producerState struct {
	ID        int64                    `json:"pid"`
	Topic     string                   `json:"topic"`
	Partition int                      `json:"partition"`
	Batches   [keptBatches]batchRecord `json:"entries"`
	Count     int                      `json:"count"`
	At        int                      `json:"at"` // where the next batch's entry goes
	Epoch     int16                    `json:"epoch"`
	Seen      bool                     `json:"seen"`
	Next      int32                    `json:"next_seq"`
}

// keptBatches is how many batches back a producer may repeat one: as many as Kafka lets a
// producer have under way (max.in.flight.requests.per.connection).
const keptBatches = 5

type batchRecord struct {
	First  int32 `json:"first_seq"`
	Next   int32 `json:"next_seq"`
	Offset int64 `json:"offset"`
}

// A batch's producer, further fields of its layout (see batchHead).
const (
	batchAttributesAt    = 21
	batchProducerAt      = 43
	batchProducerEpochAt = 51
	batchSequenceAt      = 53
	batchRecordsAt       = 57

	attributeControl = 0x20
	sequenceBound    = 1<<31 - 1 // sequence numbers begin again at 0 there, as the broker counts
)

// note takes the next whole batch of a partition.
func (s sequences) note(topic string, partition int, batch []byte) {
	id := int64(binary.BigEndian.Uint64(batch[batchProducerAt:]))
	first := int32(binary.BigEndian.Uint32(batch[batchSequenceAt:]))
	if id < 0 || first < 0 || binary.BigEndian.Uint16(batch[batchAttributesAt:])&attributeControl != 0 {
		return // not an idempotent producer's
	}
	epoch := int16(binary.BigEndian.Uint16(batch[batchProducerEpochAt:]))
	key := producerIn{id, topic, partition}
	p := s[key]
	if p == nil || p.Epoch != epoch {
		p = &producerState{ID: id, Topic: topic, Partition: partition, Epoch: epoch, Seen: true}
		s[key] = p
	}
	records := int64(int32(binary.BigEndian.Uint32(batch[batchRecordsAt:])))
	p.Next = int32((int64(first) + records) % sequenceBound)
	p.Batches[p.At] = batchRecord{first, p.Next, int64(binary.BigEndian.Uint64(batch))}
	p.At = (p.At + 1) % keptBatches
	p.Count = min(p.Count+1, keptBatches)
}

// save writes the broker's file. It need not survive a crash: it is made at each start.
func (s sequences) save(dir string) error {
	var file struct {
		Version int              `json:"version"`
		Windows []*producerState `json:"windows"`
	}
	file.Version = 1
	for _, p := range s {
		file.Windows = append(file.Windows, p)
	}
	slices.SortFunc(file.Windows, func(a, b *producerState) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	b, err := json.Marshal(file)
	path := filepath.Join(dir, "seq_windows.json")
	if err == nil {
		err = os.WriteFile(path+".tmp", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("producers' sequence numbers: %w", err)
	}
	return nil
}
