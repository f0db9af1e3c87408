package archtest

import (
	"strings"
	"testing"
)

// layer says what the non-test code below one folder may import of this module, and of
// others. A package may always import its own layer.
type layer struct {
	dir    string
	ours   []string // folders of this module
	others []string // import paths of other modules; nil allows all
}

// layers is the table of the tree, first match wins.
var layers = []layer{
	{dir: "schema", ours: nil, others: []string{"github.com/zeebo/xxh3", "github.com/go-json-experiment/json"}},
	{dir: "ingest", ours: []string{"schema", "internal"}},
	{dir: "streamer", ours: []string{"schema", "internal"}},
	{dir: "query", ours: []string{"schema", "internal"}},
	{dir: "internal", ours: []string{"schema"}},
	{dir: "cmd", ours: []string{"schema", "ingest", "streamer", "query", "internal"}},
	{dir: "integration", ours: []string{"schema", "ingest", "streamer", "query", "internal", "cmd"}},
}

func (l layer) allows(path string) bool {
	if rel, ours := strings.CutPrefix(path, modulePath+"/"); ours {
		if under(rel, l.dir) {
			return true
		}
		for _, dir := range l.ours {
			if under(rel, dir) {
				return true
			}
		}
		return false
	}
	first, _, _ := strings.Cut(path, "/")
	if standard := !strings.Contains(first, "."); standard || l.others == nil {
		return true
	}
	for _, other := range l.others {
		if under(path, other) {
			return true
		}
	}
	return false
}

func TestImportsFollowTheTable(t *testing.T) {
	tr := loadTree(t)
	for _, f := range tr.files {
		var l *layer
		for i := range layers {
			if under(f.dir, layers[i].dir) {
				l = &layers[i]
				break
			}
		}
		if l == nil {
			t.Errorf("%s: its folder has no row in the table of layers", f.path)
			continue
		}
		if f.test {
			// Tests may use any other module, but of ours no more than the code.
			l = &layer{dir: l.dir, ours: l.ours}
		}
		for _, path := range f.imports() {
			if !l.allows(path) {
				t.Errorf("%s: imports %s, which %s may not", f.path, path, l.dir)
			}
		}
	}
}

func TestLayerAllows(t *testing.T) {
	rows := map[string]layer{}
	for _, l := range layers {
		rows[l.dir] = l
	}
	f := func(dir, path string, want bool) {
		t.Helper()
		if got := rows[dir].allows(path); got != want {
			t.Errorf("%s importing %s: allowed = %v, want %v", dir, path, got, want)
		}
	}
	f("schema", "encoding/json", true)
	f("schema", "github.com/zeebo/xxh3", true)
	f("schema", "github.com/go-json-experiment/json/jsontext", true)
	f("schema", "github.com/twmb/franz-go/pkg/kgo", false)
	f("schema", modulePath+"/internal/kafka", false)
	f("ingest", modulePath+"/schema", true)
	f("ingest", modulePath+"/streamer", false)
	f("ingest", modulePath+"/streamer/tape", false)
	f("query", modulePath+"/query/materializer", true)
	f("query", modulePath+"/ingest", false)
	f("streamer", modulePath+"/query", false)
	f("streamer", "github.com/gofiber/fiber/v2", true)
	f("internal", modulePath+"/ingest", false)
	f("cmd", modulePath+"/query/materializer", true)
	f("cmd", modulePath+"/integration", false)
}
