package schema

import (
	"slices"
	"strings"
	"testing"
)

func TestMigrationsAreCountedFromOneAndCanBeUndone(t *testing.T) {
	for i, m := range Migrations() {
		if m.Version != uint32(i+1) || m.Name == "" || len(m.Up) == 0 || len(m.Down) == 0 {
			t.Errorf("migration %d is version %d %q with %d steps up and %d down", i+1, m.Version, m.Name, len(m.Up), len(m.Down))
		}
		for _, step := range slices.Concat(m.Up, m.Down) {
			if step.Rebuild != "" && !strings.Contains(step.SQL, "CREATE TABLE IF NOT EXISTS "+step.Rebuild+NextSuffix+" ") {
				t.Errorf("migration %d rebuilds %s, and does not create %s%s: %q", m.Version, step.Rebuild, step.Rebuild, NextSuffix, step.SQL)
			}
		}
	}
}

func TestParseSteps(t *testing.T) {
	f := func(text string, want ...Step) {
		t.Helper()
		if got := parseSteps(text); !slices.Equal(got, want) {
			t.Errorf("parseSteps(%q) = %+v, want %+v", text, got, want)
		}
	}
	f("")
	f("-- nothing\n\n")
	f("A\n  B", Step{SQL: "A\n  B"})
	f("A;\nB ; \n", Step{SQL: "A"}, Step{SQL: "B"})
	f("A ';' x;\n", Step{SQL: "A ';' x"})
	f("-- why\nA\n-- between\n B;\n-- rebuild t\nC (\nx);\nD", Step{SQL: "A\n B"}, Step{SQL: "C (\nx)", Rebuild: "t"}, Step{SQL: "D"})
}
