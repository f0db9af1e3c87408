package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// exportWorkspaceRows is how many rows of the workspace one export asks for.
const exportWorkspaceRows = 1_000_000

// exportRuns is how often each export is measured.
const exportRuns = 3

// historyExport is an export of a known number of rows.
type historyExport struct {
	name string
	path string
	rows int64
}

// historyExports lists what is exported: the long session, and a part of the workspace.
func historyExports(d *historyData) []historyExport {
	_, _, longEvents := d.longRange()
	// A part of the workspace ends at max_rows: nearly all rows of half the table are events.
	rows := min(exportWorkspaceRows, d.rows()/2)
	var all []historyExport
	for _, format := range []string{"ndjson", "csv", "arrow", "parquet"} {
		all = append(all,
			historyExport{"session, " + format, fmt.Sprintf("/v1/sessions/%s/export?format=%s", d.long(), format), longEvents},
			historyExport{"workspace, " + format, fmt.Sprintf("/v1/export?format=%s&max_rows=%d", format, rows), rows})
	}
	return all
}

// export reads an export to its end and returns its size, or why there is none.
func export(ctx context.Context, s *server, path string) (size int64, why string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+path, http.NoBody)
	if err != nil {
		return 0, "", fmt.Errorf("export: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+benchKey)
	req.Header.Set("Accept-Encoding", "identity") // or the client would ask for gzip by itself
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("export: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		return 0, fmt.Sprintf("not asked: the server answers %d %s", res.StatusCode, errorCode(body)), nil
	}
	if size, err = io.Copy(io.Discard, res.Body); err != nil {
		return size, "", fmt.Errorf("export: GET %s: %w", path, err)
	}
	return size, "", nil
}

// recordExports asks for every export once and returns the statements of each.
func (b *bench) recordExports(ctx context.Context, s *server, rec *recorder, d *historyData) ([]recording, error) {
	var all []recording
	for _, x := range historyExports(d) {
		rec.take()
		_, why, err := export(ctx, s, x.path)
		if err != nil {
			return nil, err
		}
		r := recording{pages: [][]asked{rec.take()}, why: why}
		if why == "" && len(r.pages[0]) == 0 {
			r.why = "it came without a statement to ClickHouse"
		}
		all = append(all, r)
	}
	return all, nil
}

// exportHistory measures exports beside the same statements straight to the engine.
func (b *bench) exportHistory(ctx context.Context, s *server, engine *straight, d *historyData, recorded []recording) error {
	c := b.report.comparison("History: exports", []string{"export", byEngine, ratio},
		"The long session, and the beginning of the workspace, over HTTP, one at a time, uncompressed but for what a format does by itself; read and thrown away. "+
			"Engine: the statements of such an export, one after the other. By turns, %d times.", exportRuns)
	for i, x := range historyExports(d) {
		if why := recorded[i].why; why != "" {
			c.note("%s: %s.", x.name, why)
			continue
		}
		for range exportRuns {
			begun := time.Now()
			size, why, err := export(ctx, s, x.path)
			if err == nil && why != "" {
				err = fmt.Errorf("%s: %s", x.name, why)
			}
			if err != nil {
				return err
			}
			ours := time.Since(begun)
			begun = time.Now()
			if _, err := engine.ask(ctx, recorded[i].pages[0]); err != nil {
				return err
			}
			theirs := time.Since(begun)
			name := fmt.Sprintf("%s, %s rows, %s statements", x.name, number(float64(x.rows)), number(float64(len(recorded[i].pages[0]))))
			c.add("export", name, "rows/s", float64(x.rows)/ours.Seconds())
			c.add(byEngine, name, "rows/s", float64(x.rows)/theirs.Seconds())
			c.add(ratio, name, "rows/s", theirs.Seconds()/ours.Seconds()).goal("at least 0.8")
			c.add("export", name, "MB", float64(size)/1e6)
			b.logf("%s: %s rows/s, engine %s", name, number(float64(x.rows)/ours.Seconds()), number(float64(x.rows)/theirs.Seconds()))
		}
	}
	return nil
}
