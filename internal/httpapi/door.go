package httpapi

import (
	"net"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
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
	perSecond := c.acceptRate()
	burst := max(1, int(perSecond*acceptBurst))
	d := &door{Listener: ln, limiter: rate.NewLimiter(rate.Limit(perSecond), burst), waits: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "playhead_http_accept_waits_total",
		Help: "Connections that waited because too many came at once.",
	})}
	if c.Registerer != nil {
		c.Registerer.MustRegister(d.waits)
	}
	return d
}

// door has a token bucket before Accept, which one goroutine calls.
type door struct {
	net.Listener
	limiter *rate.Limiter
	waits   prometheus.Counter
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if wait := d.limiter.Reserve().Delay(); wait > 0 {
		d.waits.Inc()
		time.Sleep(wait) // milliseconds: nobody has to be able to end it
	}
	return conn, nil
}
