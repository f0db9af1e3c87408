package httpapi

import (
	"net"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// acceptRate resolves Config.AcceptRate: connections a second.
func (c Config) acceptRate() float64 {
	if c.AcceptRate > 0 {
		return float64(c.AcceptRate)
	}
	return defaultAcceptRate * float64(runtime.GOMAXPROCS(0))
}

// Of the door: what a processor lets in a second, unless set, and how many may come at once,
// as a part of what comes in a second.
const (
	defaultAcceptRate = 1000
	acceptBurst       = 1.0 / 64
)

// Door returns ln with Config.AcceptRate before its Accept. A connection that has to wait
// is accepted and not yet served; further ones wait in the system's queue.
func Door(ln net.Listener, c Config) net.Listener {
	d := &door{Listener: ln, rate: c.acceptRate(), waits: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "playhead_http_accept_waits_total",
		Help: "Connections that waited because too many came at once.",
	})}
	d.tokens = d.rate * acceptBurst
	d.at = time.Now()
	if c.Registerer != nil {
		c.Registerer.MustRegister(d.waits)
	}
	return d
}

// door is a token bucket before Accept, which one goroutine calls.
type door struct {
	net.Listener
	rate  float64 // a second
	waits prometheus.Counter

	tokens float64
	at     time.Time
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if wait := d.take(time.Now()); wait > 0 {
		d.waits.Inc()
		time.Sleep(wait) // milliseconds: nobody has to be able to end it
	}
	return conn, nil
}

// take takes a token and returns how long to wait for it.
func (d *door) take(now time.Time) time.Duration {
	d.tokens = min(max(1, d.rate*acceptBurst), d.tokens+now.Sub(d.at).Seconds()*d.rate)
	d.at = now
	d.tokens--
	if d.tokens >= 0 {
		return 0
	}
	return time.Duration(-d.tokens / d.rate * float64(time.Second))
}
