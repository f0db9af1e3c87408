package main

import (
	"fmt"
	"slices"
	"strings"
)

// comparison is one table of the same measurements of several targets, side by side.
type comparison struct {
	Title   string      `json:"title"`
	Shape   string      `json:"shape"` // of the data and the load
	Targets []string    `json:"targets"`
	Rows    []*compared `json:"rows"`
	Notes   []string    `json:"notes,omitempty"` // what went wrong, and what to know
}

// compared is one figure of each target, measured once or more a run.
type compared struct {
	Name   string               `json:"name"`
	Unit   string               `json:"unit"`
	Goal   string               `json:"goal,omitempty"`
	Values map[string][]float64 `json:"values"` // by target; those that could not be measured are not there
}

func (r *report) comparison(title string, targets []string, shape string, args ...any) *comparison {
	c := &comparison{Title: title, Shape: fmt.Sprintf(shape, args...), Targets: targets}
	r.Comparisons = append(r.Comparisons, c)
	return c
}

// add records a target's value in the row of that name, which is made at the first.
func (c *comparison) add(target, name, unit string, value float64) *compared {
	i := slices.IndexFunc(c.Rows, func(r *compared) bool { return r.Name == name && r.Unit == unit })
	if i < 0 {
		i = len(c.Rows)
		c.Rows = append(c.Rows, &compared{Name: name, Unit: unit, Values: make(map[string][]float64)})
	}
	row := c.Rows[i]
	row.Values[target] = append(row.Values[target], value)
	return row
}

// addLatencies records the median and the 99th percentile in milliseconds, and returns
// the latter.
func (c *comparison) addLatencies(target, name string, l latencies) (p99 *compared) {
	l.sort()
	c.add(target, name+", p50", "ms", l.quantile(0.50))
	return c.add(target, name+", p99", "ms", l.quantile(0.99))
}

func (r *compared) goal(text string) { r.Goal = text }

// note records what a reader of the table has to know, once.
func (c *comparison) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(c.Notes, text) {
		c.Notes = append(c.Notes, text)
	}
}

func (c *comparison) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "\n### %s\n\n%s\n\n| what | unit | %s | goal |\n| --- | --- |%s --- |\n", c.Title, c.Shape,
		strings.Join(c.Targets, " | "), strings.Repeat(" ---: |", len(c.Targets)))
	for _, row := range c.Rows {
		fmt.Fprintf(b, "| %s | %s |", row.Name, row.Unit)
		for _, target := range c.Targets {
			fmt.Fprintf(b, " %s |", spread(row.Values[target]))
		}
		fmt.Fprintf(b, " %s |\n", row.Goal)
	}
	for _, note := range c.Notes {
		fmt.Fprintf(b, "\n- %s", note)
	}
	if len(c.Notes) > 0 {
		b.WriteByte('\n')
	}
}

// spread writes the median, and of several values the least and the greatest.
func spread(values []float64) string {
	switch len(values) {
	case 0:
		return "–"
	case 1:
		return number(values[0])
	}
	return fmt.Sprintf("%s (%s – %s)", number(median(values)), number(slices.Min(values)), number(slices.Max(values)))
}
