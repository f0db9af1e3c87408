package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// report is everything that was measured.
type report struct {
	About    about    `json:"about"`
	Sections []*table `json:"sections,omitempty"`

	Comparisons []*comparison `json:"comparisons,omitempty"`
}

// table is a section's measurements.
type table struct {
	Title string `json:"title"`
	Shape string `json:"shape"` // of the data and the load
	Rows  []*row `json:"rows"`
}

// row is one figure, measured once or more a run.
type row struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Goal   string    `json:"goal,omitempty"` // of DESIGN.md, in words
	Values []float64 `json:"values"`
}

func (r *report) section(title, shape string, args ...any) *table {
	t := &table{Title: title, Shape: fmt.Sprintf(shape, args...)}
	r.Sections = append(r.Sections, t)
	return t
}

// add records a value of the row of that name, which is made at the first.
func (t *table) add(name, unit string, value float64) *row {
	for _, r := range t.Rows {
		if r.Name == name && r.Unit == unit {
			r.Values = append(r.Values, value)
			return r
		}
	}
	r := &row{Name: name, Unit: unit, Values: []float64{value}}
	t.Rows = append(t.Rows, r)
	return r
}

// addLatencies records the median and the 99th percentile in milliseconds, and returns
// the latter.
func (t *table) addLatencies(name string, l latencies) (p99 *row) {
	l.sort()
	t.add(name+", p50", "ms", l.quantile(0.50))
	return t.add(name+", p99", "ms", l.quantile(0.99))
}

func (r *row) goal(text string) { r.Goal = text }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// number writes three significant digits, or all of a larger whole number in groups.
func number(v float64) string {
	if math.Abs(v) < 1000 {
		digits := 0
		if v != 0 {
			digits = max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
		}
		return strconv.FormatFloat(v, 'f', min(digits, 3), 64)
	}
	text := strconv.FormatFloat(math.Round(v), 'f', 0, 64)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func (r *report) writeJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func (r *report) writeMarkdown(w io.Writer) error {
	var b strings.Builder
	r.About.markdown(&b)
	for _, t := range r.Sections {
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n| what | median | least – greatest | goal |\n| --- | ---: | ---: | --- |\n", t.Title, t.Shape)
		for _, row := range t.Rows {
			fmt.Fprintf(&b, "| %s | %s %s | %s – %s | %s |\n", row.Name, number(median(row.Values)), row.Unit,
				number(slices.Min(row.Values)), number(slices.Max(row.Values)), row.Goal)
		}
	}
	r.About.contestants(&b)
	for _, c := range r.Comparisons {
		c.markdown(&b)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
