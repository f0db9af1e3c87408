package httpapi

import (
	"strconv"

	"github.com/gofiber/fiber/v2"
)

// listAnswer is a page of a list that is kept in memory.
type listAnswer[V any] struct {
	Data       []V            `json:"data"`
	Pagination listPagination `json:"pagination"`
}

type listPagination struct {
	NextCursor *string `json:"next_cursor"`
	HasMore    bool    `json:"has_more"`
	Limit      int     `json:"limit"`
}

// listPage answers with a page of all: at most limit (usual unless given, at most most), from
// behind the item whose id is the cursor.
func listPage[T, V any](c *fiber.Ctx, all []T, usual, most int, id func(T) string, view func(T) V) error {
	q, err := Query(c)
	if err != nil {
		return err
	}
	if err := CheckParams(q, func(name string) bool { return name == "limit" || name == "cursor" }); err != nil {
		return err
	}
	limit := usual
	if text, err := One(q, "limit"); err != nil {
		return err
	} else if text != "" {
		limit, err = strconv.Atoi(text)
		if err != nil || limit < 1 || limit > most {
			return InvalidParameter("limit", "Parameter limit is %q; want 1 to %d.", cut(text), most)
		}
	}
	cursor, err := One(q, "cursor")
	if err != nil {
		return err
	}
	first := 0
	if cursor != "" {
		for first < len(all) && id(all[first]) != cursor {
			first++
		}
		if first == len(all) {
			return InvalidParameter("cursor", "Parameter cursor is not one of an earlier page.")
		}
		first++
	}
	page := listAnswer[V]{Data: []V{}, Pagination: listPagination{Limit: limit}}
	end := min(first+limit, len(all))
	for _, item := range all[first:end] {
		page.Data = append(page.Data, view(item))
	}
	if end < len(all) {
		last := id(all[end-1])
		page.Pagination.NextCursor, page.Pagination.HasMore = &last, true
	}
	return c.JSON(page)
}
