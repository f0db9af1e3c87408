package importer

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const (
	barEvery  = 200 * time.Millisecond
	lineEvery = 5 * time.Second
	barWidth  = 24
	nameWidth = 28
	// troubleAfter is how long requests must fail before people are told: a short pause
	// that the server asked for is nothing to worry about.
	troubleAfter = time.Second
	clearLine    = "\r\x1b[K"
)

// Progress tells people how an import fares: on a terminal by a bar that is redrawn, else
// by a line every few seconds; and, as they happen, lines that were refused and the
// server's absences. It is safe for concurrent use.
type Progress struct {
	terminal bool

	mu     sync.Mutex // guards all below and the order of what is written
	out    io.Writer
	counts *counters
	began  time.Time // of the current source
	before int64     // events counted before the current source
	name   string
	size   int64        // bytes, 0 if not known
	read   func() int64 // bytes; nil before the first source
	bar    bool         // the bar stands on the last line
	absent time.Time    // since when the server has been absent, if that was told

	stop chan struct{} // closed by end
	done sync.WaitGroup
}

// NewProgress returns a Progress that writes to out.
func NewProgress(out io.Writer, terminal bool) *Progress {
	return &Progress{out: out, terminal: terminal}
}

// begin starts the regular reports; end stops them.
func (p *Progress) begin(counts *counters) {
	p.mu.Lock()
	p.counts, p.read = counts, nil
	p.mu.Unlock()
	p.stop = make(chan struct{})
	p.done.Go(func() {
		every := lineEvery
		if p.terminal {
			every = barEvery
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case now := <-tick.C:
				p.report(now)
			}
		}
	})
}

func (p *Progress) end() {
	close(p.stop)
	p.done.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

// source begins a new one. read is called from any goroutine.
func (p *Progress) source(name string, size int64, read func() int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name, p.size, p.read, p.began, p.before = name, size, read, time.Now(), p.counts.events()
}

// note writes one line.
func (p *Progress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.write(format, args...)
}

func (p *Progress) lineError(err *LineError) { p.note("%v", err) }

// trouble notes that requests have been failing since a time, now with err, and will be
// retried until another.
func (p *Progress) trouble(err error, since, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.absent.IsZero() || time.Since(since) < troubleAfter {
		return
	}
	p.absent = since
	p.write("%v; trying again until %s", err, until.Format("15:04:05"))
}

// recovered notes that a request got through.
func (p *Progress) recovered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.absent.IsZero() {
		return
	}
	p.write("the server takes events again, after %s", seconds(time.Since(p.absent)))
	p.absent = time.Time{}
}

func (p *Progress) report(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.read == nil {
		return
	}
	text := render(p.terminal, status{
		name: p.name, size: p.size, read: p.read(), events: p.counts.events() - p.before, elapsed: now.Sub(p.began),
	})
	if !p.terminal {
		fmt.Fprintln(p.out, text)
		return
	}
	p.clear()
	fmt.Fprint(p.out, text)
	p.bar = true
}

// write needs mu.
func (p *Progress) write(format string, args ...any) {
	p.clear()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// clear needs mu.
func (p *Progress) clear() {
	if p.bar {
		fmt.Fprint(p.out, clearLine)
		p.bar = false
	}
}

// status is one moment of one source.
type status struct {
	name       string
	size, read int64 // bytes as stored; size 0 if not known
	events     int64
	elapsed    time.Duration
}

// render writes a status in at most 100 columns. What has been read runs ahead of what
// is acknowledged by some batches, so the share is of what was read.
func render(bar bool, s status) string {
	parts := []string{shorten(s.name, nameWidth)}
	share := 0.0
	if s.size > 0 {
		share = min(1, float64(s.read)/float64(s.size))
		percent := fmt.Sprintf("%3.0f%%", 100*share)
		if bar {
			full := int(share * barWidth)
			percent = "[" + strings.Repeat("=", full) + strings.Repeat(" ", barWidth-full) + "] " + percent
		}
		parts = append(parts, percent)
	}
	parts = append(parts, thousands(s.events)+" events")
	if s.elapsed > 0 {
		parts = append(parts, thousands(int64(float64(s.events)/s.elapsed.Seconds()))+"/s")
	}
	if share > 0.01 && share < 1 {
		left := time.Duration(float64(s.elapsed) * (1 - share) / share)
		parts = append(parts, seconds(left)+" left")
	}
	return strings.Join(parts, "  ")
}

// shorten cuts the middle out of a name of more than limit characters.
func shorten(name string, limit int) string {
	r := []rune(name)
	if len(r) <= limit {
		return name
	}
	half := (limit - 1) / 2
	return string(r[:half]) + "…" + string(r[len(r)-half:])
}
