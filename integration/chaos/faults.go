package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/playhead-dev/playhead/integration/cluster"
)

// stopPatience is how long a node may take to stop in order.
const stopPatience = 60 * time.Second

// processFaults kill, pause and stop processes: at any moment, or at one that is aimed at.
func processFaults() []fault {
	menu := []fault{
		{"kill node", 15, func(ctx context.Context, h *hand) string {
			n := h.node()
			n.Kill()
			h.wait(ctx, 0, 1500*time.Millisecond)
			h.again(n)
			return "node, at any moment"
		}},
		{"pause node", 4, func(ctx context.Context, h *hand) string {
			n := h.node()
			n.Pause()
			h.wait(ctx, 100*time.Millisecond, 5*time.Second)
			n.Resume()
			return ""
		}},
		{"stop node in order", 3, func(ctx context.Context, h *hand) string {
			n := h.node()
			if err := n.Stop(stopPatience); err != nil {
				h.broken(err)
			}
			h.wait(ctx, 0, time.Second)
			h.again(n)
			return ""
		}},
		{"kill clickhouse", 10, func(ctx context.Context, h *hand) string {
			h.round.cluster.Store.Kill()
			return "clickhouse, at any moment"
		}},
		{"pause clickhouse", 4, func(ctx context.Context, h *hand) string {
			h.round.cluster.Store.Pause()
			h.wait(ctx, 100*time.Millisecond, 6*time.Second)
			h.round.cluster.Store.Resume()
			return ""
		}},
		{"kill broker", 5, func(ctx context.Context, h *hand) string {
			b := h.broker()
			b.Kill()
			h.wait(ctx, 0, time.Second)
			h.again(b)
			return "broker, at any moment"
		}},
		{"pause broker", 3, func(ctx context.Context, h *hand) string {
			b := h.broker()
			b.Pause()
			h.wait(ctx, 100*time.Millisecond, 4*time.Second)
			b.Resume()
			return ""
		}},
		{"kill all nodes", 1, func(ctx context.Context, h *hand) string {
			for _, n := range h.round.cluster.Nodes {
				n.Kill()
			}
			for _, n := range h.round.cluster.Nodes {
				h.again(n)
			}
			return "all nodes, at any moment"
		}},
	}
	return append(menu, aimedFaults()...)
}

func (h *hand) broken(err error) {
	h.round.mu.Lock()
	defer h.round.mu.Unlock()
	h.round.report.Broken = append(h.round.report.Broken, err.Error())
}

// path is a Link, and whose connections through it are meant.
type path struct {
	name  string
	link  *cluster.Link
	label string
}

// somePath picks a way through the cluster's network.
func (h *hand) somePath() path {
	c := h.round.cluster
	n := h.node()
	links := c.Log.Links()
	k := links[h.random.IntN(len(links))]
	switch h.random.IntN(4) {
	case 0:
		return path{"clients to node", n.Door(), cluster.Everybody}
	case 1:
		return path{"node to clickhouse", n.ToStore(), cluster.Everybody}
	case 2:
		return path{"node to broker", k, n.Name}
	default:
		return path{"everybody to broker", k, cluster.Everybody}
	}
}

// networkFaults are what networks do.
func networkFaults() []fault {
	// hold has a fault hold for a while.
	hold := func(name string, weight int, least, most time.Duration, what func(h *hand) cluster.Fault) fault {
		return fault{name, weight, func(ctx context.Context, h *hand) string {
			p := h.somePath()
			p.link.Set(p.label, what(h))
			h.wait(ctx, least, most)
			p.link.Heal(p.label)
			if h.random.IntN(2) == 0 { // what stood still for long is often gone
				p.link.Cut(p.label)
			}
			return ""
		}}
	}
	return []fault{
		{"cut", 6, func(_ context.Context, h *hand) string {
			p := h.somePath()
			p.link.Cut(p.label)
			return ""
		}},
		hold("black hole", 3, 200*time.Millisecond, 5*time.Second, func(*hand) cluster.Fault {
			return cluster.Fault{HoldUp: true, HoldDown: true}
		}),
		hold("half open", 4, 200*time.Millisecond, 5*time.Second, func(h *hand) cluster.Fault {
			up := h.random.IntN(2) == 0
			return cluster.Fault{HoldUp: up, HoldDown: !up}
		}),
		hold("refuse", 3, 200*time.Millisecond, 3*time.Second, func(*hand) cluster.Fault {
			return cluster.Fault{Refuse: true}
		}),
		hold("delay", 3, time.Second, 4*time.Second, func(h *hand) cluster.Fault {
			return cluster.Fault{Delay: h.between(time.Millisecond, 150*time.Millisecond)}
		}),
		hold("throttle", 3, time.Second, 4*time.Second, func(h *hand) cluster.Fault {
			return cluster.Fault{BytesPerSecond: 2_000 + h.random.IntN(60_000)}
		}),
	}
}

// aim is a kind of request that a blow can be aimed at.
type aim struct {
	name   string
	match  cluster.Match
	store  bool // on the way to ClickHouse; else to Kafka
	weight int
}

// aims are the requests that the table of crashes of docs/architecture.md is about, and
// those of appends and of membership.
func aims() []aim {
	return []aim{
		{"intent commit", cluster.ToKafka(cluster.KafkaOffsetCommit, cluster.Saying(`"intent":{`)), false, 6},
		{"insert", cluster.Saying("query=INSERT+INTO+events"), true, 8},
		{"count of a range", cluster.Saying("uniqExact"), true, 1},
		{"plain commit", cluster.ToKafka(cluster.KafkaOffsetCommit, nil), false, 2},
		{"produce", cluster.ToKafka(cluster.KafkaProduce, nil), false, 4},
		{"join of the group", cluster.ToKafka(cluster.KafkaJoinGroup, nil), false, 1},
		{"sync of the group", cluster.ToKafka(cluster.KafkaSyncGroup, nil), false, 1},
	}
}

// blow is what is done when an aim is hit. It returns what goes on the request's way.
type blow struct {
	name   string
	weight int
	kill   bool
	strike func(ctx context.Context, h *hand, n *cluster.Node) (goOn bool)
	// after puts things back.
	after func(ctx context.Context, h *hand, n *cluster.Node)
}

// blows are done to the node whose request it is, or to who answers it.
func blows(store bool) []blow {
	up := func(ctx context.Context, h *hand, n *cluster.Node) {
		h.wait(ctx, 0, time.Second)
		h.again(n)
	}
	all := []blow{
		{"kill node", 8, true, func(_ context.Context, _ *hand, n *cluster.Node) bool {
			n.Kill()
			return false
		}, up},
		// Its request is still in the network, and arrives when another owns its partitions.
		{"kill node, request comes late", 3, true, func(ctx context.Context, h *hand, n *cluster.Node) bool {
			n.Kill()
			h.wait(ctx, 500*time.Millisecond, 4*time.Second)
			return true
		}, up},
		// Longer than the group waits for a member: it wakes as a zombie.
		{"pause node", 3, false, func(ctx context.Context, h *hand, n *cluster.Node) bool {
			n.Pause()
			h.wait(ctx, 2500*time.Millisecond, 4500*time.Millisecond)
			return true
		}, func(_ context.Context, _ *hand, n *cluster.Node) { n.Resume() }},
		{"cut", 2, false, func(context.Context, *hand, *cluster.Node) bool { return false },
			func(context.Context, *hand, *cluster.Node) {}},
	}
	if store {
		return append(all, blow{"kill clickhouse", 6, true, func(ctx context.Context, h *hand, _ *cluster.Node) bool {
			h.wait(ctx, 0, 30*time.Millisecond) // it may have begun
			h.round.cluster.Store.Kill()
			return true
		}, func(context.Context, *hand, *cluster.Node) {}})
	}
	return append(all, blow{"kill broker", 4, true, func(_ context.Context, h *hand, _ *cluster.Node) bool {
		h.broker().Kill()
		return true
	}, func(ctx context.Context, h *hand, _ *cluster.Node) {
		h.wait(ctx, 0, 500*time.Millisecond)
		for _, b := range h.round.cluster.Log.Brokers() {
			h.again(b)
		}
	}})
}

// aimPatience is how long a blow waits for its request.
const aimPatience = 1500 * time.Millisecond

// aimedFaults lie in wait for a request.
func aimedFaults() []fault {
	var menu []fault
	for _, a := range aims() {
		menu = append(menu, fault{"aimed at " + a.name, 5 * a.weight, func(ctx context.Context, h *hand) string {
			return h.lieInWait(ctx, a)
		}})
	}
	return menu
}

// lieInWait waits for a request of any node and strikes at it.
func (h *hand) lieInWait(ctx context.Context, a aim) (kill string) {
	b := h.pickBlow(a.store)
	at := []cluster.Moment{cluster.BeforeRequest, cluster.MidRequest, cluster.BeforeAnswer, cluster.BeforeAnswer, cluster.AfterAnswer}[h.random.IntN(5)]
	bytes := h.random.IntN(4000)
	links := h.round.cluster.Log.Links()
	broker := links[h.random.IntN(len(links))]
	var once sync.Once
	hit := make(chan *cluster.Node, 1)
	wires := make(map[*cluster.Tripwire]*cluster.Link)
	for _, n := range h.round.cluster.Nodes {
		link, label := n.ToStore(), cluster.Everybody
		if !a.store {
			link, label = broker, n.Name
		}
		w := &cluster.Tripwire{Match: a.match, Label: label, At: at, Bytes: bytes, Strike: func(string) (goOn bool) {
			goOn = true
			once.Do(func() {
				goOn = b.strike(ctx, h, n)
				hit <- n
			})
			return goOn
		}}
		link.Lay(w)
		wires[w] = link
	}
	timer := time.NewTimer(aimPatience)
	defer timer.Stop()
	var struck *cluster.Node
	select {
	case struck = <-hit:
	case <-timer.C:
	case <-ctx.Done():
	}
	for w, link := range wires {
		link.Lift(w)
	}
	once.Do(func() {}) // those that were touched do nothing any more; one that strikes now has struck
	if struck == nil {
		select {
		case struck = <-hit:
		default:
			return "" // it never came
		}
	}
	b.after(ctx, h, struck)
	if !b.kill {
		return ""
	}
	return fmt.Sprintf("%s: %v, %s", a.name, at, b.name)
}

// pickBlow picks one by the weights.
func (h *hand) pickBlow(store bool) blow {
	all := blows(store)
	total := 0
	for _, b := range all {
		total += b.weight
	}
	n := h.random.IntN(total)
	for _, b := range all {
		if n -= b.weight; n < 0 {
			return b
		}
	}
	panic("chaos: weights do not add up")
}
