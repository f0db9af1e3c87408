package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// payloads are JSON objects of one size, enough different ones that neither Kafka's
// compression nor ClickHouse's makes nothing of them.
type payloads struct{ texts []string }

const differentPayloads = 1024

func newPayloads(size int) *payloads {
	random := rand.New(rand.NewPCG(1, 2)) // the same in every run
	p := &payloads{texts: make([]string, differentPayloads)}
	for i := range p.texts {
		p.texts[i] = fill(fmt.Sprintf(`{"x":%d,"y":%d,"text":"`, random.IntN(1920), random.IntN(1080)), size, random)
	}
	return p
}

// fill completes a JSON object, cut off within a string, to size bytes with words.
func fill(head string, size int, random *rand.Rand) string {
	var b strings.Builder
	b.WriteString(head)
	for b.Len() < size-2 {
		letter := 'a' + byte(random.IntN(26))
		if random.IntN(6) == 0 {
			letter = ' '
		}
		b.WriteByte(letter)
	}
	return b.String() + `"}`
}

func (p *payloads) at(i int) string { return p.texts[i%differentPayloads] }

// body appends the body of an append of n events to one session, the first being its
// event number from. With ids each event has a message id, which begins with ids.
func (p *payloads) body(dst []byte, ids string, from, n int) []byte {
	dst = append(dst, `{"events":[`...)
	for i := from; i < from+n; i++ {
		if i > from {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"type":"bench.move","t_ms":`...)
		dst = strconv.AppendInt(dst, int64(i)*20, 10)
		dst = append(dst, `,"message_id":"`...)
		dst = append(dst, ids...)
		dst = append(dst, '-')
		dst = strconv.AppendInt(dst, int64(i), 10)
		dst = append(dst, `","payload":`...)
		dst = append(dst, p.at(i)...)
		dst = append(dst, '}')
	}
	return append(dst, "]}"...)
}

// stampDigits is the length of a time in nanoseconds, until 2286.
const stampDigits = 19

// stamped is a payload that says when it was made.
type stamped struct{ tail string }

func newStamped(size int) stamped {
	head := `{"at":` + strings.Repeat("0", stampDigits) + `,"text":"`
	text := fill(head, size, rand.New(rand.NewPCG(3, 4)))
	return stamped{tail: text[len(`{"at":`)+stampDigits:]}
}

// event appends a body of n events made now.
func (s stamped) body(dst []byte, n int) []byte {
	now := time.Now().UnixNano()
	dst = append(dst, `{"events":[`...)
	for i := range n {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"type":"bench.tick","payload":{"at":`...)
		dst = strconv.AppendInt(dst, now, 10)
		dst = append(dst, s.tail...)
		dst = append(dst, '}')
	}
	return append(dst, "]}"...)
}

// eventTail is the end of an event of size bytes that begins with a stamp and a number
// (feed.send).
func eventTail(size int) string {
	head := `{"at":` + strings.Repeat("0", stampDigits) + `,"seq":` + strings.Repeat("0", numberDigits)
	return fill(head+`,"text":"`, size, rand.New(rand.NewPCG(5, 6)))[len(head):]
}
