package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/playhead-dev/playhead/integration/cluster"
)

// report is a campaign's.
type report struct {
	Seed   uint64         `json:"seed"`
	Nodes  int            `json:"nodes"`
	Rounds []*roundReport `json:"rounds"`

	Faults      int            `json:"faults"`
	KillPoints  int            `json:"kill_points"`
	ByFault     map[string]int `json:"by_fault"`
	ByKillPoint map[string]int `json:"by_kill_point"`
	Marks       map[string]int `json:"marks"`

	Total cluster.Verdict `json:"total"`
}

// roundReport is what one round came to.
type roundReport struct {
	Seed        uint64         `json:"seed"`
	Seconds     float64        `json:"seconds"` // of breaking things
	Faults      int            `json:"faults"`
	KillPoints  int            `json:"kill_points"` // processes killed
	ByFault     map[string]int `json:"by_fault"`
	ByKillPoint map[string]int `json:"by_kill_point"`

	// Marks are lines of the nodes' logs that tell what the materialiser found after a blow.
	Marks map[string]int `json:"marks"`
	// EndedByThemselves counts nodes that gave up, as one does that starts without a Kafka.
	EndedByThemselves int `json:"ended_by_themselves"`

	// Timeline is what was done when, in seconds of the journal's clock.
	Timeline []string `json:"timeline"`

	Verdict *cluster.Verdict `json:"verdict"`
	Broken  []string         `json:"broken,omitempty"`  // what did not recover, or stop
	Skipped []string         `json:"skipped,omitempty"` // faults that cannot be had here, and why
	Dir     string           `json:"dir,omitempty"`     // kept
}

func newReport(cfg config) *report {
	return &report{
		Seed: cfg.seed, Nodes: cfg.nodes, ByFault: make(map[string]int), ByKillPoint: make(map[string]int), Marks: make(map[string]int),
	}
}

func newRoundReport(seed uint64) *roundReport {
	return &roundReport{
		Seed: seed, ByFault: make(map[string]int), ByKillPoint: make(map[string]int), Marks: make(map[string]int),
		Verdict: &cluster.Verdict{},
	}
}

// OK reports whether every promise was kept.
func (r *roundReport) OK() bool { return len(r.Broken) == 0 && r.Verdict.OK() }

// Outcome is the round in a line.
func (r *roundReport) Outcome() string {
	if r.OK() {
		return "ok; " + r.Verdict.String()
	}
	return "FAILED; " + r.Verdict.String()
}

// OK reports whether every round was.
func (r *report) OK() bool {
	return !slices.ContainsFunc(r.Rounds, func(one *roundReport) bool { return !one.OK() })
}

func (r *report) add(one *roundReport) {
	r.Rounds = append(r.Rounds, one)
	r.Faults += one.Faults
	r.KillPoints += one.KillPoints
	for into, from := range map[*map[string]int]map[string]int{&r.ByFault: one.ByFault, &r.ByKillPoint: one.ByKillPoint, &r.Marks: one.Marks} {
		for k, n := range from {
			(*into)[k] += n
		}
	}
	r.Total.Add(one.Verdict)
}

// print writes the report for people.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d rounds from seed %d on, %d nodes: %d faults, %d of them kill points\n\n", len(r.Rounds), r.Seed, r.Nodes, r.Faults, r.KillPoints)
	table := func(head string, counts map[string]int) {
		fmt.Fprintf(w, "%s\n", head)
		for _, k := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(w, "  %6d  %s\n", counts[k], k)
		}
		fmt.Fprintln(w)
	}
	table("faults", r.ByFault)
	table("kill points by the materialiser's table of crashes", byRow(r.ByKillPoint))
	table("kill points", r.ByKillPoint)
	table("what partitions' next owners said", r.Marks)
	t := &r.Total
	for _, line := range []struct {
		name string
		n    any
	}{
		{"acknowledged", t.Acknowledged},
		{"lost", t.Lost},
		{"doubled", t.Doubled},
		{"reordered", t.Reordered},
		{"wrong answers", t.Wrong},
		{"alarms in logs", t.Alarms},
		{"seen by listeners and pages", t.Shown},
		{"connections of listeners", t.Connections},
		{"of unknown outcome", t.Unknown},
		{"records in the log", t.Records},
		{"of these repeats", t.Repeats},
		{"rows in the history", t.Rows},
		{"requests", t.Requests},
		{"refused for now", t.Refused},
		{"unanswered", t.Unanswered},
		{"longest outage of a listener, s", fmt.Sprintf("%.1f", t.LongestOutage)},
		{"longest outage of an append, s", fmt.Sprintf("%.1f", t.LongestAppend)},
	} {
		fmt.Fprintf(w, "%-34s %v\n", line.name, line.n)
	}
	for _, one := range r.Rounds {
		for _, s := range one.Skipped {
			fmt.Fprintf(w, "seed %d was without %s\n", one.Seed, s)
		}
		if one.OK() {
			continue
		}
		fmt.Fprintf(w, "\nseed %d failed; its directory is %s\n", one.Seed, one.Dir)
		for _, line := range one.Timeline {
			fmt.Fprintf(w, "  %s\n", line)
		}
		for _, b := range one.Broken {
			fmt.Fprintf(w, "  %s\n", b)
		}
		for _, f := range one.Verdict.Findings {
			fmt.Fprintf(w, "  %s: %s\n", f.Where, f.What)
		}
	}
}

// byRow sums kill points by the row of the table of crashes (docs/architecture.md) that
// they fall into.
func byRow(kills map[string]int) map[string]int {
	rows := make(map[string]int)
	for kill, n := range kills {
		rows[rowOf(kill)] += n
	}
	return rows
}

func rowOf(kill string) string {
	what, how, _ := strings.Cut(kill, ": ")
	moment, whom, _ := strings.Cut(how, ", ")
	late := strings.HasSuffix(whom, "comes late")
	answered := strings.HasSuffix(moment, "the answer")
	switch {
	case what == "intent commit" && !answered && !late:
		return "1 before the intent's commit"
	case what == "intent commit", what == "insert" && moment == cluster.BeforeRequest.String() && !late && whom == "kill node":
		return "2 after the intent, before the insert"
	case what == "insert" && late:
		return "3b the insert comes when its sender is dead"
	case what == "insert" && whom == "kill clickhouse":
		return "4 clickhouse dies in the insert"
	case what == "insert" && !answered:
		return "3 during the insert"
	case what == "insert" && moment == cluster.BeforeAnswer.String():
		return "5 inserted, answer lost"
	case what == "insert", what == "plain commit":
		return "6 inserted and answered, commit lost"
	case what == "count of a range":
		return "7 while a range is settled"
	default:
		return "8 elsewhere: " + what
	}
}
