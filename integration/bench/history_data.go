package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/playhead-dev/playhead/schema"
)

// Shape of the data of the history benchmark. Every Kafka partition of the workspace holds
// as many offsets, 0 to perPartition-1, evenly over historyDays. What an offset holds
// follows from its number:
//
//	ends in 000      the end of a call session's life (a bookkeeping record)
//	ends in 001      the beginning of one (likewise)
//	ends in 007      an event of the partition's sparse session
//	mod 5000 is 13   an event of its very sparse session
//	even, in a range of the first partition: an event of the long session
//	any other        an event of one of the liveCalls call sessions under way
//
// A call session has a slot, 0 to liveCalls-1, and a generation: the slots' sessions
// succeed each other every callSpan offsets, staggered by callEvents, so that a session
// begins and one ends every callEvents offsets.
const (
	historyDays = 30
	liveCalls   = 200
	callEvents  = 1000 // of a call session, on average
	callSpan    = liveCalls * callEvents

	sparseEvery     = 1000
	sparseAt        = 7
	verySparseEvery = 5000
	verySparseAt    = 13

	longWanted   = 1_000_000
	longPerBlock = 499 // even offsets in 1,000 that do not end in 000

	historyWorkflows = 1000
	historyUsers     = 1_000_000 // values of the metadata key user, each on one event in so many
	historyPayload   = 250       // bytes, on average
)

// historyStart is the append time of offset 0. The days span two months, as ClickHouse
// partitions the table by month.
var historyStart = time.Date(2026, 1, 16, 0, 0, 0, 0, time.UTC)

// historyTypes are the common event types, in the order of their frequency; weights add
// up to 64.
var historyTypes = []struct {
	name   string
	weight int
}{
	{"mouse_move", 22}, {"keypress", 11}, {"scroll", 7}, {"agent.thought", 5}, {"tool.call", 4},
	{"tool.result", 4}, {"transcript.turn", 3}, {"page.load", 3}, {"memory.stored", 3}, {"mouse_down", 2},
}

// Types of one event in 10,000, and in 1,000,000.
const (
	seldomType = "fault.seldom"
	rareType   = "fault.rare"
)

var historyRegions = []string{"eu-west", "eu-north", "us-east", "us-west", "ap-south", "ap-east", "sa-east", "af-south"}

// historyData says what is in the table: whoever asks about it need not look.
type historyData struct {
	workspace    string
	placement    schema.Placement
	partitions   []uint16 // the workspace's, by shard
	perPartition int64    // offsets of each
}

// newHistoryData returns the data of rows rows, rounded up to whole thousands of each
// partition.
func newHistoryData(workspace string, partitions, rows int) historyData {
	d := historyData{workspace: workspace, placement: schema.Placement{Partitions: partitions, Shards: schema.DefaultShards}}
	d.partitions = d.placement.WorkspacePartitions(workspace)
	shards := int64(len(d.partitions))
	d.perPartition = (int64(rows) + shards*1000 - 1) / (shards * 1000) * 1000
	return d
}

func (d *historyData) rows() int64 { return d.perPartition * int64(len(d.partitions)) }

// timeMs is the append time of an offset, in every partition.
func (d *historyData) timeMs(offset int64) int64 {
	return historyStart.UnixMilli() + offset*historyLife.Milliseconds()/d.perPartition
}

const historyLife = historyDays * 24 * time.Hour

// longRange returns the offsets [from, to) in the first partition that hold the long
// session, and how many events it has: a million, or a fifth of a smaller partition.
func (d *historyData) longRange() (from, to, events int64) {
	blocks := (min(longWanted, d.perPartition/5) + longPerBlock - 1) / longPerBlock
	from = d.perPartition / 2 / 1000 * 1000
	return from, from + blocks*1000, blocks * longPerBlock
}

// longOffset returns the offset of the long session's event number i.
func (d *historyData) longOffset(i int64) int64 {
	from, _, _ := d.longRange()
	return from + i/longPerBlock*1000 + 2 + i%longPerBlock*2
}

// calls is how many call sessions a partition has.
func (d *historyData) calls() int64 {
	return (d.perPartition + 999 + (liveCalls-1)*callEvents + callSpan - 1) / callSpan * liveCalls
}

// callRange returns the offsets between which a call session lives. Those of the first
// generation may begin before the log does, those of the last end after it.
func (d *historyData) callRange(call int64) (from, to int64) {
	from = call/liveCalls*callSpan - 999 - call%liveCalls*callEvents
	return from, from + callSpan
}

// name returns a session's name: what, with a suffix by which it is placed in the shard.
func (d *historyData) name(what string, shard int) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("%s-%d", what, i); d.placement.Partition(d.workspace, name) == d.partitions[shard] {
			return name
		}
	}
}

func (d *historyData) call(i int64, shard int) string {
	return d.name(fmt.Sprintf("call-%05d", i), shard)
}
func (d *historyData) sparse(shard int) string     { return d.name("sparse", shard) }
func (d *historyData) verySparse(shard int) string { return d.name("very-sparse", shard) }
func (d *historyData) long() string                { return d.name("long", 0) }

// wholeCall returns a random call session that began and ended within the log.
func (d *historyData) wholeCall(r *rand.Rand) (name string, shard int, from, to int64) {
	for {
		i := r.Int64N(d.calls())
		if from, to := d.callRange(i); from >= 0 && to <= d.perPartition {
			shard := r.IntN(len(d.partitions))
			return d.call(i, shard), shard, from, to
		}
	}
}

// eventID returns the id of the record at an offset.
func (d *historyData) eventID(shard int, offset int64) schema.EventID {
	return schema.EventID{
		Position: schema.Position{Epoch: 1, Partition: d.partitions[shard], Offset: offset}, TimeMs: d.timeMs(offset),
	}
}

// after returns the cursor of a session's page that begins behind an offset.
func (d *historyData) after(shard int, offset int64) string {
	return schema.Cursor{ID: d.eventID(shard, offset)}.String()
}

// at returns the cursor of a page of several sessions that begins at an offset of every
// partition: all of them hold as much at any time.
func (d *historyData) at(offset int64) string {
	next := make([]schema.NextOffset, 0, len(d.partitions))
	for _, p := range slices.Sorted(slices.Values(d.partitions)) {
		next = append(next, schema.NextOffset{Partition: p, Offset: offset})
	}
	return schema.CursorAt(1, next, d.timeMs(max(offset-1, 0))).String()
}

// somewhere returns a random offset that has depth others before and behind it, or a
// quarter of a small partition's.
func (d *historyData) somewhere(r *rand.Rand, depth int64) int64 {
	depth = min(depth, d.perPartition/4)
	return depth + r.Int64N(d.perPartition-2*depth)
}
