package httpapi_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/playhead-dev/playhead/internal/httpapi"
	"github.com/playhead-dev/playhead/schema"
)

func TestBadParamNamesTheParameter(t *testing.T) {
	bad := &schema.ParamError{Param: "since", Why: `is "x"; want a time`}
	for _, err := range []error{bad, fmt.Errorf("filter: %w", bad)} {
		got, ok := errors.AsType[*httpapi.Error](httpapi.BadParam(err))
		if !ok || got.Status != 400 || got.Code != httpapi.CodeInvalidParameter || got.Param != "since" || got.Message != `Parameter since is "x"; want a time.` {
			t.Errorf("BadParam(%v) = %+v", err, got)
		}
	}
	other := errors.New("no parameter")
	if got := httpapi.BadParam(other); got != other { //nolint:errorlint // the very same
		t.Errorf("BadParam(%v) = %v, want it as it is", other, got)
	}
	if err := httpapi.BadParam(nil); err != nil {
		t.Errorf("BadParam(nil) = %v", err)
	}
}
