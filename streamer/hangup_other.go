//go:build !linux

package streamer

// hangups has nothing to watch with on this platform: a client that is gone is noticed
// by the next write to it, at the latest the next keep-alive.
type hangups struct{ done chan struct{} }

func newHangups() (*hangups, error) { return &hangups{done: make(chan struct{})}, nil }

func (h *hangups) watch(*subscription) error { return nil }
func (h *hangups) forget(*subscription)      {}
func (h *hangups) run()                      { <-h.done }
func (h *hangups) stop() error               { close(h.done); return nil }
func (h *hangups) close() error              { return nil }
