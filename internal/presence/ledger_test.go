package presence

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"
)

// at is s seconds after some moment.
func at(s float64) time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(s * float64(time.Second)))
}

// change and snapshot make records as decode returns them.
func change(node string, seq uint64, open map[entry]int) *message {
	return &message{V: recordVersion, Node: node, Seq: seq, entries: open}
}

func snapshot(node string, seq, first uint64, last bool, open map[entry]int) *message {
	return &message{V: recordVersion, Node: node, Seq: seq, Snapshot: first, Last: last, entries: open}
}

// checkSums compares the sums of l with what its entries add up to.
func checkSums(t *testing.T, l *ledger) {
	t.Helper()
	want := newLedger(l.timeout)
	folded := 0
	for e, n := range l.own {
		want.sum(e, n)
		want.ownOpen += n
	}
	for _, p := range l.peers {
		folded += len(p.entries)
		for e, s := range p.entries {
			want.sum(e, s.open)
			want.peersOpen += s.open
		}
	}
	if !maps.Equal(l.workspaces, want.workspaces) || !maps.Equal(l.keys, want.keys) || !maps.Equal(l.classes, want.classes) {
		t.Fatalf("sums are %v, %v, %v; want %v, %v, %v",
			l.workspaces, l.keys, l.classes, want.workspaces, want.keys, want.classes)
	}
	if l.ownOpen != want.ownOpen || l.peersOpen != want.peersOpen || l.folded != folded {
		t.Fatalf("totals are %d own, %d of others in %d entries; want %d, %d, %d",
			l.ownOpen, l.peersOpen, l.folded, want.ownOpen, want.peersOpen, folded)
	}
}

func TestLimitsAreCheckedTheNarrowestFirst(t *testing.T) {
	l := newLedger(NodeTimeout)
	for range 5 {
		l.add(entry{"w", "a", "client"}, 1)
	}
	l.add(entry{"w", "a", ""}, 1)
	l.add(entry{"w", "b", "client"}, 1)
	f := func(e entry, limits Limits, want string) {
		t.Helper()
		got := ""
		if err := l.admit(e, limits); err != nil {
			got = fmt.Sprint(err.Of, " ", err.Open, "/", err.Limit)
		}
		if got != want {
			t.Errorf("admit(%v, %v) = %q, want %q", e, limits, got, want)
		}
	}
	a := entry{"w", "a", "client"}
	f(a, Limits{}, "")
	f(a, Limits{PerWorkspace: 8, PerKey: 7, PerClass: 6}, "")
	f(a, Limits{PerWorkspace: 7, PerKey: 6, PerClass: 5}, "class 5/5")
	f(a, Limits{PerWorkspace: 7, PerKey: 6}, "key 6/6")
	f(a, Limits{PerWorkspace: 7, PerKey: 7}, "workspace 7/7")
	f(a, Limits{PerWorkspace: 3}, "workspace 7/3") // lowered meanwhile
	f(entry{"w", "a", ""}, Limits{PerClass: 1}, "")
	f(entry{"w", "a", "other"}, Limits{PerClass: 1}, "")
	f(entry{"w", "b", "client"}, Limits{PerClass: 1}, "class 1/1")
	f(entry{"v", "a", "client"}, Limits{PerWorkspace: 1, PerKey: 1, PerClass: 1}, "")
}

func TestFoldKnowsWhatARecordIsWorth(t *testing.T) {
	x, y, z := entry{"w", "x", ""}, entry{"w", "y", "c"}, entry{"v", "z", ""}
	f := func(name string, want map[entry]int, records ...*message) {
		t.Helper()
		l := newLedger(NodeTimeout)
		for i, m := range records {
			l.fold(m, at(float64(i)/10))
			checkSums(t, l)
		}
		got := map[entry]int{}
		for _, p := range l.peers {
			for e, s := range p.entries {
				got[e] += s.open
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: folded %v, want %v", name, got, want)
		}
	}
	f("changes are absolute", map[entry]int{x: 3, y: 1},
		change("a", 1, map[entry]int{x: 1, y: 1}), change("a", 2, map[entry]int{x: 3}))
	f("zero removes", map[entry]int{y: 1},
		change("a", 1, map[entry]int{x: 1, y: 1}), change("a", 2, map[entry]int{x: 0}))
	f("nodes add up", map[entry]int{x: 5},
		change("a", 1, map[entry]int{x: 2}), change("b", 9, map[entry]int{x: 3}))
	f("repeated and late records do nothing", map[entry]int{x: 3},
		change("a", 2, map[entry]int{x: 3}), change("a", 2, map[entry]int{x: 7}), change("a", 1, map[entry]int{y: 1}))
	f("a snapshot replaces", map[entry]int{z: 1},
		change("a", 1, map[entry]int{x: 1, y: 1}), snapshot("a", 2, 2, true, map[entry]int{z: 1}))
	f("a snapshot of two records replaces", map[entry]int{y: 2, z: 1},
		change("a", 1, map[entry]int{x: 1, y: 1}),
		snapshot("a", 2, 2, false, map[entry]int{y: 2}), snapshot("a", 3, 2, true, map[entry]int{z: 1}))
	f("a snapshot with a gap only adds", map[entry]int{x: 1, z: 1},
		change("a", 1, map[entry]int{x: 1}), snapshot("a", 3, 2, true, map[entry]int{z: 1}))
	f("the first record may be in the middle", map[entry]int{z: 1},
		snapshot("a", 8, 7, false, map[entry]int{z: 1}), snapshot("a", 9, 7, true, nil))
	f("an empty snapshot is a goodbye", nil,
		change("a", 1, map[entry]int{x: 1, y: 1}), snapshot("a", 2, 2, true, nil))
	f("of one node", map[entry]int{y: 1},
		change("a", 1, map[entry]int{x: 1}), change("b", 1, map[entry]int{y: 1}), snapshot("a", 2, 2, true, nil))
	f("a lost record does not keep a goodbye from being heard", nil,
		change("a", 1, map[entry]int{x: 1}), snapshot("a", 4, 4, true, nil))
}

func TestSilentNodesAreForgotten(t *testing.T) {
	l := newLedger(7 * time.Second)
	x := entry{"w", "x", ""}
	f := func(now float64, wantForgotten, wantOpen int) {
		t.Helper()
		if n := l.expire(at(now)); n != wantForgotten || l.keys[keyOf{"w", "x"}] != wantOpen {
			t.Errorf("after %v s: %d forgotten, %d open; want %d, %d", now, n, l.keys[keyOf{"w", "x"}], wantForgotten, wantOpen)
		}
		checkSums(t, l)
	}
	f(0, 0, 0)
	l.fold(change("a", 1, map[entry]int{x: 1}), at(0))
	l.fold(change("b", 1, map[entry]int{x: 2}), at(1))
	l.fold(change("c", 1, map[entry]int{x: 4}), at(-2)) // read back from before the start
	f(4.9, 0, 7)
	f(5, 1, 3)
	l.fold(change("a", 2, map[entry]int{x: 1}), at(6))
	f(7.9, 0, 3)
	f(8, 1, 1)
	f(12.9, 0, 1)
	f(100, 1, 0)
	l.fold(change("a", 3, map[entry]int{x: 5}), at(200))
	f(206, 0, 5)
}

func TestOthersAreBounded(t *testing.T) {
	l := newLedger(NodeTimeout)
	for i := range maxPeers {
		if n := l.fold(change(fmt.Sprint("n", i), 1, map[entry]int{{"w", "k", ""}: 1}), at(0)); n != 0 {
			t.Fatalf("node %d was dropped", i)
		}
	}
	if n := l.fold(change("more", 1, map[entry]int{{"w", "k", ""}: 1, {"w", "j", ""}: 1}), at(0)); n != 2 || len(l.peers) != maxPeers {
		t.Errorf("one node more: %d entries dropped, %d nodes; want 2, %d", n, len(l.peers), maxPeers)
	}
	many := map[entry]int{}
	for i := range maxFolded {
		many[entry{"w", fmt.Sprint("k", i), ""}] = 1
	}
	if n := l.fold(change("n0", 2, many), at(0)); n != maxPeers || l.folded != maxFolded {
		t.Errorf("too many entries: %d dropped, %d kept; want %d, %d", n, l.folded, maxPeers, maxFolded)
	}
	checkSums(t, l)
	if n := l.fold(change("n1", 2, map[entry]int{{"w", "k", ""}: 9}), at(0)); n != 0 {
		t.Errorf("a known entry was dropped")
	}
	l.expire(at(100))
	checkSums(t, l)
	if l.folded != 0 || len(l.peers) != 0 || len(l.keys) != 0 || len(l.workspaces) != 0 {
		t.Errorf("after all left: %d entries, %d nodes, %d keys", l.folded, len(l.peers), len(l.keys))
	}
}

func TestManyChangesBecomeASnapshot(t *testing.T) {
	l := newLedger(NodeTimeout)
	for i := range maxChanged + 5 {
		l.add(entry{"w", fmt.Sprint("k", i), ""}, 1)
	}
	if len(l.changed) > maxChanged {
		t.Errorf("%d changes are kept, want at most %d", len(l.changed), maxChanged)
	}
	if open, snapshot := l.take(); !snapshot || len(open) != maxChanged+5 {
		t.Errorf("take() = %d entries, snapshot %v; want all", len(open), snapshot)
	}
	l.add(entry{"w", "k1", ""}, -1)
	if open, snapshot := l.take(); snapshot || !maps.Equal(open, map[entry]int{{"w", "k1", ""}: 0}) {
		t.Errorf("take() = %v, snapshot %v; want k1 at 0", open, snapshot)
	}
}

// TestLedgersAgreeAfterASnapshot runs nodes over a log that loses, repeats and swaps
// records. Whatever happened, once each node has published a snapshot that arrived, all
// know the same.
func TestLedgersAgreeAfterASnapshot(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		const nodes = 3
		var ls [nodes]*ledger
		var seqs [nodes]uint64
		for i := range ls {
			ls[i] = newLedger(NodeTimeout)
		}
		randomEntry := func() entry {
			return entry{fmt.Sprint("w", r.IntN(2)), fmt.Sprint("k", r.IntN(4)), []string{"", "c", "d"}[r.IntN(3)]}
		}
		var late []*message
		deliver := func(from int, m *message) {
			for i, l := range ls {
				if i != from {
					l.fold(m, at(0))
				}
			}
		}
		publish := func(i int, whole, lossy bool) {
			if whole {
				ls[i].publishAll()
			}
			open, snapshot := ls[i].take()
			values, err := encode(fmt.Sprint("n", i), seqs[i]+1, open, snapshot)
			if err != nil {
				t.Fatal(err)
			}
			seqs[i] += uint64(len(values))
			for _, v := range values {
				m, err := decode(v)
				if err != nil {
					t.Fatal(err)
				}
				switch fate := r.IntN(6); {
				case !lossy || fate > 2:
					deliver(i, m)
				case fate == 1:
					deliver(i, m)
					deliver(i, m)
				case fate == 2:
					late = append(late, m)
				}
			}
		}
		for range 300 {
			i := r.IntN(nodes)
			switch r.IntN(6) {
			case 0:
				publish(i, r.IntN(3) == 0, true)
			case 1:
				if len(late) > 0 {
					var from int
					m := late[0]
					late = late[1:]
					fmt.Sscanf(m.Node, "n%d", &from) //nolint:errcheck // made above
					deliver(from, m)
				}
			case 2, 3:
				ls[i].add(randomEntry(), 1)
			default:
				if e := randomEntry(); ls[i].own[e] > 0 {
					ls[i].add(e, -1)
				}
			}
			checkSums(t, ls[i])
		}
		for i := range nodes {
			publish(i, true, false)
		}
		for i, l := range ls {
			checkSums(t, l)
			if !maps.Equal(l.classes, ls[0].classes) || !maps.Equal(l.keys, ls[0].keys) || !maps.Equal(l.workspaces, ls[0].workspaces) {
				t.Fatalf("seed %d: node %d counts %v, node 0 %v", seed, i, l.keys, ls[0].keys)
			}
		}
	}
}
