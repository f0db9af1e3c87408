package main

import (
	"fmt"
	"strconv"
	"strings"
)

// metrics are the server's counters by name and labels, as /metrics shows them.
type metrics map[string]float64

func (s *server) metrics() (metrics, error) {
	c, err := dial(s.addr)
	if err != nil {
		return nil, err
	}
	defer c.close()
	text, err := c.get("/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(string(text))
}

func parseMetrics(text string) (metrics, error) {
	m := make(metrics)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		space := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[space+1:], 64)
		if err != nil || space < 0 {
			return nil, fmt.Errorf("metrics: line %q", line)
		}
		m[line[:space]] = v
	}
	return m, nil
}

// since returns how much a counter has grown; name includes the labels.
func (m metrics) since(before metrics, name string) float64 { return m[name] - before[name] }
