package cluster

import (
	"bytes"
	"fmt"
	"os"
	"sync"
)

// alarms are what no log of a node may say, whatever breaks around it: mistakes of ours,
// and losses that the node itself has found.
var alarms = []string{
	"panic: ", "fatal error: ", "WARNING: DATA RACE",
	"self-check found that table and log differ",
	"partition is stopped",
	"history has a gap",
	"history lacks rows below the committed offset",
	"tape lost its place",
}

// marks are lines that tell which step of the materialiser a blow has hit: what the next
// owner of the partition finds.
var marks = []string{
	"partition is being copied",
	"recovering an announced range",
	"action=done", "action=send", "action=send_new", "action=send_rest", "action=stop",
	"partition begins again from its committed state",
	"partition is given up with a range in doubt",
	"table holds rows beyond the committed offset",
}

// Marks lists what Output.Count counts.
func Marks() []string { return marks[:len(marks):len(marks)] }

// maxAlarmLines bounds the alarms that are kept word for word.
const maxAlarmLines = 20

// Output is what a process writes: kept in a file, and watched for alarms and marks.
type Output struct {
	path string

	mu     sync.Mutex // guards what follows
	file   *os.File
	rest   []byte // the line that is not complete
	counts map[string]int
	alarms []string
}

func openOutput(path string) (*Output, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	return &Output{path: path, file: f, counts: make(map[string]int)}, nil
}

// Write implements io.Writer.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return len(b), nil // the process is gone; nobody reads on
	}
	o.rest = append(o.rest, b...)
	for {
		i := bytes.IndexByte(o.rest, '\n')
		if i < 0 {
			break
		}
		o.line(o.rest[:i])
		o.rest = o.rest[i+1:]
	}
	if len(o.rest) > 64<<10 {
		o.rest = nil
	}
	return o.file.Write(b)
}

func (o *Output) line(l []byte) {
	for _, m := range marks {
		if says(l, m) {
			o.counts[m]++
		}
	}
	for _, a := range alarms {
		if bytes.Contains(l, []byte(a)) {
			o.counts[a]++
			if len(o.alarms) < maxAlarmLines {
				o.alarms = append(o.alarms, string(l))
			}
		}
	}
}

// says reports whether a line has a mark, whole.
func says(line []byte, mark string) bool {
	_, rest, found := bytes.Cut(line, []byte(mark))
	return found && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '"')
}

// note adds a line of ours.
func (o *Output) note(line string) {
	_, _ = o.Write([]byte(line + "\n")) // it is a note
}

// Count is how many lines said mark, one of marks.
func (o *Output) Count(mark string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts[mark]
}

// Alarms are the first lines that should not be there.
func (o *Output) Alarms() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.alarms...)
}

func (o *Output) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.file
	o.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// size is how much was written so far.
func (o *Output) size() int64 {
	info, err := os.Stat(o.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// maxSaid bounds what since returns.
const maxSaid = 2 << 10

// since is the end of what was written since size was that.
func (o *Output) since(size int64) string {
	b, err := os.ReadFile(o.path)
	if err != nil || int64(len(b)) < size {
		return ""
	}
	b = b[size:]
	return string(bytes.TrimSpace(b[max(0, len(b)-maxSaid):]))
}
