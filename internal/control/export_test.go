package control

import "context"

// Sweep removes dead keys now.
func (s *Store) Sweep(ctx context.Context) error { return s.sweep(ctx) }
