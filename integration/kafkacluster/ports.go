package kafkacluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Where ports are looked for: below those that systems give to clients and to listeners on
// port 0 (32768 and up on Linux), or a connection of anybody's may take the port of a broker
// that is being started.
const (
	firstPort = 15_000
	lastPort  = 32_000
	portTries = 1000
)

// freePorts returns n ports that nobody listened on a moment ago.
func freePorts(n int) ([]int, error) {
	var taken []net.Listener
	defer func() {
		for _, l := range taken {
			l.Close()
		}
	}()
	var ports []int
	for range portTries {
		if len(ports) == n {
			return ports, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		taken = append(taken, l)
		ports = append(ports, port)
	}
	return nil, errors.New("no free ports")
}
