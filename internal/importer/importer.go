package importer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// checkpointEvery is how much acknowledged work a crash of the importer may repeat.
	checkpointEvery = time.Second
	// readAhead is how many lines may wait between the reader and the dispatcher.
	readAhead = 16
)

// Importer imports sources one after the other. It serves one Run at a time.
type Importer struct {
	cfg      Config
	progress *Progress
}

// New returns an importer that tells progress how it fares, or why cfg is unusable.
func New(cfg Config, progress *Progress) (*Importer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Importer{cfg: cfg, progress: progress}, nil
}

// Run imports the sources in the order given and returns what became of their events,
// also when it fails. A later source begins when all of the earlier one is acknowledged.
//
// Lines that cannot be imported are told to the Progress. Unless SkipErrors is set, the
// first one ends the run with a *LineError: of the lines before it all are sent, of the
// lines after it only those that were in the same or another lane's request. Further
// errors are a *StatusError for an answer that no retry will change, an error matching
// ErrGaveUp after RetryFor, and ctx's cause when cancelled. After any of them another
// Run of the same sources goes on where this one was, from the checkpoints.
func (im *Importer) Run(ctx context.Context, sources []Source) (Summary, error) {
	began := time.Now()
	counts := new(counters)
	im.progress.begin(counts)
	defer im.progress.end()

	err := im.run(ctx, sources, counts)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return counts.summary(time.Since(began)), err
}

func (im *Importer) run(ctx context.Context, sources []Source, counts *counters) error {
	// All sources are looked at before the first is sent, so that a mistyped name costs
	// nothing.
	inputs := make([]*input, 0, len(sources))
	for _, src := range sources {
		in, err := inspect(src)
		if err != nil {
			return err
		}
		inputs = append(inputs, in)
	}
	s, err := newSender(im.cfg, counts, im.progress)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.hello(ctx); err != nil {
		return err
	}

	checkpoints := make([]*checkpoint, len(inputs))
	for i, in := range inputs {
		if checkpoints[i], err = im.openCheckpoint(s.workspace, in); err != nil {
			return err
		}
	}
	for i, in := range inputs {
		if err := im.importInput(ctx, in, checkpoints[i], s); err != nil {
			return err
		}
	}
	// Only now: had a later source been interrupted, the next run would have sent the
	// finished ones again, to no harm but for nothing.
	for _, c := range checkpoints {
		if err := c.remove(); err != nil {
			return err
		}
	}
	return nil
}

func (im *Importer) openCheckpoint(workspace string, in *input) (*checkpoint, error) {
	if im.cfg.StateDir == "" || !in.regular {
		return &checkpoint{}, nil
	}
	c, err := openCheckpoint(im.cfg.StateDir, workspace, in.identity)
	if err != nil {
		return nil, err
	}
	if im.cfg.Restart {
		c.state.Lines, c.state.Complete = 0, false
	}
	return c, nil
}

// importInput runs the pipeline of one source to its end.
func (im *Importer) importInput(ctx context.Context, in *input, c *checkpoint, s *sender) error {
	skip := c.state.Lines
	if c.state.Complete {
		im.progress.note("%s: an interrupted import has sent all of it already", in.name)
		s.counts.resumed.Add(skip)
		return nil
	}
	if skip > 0 {
		im.progress.note("%s: going on after line %s, up to which an interrupted import has sent it", in.name, thousands(skip))
		s.counts.resumed.Add(skip)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	body, err := in.open(groupCtx)
	if err != nil {
		return err
	}
	defer body.Close()
	im.progress.source(in.name, in.size, body.consumed)

	var (
		track  = newTracker(im.cfg.Lanes, skip)
		lanes  = newLanes(im.cfg, track)
		lines  = make(chan line, readAhead) // closed by the reader
		reader = lineReader{cfg: im.cfg, name: in.name, skip: skip, counts: s.counts, progress: im.progress}
	)
	var readErr error
	group.Go(func() error {
		defer close(lines)
		// Kept aside, not returned: what was read before the error is still to be sent.
		readErr = reader.run(groupCtx, body, lines)
		return nil
	})
	group.Go(func() error { return lanes.dispatch(groupCtx, lines) })
	for i := range lanes.queues {
		group.Go(func() error {
			for b := range lanes.queues[i] {
				if groupCtx.Err() != nil {
					return nil // stopped between two requests
				}
				if err := s.deliver(ctx, groupCtx.Done(), in.name, b); err != nil {
					return err
				}
				track.done(i)
			}
			return nil
		})
	}
	stopSaving := im.saveRegularly(c, track)
	err = group.Wait()
	saveErr := stopSaving()
	if err == nil {
		err = readErr
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // lanes that stop between two requests say nothing
	}
	if err != nil {
		return errors.Join(err, saveErr)
	}
	return c.complete(track.acknowledged())
}

// saveRegularly keeps c up to date until the function it returns is called, which saves
// a last time and returns the first error of saving.
func (im *Importer) saveRegularly(c *checkpoint, track *tracker) (stop func() error) {
	var (
		wg     sync.WaitGroup
		done   = make(chan struct{}) // closed by stop
		failed error
	)
	wg.Go(func() {
		tick := time.NewTicker(checkpointEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if failed = c.save(track.acknowledged()); failed != nil {
				im.progress.note("this import will not be resumable: %v", failed)
				return
			}
		}
	})
	return func() error {
		close(done)
		wg.Wait()
		if failed != nil {
			return nil // told already; it does not make the import fail
		}
		if err := c.save(track.acknowledged()); err != nil {
			return fmt.Errorf("keep the position to resume from: %w", err)
		}
		return nil
	}
}
