package tape

// ring is a queue of entries in offset order that releases what it drops. The zero
// ring is empty and ready.
type ring struct {
	buf  []*Entry // power-of-two length
	head int
	n    int
}

func (r *ring) len() int { return r.n }

func (r *ring) at(i int) *Entry { return r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring) push(e *Entry) {
	if r.n == len(r.buf) {
		r.resize(max(4, 2*len(r.buf)))
	}
	r.buf[(r.head+r.n)&(len(r.buf)-1)] = e
	r.n++
}

func (r *ring) pop() *Entry {
	e := r.buf[r.head]
	r.buf[r.head] = nil
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
	switch {
	case r.n == 0:
		r.buf, r.head = nil, 0
	case len(r.buf) > 64 && r.n < len(r.buf)/8:
		r.resize(len(r.buf) / 4)
	}
	return e
}

func (r *ring) resize(size int) {
	buf := make([]*Entry, size)
	for i := range r.n {
		buf[i] = r.at(i)
	}
	r.buf, r.head = buf, 0
}

// appendFrom appends up to limit entries at or above offset from to dst, and reports
// whether there are more.
func (r *ring) appendFrom(dst []*Entry, from int64, limit int) (_ []*Entry, more bool) {
	i := r.search(from)
	for ; i < r.n && limit > 0; i++ {
		dst = append(dst, r.at(i))
		limit--
	}
	return dst, i < r.n
}

// search returns the index of the first entry at or above offset.
func (r *ring) search(offset int64) int {
	low, high := 0, r.n
	for low < high {
		mid := (low + high) / 2
		if r.at(mid).ID.Offset < offset {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}
