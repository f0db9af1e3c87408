package main

// mutant is one way to break Playhead.
type mutant struct {
	name       string
	breaks     string // the rule that is broken
	file       string // relative to the module's folder
	from, to   string // from occurs in it once
	simulation string // the package whose simulation is to notice
}

const (
	copying   = "query/materializer"
	listening = "streamer"
)

// mutants are all there are.
func mutants() []mutant {
	return append(copyingMutants(), listeningMutants()...)
}

// copyingMutants break the way from the log into the table.
func copyingMutants() []mutant {
	return []mutant{
		{
			name: "commit-before-insert", breaks: "the offset is committed once the rows are kept",
			file: "query/materializer/worker.go", simulation: copying,
			from: `	if err := w.commit(); err != nil {
		return err
	}
	if err := w.insertOrSettle(w.batch); err != nil {
		return err
	}
	in := w.state.intent
	w.state.next, w.state.intent = in.End, Intent{}
`,
			to: `	in := w.state.intent
	w.state.next, w.state.intent = in.End, Intent{}
	if err := w.commit(); err != nil {
		return err
	}
	w.state.intent = in
	if err := w.insertOrSettle(w.batch); err != nil {
		return err
	}
	w.state.intent = Intent{}
`,
		},
		{
			name: "no-intent", breaks: "a range is announced before it is inserted",
			file: "query/materializer/worker.go", simulation: copying,
			from: `	if err := w.commit(); err != nil {
		return err
	}
	if err := w.insertOrSettle(w.batch); err != nil {
`,
			to: `	if err := w.insertOrSettle(w.batch); err != nil {
`,
		},
		{
			name: "no-fence", breaks: "who lost the partition commits nothing",
			file: "query/materializer/commit.go", simulation: copying,
			from: `return fmt.Errorf("%w (%w)", ErrFenced, err)`, to: `return nil`,
		},
		{
			name: "intent-ignored", breaks: "an announced range is settled first",
			file: "query/materializer/worker.go", simulation: copying,
			from: `	if !w.state.intent.IsZero() {
		if err := w.warmUp(`,
			to: `	w.state.intent = Intent{}
	if !w.state.intent.IsZero() {
		if err := w.warmUp(`,
		},
		{
			name: "intent-taken-for-done", breaks: "an announced range may not be in the table",
			file: "query/materializer/recover.go", simulation: copying,
			from: `		if err := w.finish(b); err != nil {
			return err
		}
`, to: ``,
		},
		{
			name: "intent-short-by-one", breaks: "an announced range ends behind its last record",
			file: "query/materializer/batch.go", simulation: copying,
			from: `End: b.end, Records: b.len()`,
			to:   `End: max(start+1, b.end-1), Records: b.len()`,
		},
		{
			name: "no-settling", breaks: "an insert in doubt is counted before it is sent again",
			file: "query/materializer/worker.go", simulation: copying,
			from: `	if err := w.pause(&first, "insert", err); err != nil {
		return err
	}
	return w.settle(b)
`,
			to: `	if err := w.pause(&first, "insert", err); err != nil {
		return err
	}
	w.state.intent.Attempt++
	if err := w.commit(); err != nil {
		return err
	}
	return w.insertOrSettle(b)
`,
		},
		{
			name: "insert-error-swallowed", breaks: "an insert that failed may not be in the table",
			file: "query/materializer/worker.go", simulation: copying,
			from: `	err := w.insert(b)
	if err == nil {
		return nil
	}
	first`,
			to: `	err := w.insert(b)
	if err == nil || answered(err) || w.hard.Err() == nil {
		return nil
	}
	first`,
		},
		{
			name: "same-token-for-ever", breaks: "a token that the server knows, without its rows, is used up",
			file: "query/materializer/settle.go", simulation: copying,
			from: `			in.Attempt++
`, to: ``,
		},
		{
			name: "rest-is-all", breaks: "of a range that is kept in part only the rest is sent",
			file: "query/materializer/settle.go", simulation: copying,
			from: `			rows = b.without(present)
			if rows.len() != b.len()-len(present) {`,
			to: `			if b.without(present).len() != b.len()-len(present) {`,
		},
		{
			name: "part-is-all", breaks: "a range is done when all of it is kept",
			file: "query/materializer/settle.go", simulation: copying,
			from: `	case h.rows == n:
		return actionDone`, to: `	case h.rows > 0:
		return actionDone`,
		},
		{
			name: "no-kill", breaks: "no statement of ours runs while a range is counted, nor afterwards under another token",
			file: "query/materializer/settle.go", simulation: copying,
			from: `	if err := w.store.kill(w.hard, in.token(w.epoch, w.partition)); err != nil {`,
			to:   `	if err := error(nil); err != nil {`,
		},
		{
			name: "watermark-too-high", breaks: "all below a watermark is in the table",
			file: "query/materializer/worker.go", simulation: copying,
			from: `w.published(w.partition, w.state.next)`, to: `w.published(w.partition, w.state.next+1)`,
		},
		{
			name: "revoked-without-waiting", breaks: "a partition goes to another when its worker has ended",
			file: "query/materializer/run.go", simulation: copying,
			from: `	m.end(topics[schema.TopicEvents], errRevoked)
`,
			to: `	go m.end(topics[schema.TopicEvents], errRevoked)
`,
		},
		{
			name: "letters-unkept", breaks: "what is no event gets a letter, however often that fails",
			file: "query/materializer/letters.go", simulation: copying,
			from: `		if err == nil {
			return true
		}
`, to: `		if err == nil || w.soft.Err() == nil {
			return true
		}
`,
		},
		{
			name: "ending-workers-forgotten", breaks: "a partition that is revoked during a stop is waited for",
			file: "query/materializer/run.go", simulation: copying,
			from: `			out = append(out, r)
`,
			to: `			out = append(out, r)
			delete(m.owned, uint16(p))
`,
		},
		{
			name: "dedupe-without-warm-up", breaks: "whoever begins in the log judges repeats as all others do",
			file: "query/materializer/recover.go", simulation: copying,
			from: `	_, err = w.read(from, next, func(r *kgo.Record) error {
		j.row(r)
		return nil
	})
`,
			to: `	_, err = w.read(from, next, func(*kgo.Record) error { return nil })
`,
		},
		{
			name: "warm-up-by-the-next-offset", breaks: "the offset to begin at may have no record",
			file: "query/materializer/recover.go", simulation: copying,
			from: `for at := next; at < end; {`, to: `for at := next; at < min(next+1, end); {`,
		},
		{
			name: "late-rows-ignored", breaks: "rows beyond the committed offset are looked for",
			file: "query/materializer/recover.go", simulation: copying,
			from: `	w.verifyBelow = end
`, to: ``,
		},
		{
			name: "silent-gap", breaks: "what retention took is said",
			file: "query/materializer/recover.go", simulation: copying,
			from: `	w.metrics.gapOffsets.Add(float64(offsets))
`, to: ``,
		},
		{
			name: "dedupe-offsets-short-by-one", breaks: "the dedupe rule's offsets are inclusive",
			file: "schema/dedupe.go", simulation: copying,
			from: `if id.Offset-s.offset > w.rule.Offsets {`, to: `if id.Offset-s.offset >= w.rule.Offsets {`,
		},
		{
			name: "dedupe-offsets-long-by-one", breaks: "the dedupe rule's offsets end",
			file: "schema/dedupe.go", simulation: copying,
			from: `if id.Offset-s.offset > w.rule.Offsets {`, to: `if id.Offset-s.offset > w.rule.Offsets+1 {`,
		},
		{
			name: "dedupe-forgets-too-soon", breaks: "a message id is kept as long as the rule says",
			file: "schema/dedupe.go", simulation: copying,
			from: `if now.Offset-s.offset <= w.rule.Offsets && now.TimeMs-s.ms <= keepMs {`,
			to:   `if now.Offset-s.offset < w.rule.Offsets && now.TimeMs-s.ms <= keepMs {`,
		},
		{
			name: "dedupe-looks-at-the-latest-only", breaks: "where times run back an earlier record may be nearer",
			file: "schema/dedupe.go", simulation: copying,
			from: `		n = s.older
`, to: `		return false
`,
		},
		{
			name: "dedupe-knows-no-erasures", breaks: "an erased session's message ids may be used again",
			file: "schema/dedupe.go", simulation: copying,
			from: `			delete(w.last, s.key)
		}
	}
}`, to: `			_ = s
		}
	}
}`,
		},
	}
}

// listeningMutants break the way from the log to a listener.
func listeningMutants() []mutant {
	return []mutant{
		{
			name: "resume-one-too-early", breaks: "a stream resumes behind its last event",
			file: "schema/cursor.go", simulation: listening,
			from: `return c.ID.Offset + 1, true`, to: `return c.ID.Offset, true`,
		},
		{
			name: "resume-one-too-late", breaks: "a stream resumes right behind its last event",
			file: "schema/cursor.go", simulation: listening,
			from: `return c.ID.Offset + 1, true`, to: `return c.ID.Offset + 2, true`,
		},
		{
			name: "evictions-not-counted", breaks: "a slow listener is told how much it has lost",
			file: "streamer/leg.go", simulation: listening,
			from: `		l.sub.dropped.Add(1)
`, to: `		_ = e
`,
		},
		{
			name: "evictions-counted-from-the-last", breaks: "what was sent already is not lost",
			file: "streamer/leg.go", simulation: listening,
			from: `e.ID.Offset >= l.pos.Offset && !e.Hidden()`, to: `e.ID.Offset >= l.pos.Offset-1 && !e.Hidden()`,
		},
		{
			name: "evictions-skipped-uncounted", breaks: "what left the tape before anybody counted is replayed",
			file: "streamer/subscription.go", simulation: listening,
			from: `l.pos.Offset < evicted && !uncounted && `, to: `l.pos.Offset < evicted && `,
		},
		{
			name: "seat-one-too-early", breaks: "a stream goes live when the tape covers its position",
			file: "streamer/tape/audience.go", simulation: listening,
			from: `from < t.evicted(scope)`, to: `from+1 < t.evicted(scope)`,
		},
		{
			name: "below-the-tape-unnoticed", breaks: "a live stream that fell off the tape is replayed",
			file: "streamer/subscription.go", simulation: listening,
			from: `	case l.pos.Offset < span.Evicted:
		t.below = true
		return false
`, to: ``,
		},
		{
			name: "tape-start-one-too-low", breaks: "what is evicted is below the tape's start",
			file: "streamer/tape/tape.go", simulation: listening,
			from: `		t.start = e.ID.Offset + 1
`, to: `		t.start = e.ID.Offset
`,
		},
		{
			name: "kafka-read-one-too-far", breaks: "a replay passes what it has read, not more",
			file: "streamer/chunk.go", simulation: listening,
			from: `	c.next.Offset = next
	cut :=`, to: `	c.next.Offset = next + 1
	cut :=`,
		},
		{
			name: "watermark-one-too-high", breaks: "nothing at or above the watermark is read from ClickHouse",
			file: "streamer/chunk.go", simulation: listening,
			from: `Offset: past.History.Watermark(t.Partition()),`, to: `Offset: past.History.Watermark(t.Partition()) + 1,`,
		},
		{
			name: "history-chunk-skips-one", breaks: "a replay's position moves behind what was sent",
			file: "streamer/erased.go", simulation: listening,
			from: `		rd.leg.pos.Offset++
`, to: `		rd.leg.pos.Offset += 2
`,
		},
		{
			name: "tape-takes-records-twice", breaks: "what is fetched again is on the tape already",
			file: "streamer/tape/tape.go", simulation: listening,
			from: `			continue // fetched again after a leader move
`, to: `			_ = r
`,
		},
		{
			name: "tape-shows-repeats", breaks: "a repeat never gets onto the tape",
			file: "streamer/tape/tape.go", simulation: listening,
			from: `		if duplicate {
			t.metrics.duplicates.Inc()
			continue
		}
`, to: `		_ = duplicate
`,
		},
		{
			name: "tape-without-warm-up", breaks: "a tape judges repeats as all others do",
			file: "streamer/tape/tapes.go", simulation: listening,
			from: `from := max(first, min(start, max(byAge, start-t.cfg.DedupeOffsets)))`, to: `from := max(start, min(byAge, 0))`,
		},
		{
			name: "replay-shows-misplaced", breaks: "a record in the wrong partition is nobody's event",
			file: "internal/sessionlog/reader.go", simulation: listening,
			from: `	e, err := schema.DecodePlaced(schema.EventID{
		Position: schema.Position{Epoch: r.Epoch, Partition: r.Partition, Offset: record.Offset},
		TimeMs:   record.Timestamp.UnixMilli(),
	}, record.Headers, record.Value, r.Placement)`,
			to: `	e, err := schema.DecodeRecord(schema.EventID{
		Position: schema.Position{Epoch: r.Epoch, Partition: r.Partition, Offset: record.Offset},
		TimeMs:   record.Timestamp.UnixMilli(),
	}, record.Headers, record.Value)`,
		},
		{
			name: "kafka-stands-in-blindly", breaks: "Kafka stands in for ClickHouse if it has what events may repeat",
			file: "streamer/chunk.go", simulation: listening,
			from: `	r.kafka.Strict = true
`, to: ``,
		},
		{
			name: "tape-judges-across-erasures", breaks: "a tape does not judge what lies before an erasure",
			file: "streamer/tape/read.go", simulation: listening,
			from: `e.ID.Offset < t.window.Fenced() || `, to: ``,
		},
		{
			name: "replay-forgets-its-window", breaks: "a dedupe window has no hole",
			file: "internal/sessionlog/reader.go", simulation: listening,
			from: `	if r.seenTo != from {
		r.window = nil // it would have a hole
	}
`, to: ``,
		},
		{
			name: "judge-beyond-its-window", breaks: "a tape says that it cannot judge what it has not seen",
			file: "streamer/tape/read.go", simulation: listening,
			from: `e.ID.Offset < t.judgedFrom || `, to: ``,
		},
		{
			name: "erased-stays-on-tape", breaks: "what is erased leaves the tape",
			file: "streamer/tape/erase.go", simulation: listening,
			from: `		t.removeErased(s)
`, to: ``,
		},
		{
			name: "erased-is-read-ahead", breaks: "a replay looks again when it sends",
			file: "streamer/erased.go", simulation: listening,
			from: `	if !erased.Erased(rd.event()) {
		return false
	}
	rd.advance()
	return true
`, to: `	return false
`,
		},
		{
			name: "other-legs-forgotten", breaks: "a cursor over several partitions names all of them",
			file: "streamer/leg.go", simulation: listening,
			from: `Offset: l.pos.Offset})
		}
	}
	return schema.AppendOthers`, to: `Offset: l.pos.Offset + 1})
		}
	}
	return schema.AppendOthers`,
		},
		{
			name: "woken-before-fresh", breaks: "a leg that has news is read",
			file: "streamer/leg.go", simulation: listening,
			from: `	l.fresh.Store(true)
	l.sub.Wake()
`, to: `	l.sub.Wake()
`,
		},
	}
}
