package kafka

// Waiting returns how many calls have joined requests that are not sent yet.
func (l *Log) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, s := range l.listers {
		if s.next != nil {
			n += s.next.callers
		}
	}
	return n
}
