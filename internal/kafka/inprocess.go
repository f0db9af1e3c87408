package kafka

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// dialTimeout is kgo's own, which a Dialer replaces.
const dialTimeout = 10 * time.Second

// doorway is the embedded broker's listener: connections come by TCP from other
// processes, and by dial from clients in this one, past the network stack. To the
// broker and to Kafka's client both are the same.
type doorway struct {
	tcp    net.Listener
	public net.Addr // what clients are told to connect to
	arrive chan net.Conn
	closed chan struct{}
	close  func()
	wg     sync.WaitGroup // the TCP acceptor
}

// openDoorway takes over tcp, which Close closes. Clients are told to connect to
// advertise, or to where tcp listens if that is empty.
func openDoorway(tcp net.Listener, advertise string) *doorway {
	d := &doorway{tcp: tcp, public: tcp.Addr(), arrive: make(chan net.Conn), closed: make(chan struct{})}
	if advertise != "" {
		d.public = advertised(advertise)
	}
	d.close = sync.OnceFunc(func() { close(d.closed) })
	d.wg.Go(d.acceptTCP)
	return d
}

func (d *doorway) acceptTCP() {
	for {
		conn, err := d.tcp.Accept()
		if err != nil { // as the broker does with a listener of its own, this ends it
			d.close()
			return
		}
		select {
		case d.arrive <- conn:
		case <-d.closed:
			_ = conn.Close()
			return
		}
	}
}

// Accept implements net.Listener.
func (d *doorway) Accept() (net.Conn, error) {
	select {
	case <-d.closed: // first: a closed door lets nobody in
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-d.arrive:
		return conn, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It may be called several times.
func (d *doorway) Close() error {
	d.close()
	err := d.tcp.Close()
	d.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Addr implements net.Listener: where other processes connect.
func (d *doorway) Addr() net.Addr { return d.public }

// advertised is an address (host:port) that somebody else listens on for us.
type advertised string

// Network implements net.Addr.
func (advertised) Network() string { return "tcp" }

// String implements net.Addr.
func (a advertised) String() string { return string(a) }

// dial connects a client of this process if host is this broker, and by TCP to any
// other. It is a kgo.Dialer.
func (d *doorway) dial(ctx context.Context, network, host string) (net.Conn, error) {
	if host != d.Addr().String() {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, host)
	}
	client, server := newPipe(d.Addr())
	select {
	case d.arrive <- server:
		return client, nil
	case <-d.closed:
		return nil, &net.OpError{Op: "dial", Net: network, Addr: d.Addr(), Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
