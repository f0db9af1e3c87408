package httpapi

import "github.com/gofiber/fiber/v2"

// TakeToken cuts the token out of a request and returns it.
func TakeToken(c *fiber.Ctx) (key string, given bool, err error) {
	t, err := takeToken(c)
	return t.key, t.given, err
}

// SetMostBuckets bounds how many buckets l remembers.
func (l *Limiter) SetMostBuckets(n int) { l.most = n }

// Buckets returns how many buckets l remembers.
func (l *Limiter) Buckets() int { return l.size() }
