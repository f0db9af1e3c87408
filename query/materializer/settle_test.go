package materializer

import "testing"

func TestDecide(t *testing.T) {
	f := func(n int, h held, acknowledged bool, want action) {
		t.Helper()
		if got := decide(n, h, acknowledged, acknowledged, false); got != want {
			t.Errorf("decide(%d, %+v, %v) = %v, want %v", n, h, acknowledged, got, want)
		}
	}
	f(10, held{10, 10}, false, actionDone)
	f(10, held{10, 10}, true, actionDone)
	f(10, held{0, 0}, false, actionSend)
	f(10, held{0, 0}, true, actionSendNew)
	f(10, held{4, 4}, false, actionSendRest)
	f(10, held{4, 4}, true, actionSendRest)
	f(10, held{11, 11}, false, actionStop)
	f(10, held{20, 10}, false, actionStop)
	f(10, held{10, 9}, false, actionStop) // one missing and one double: as many rows as records
	f(10, held{4, 3}, true, actionStop)
	f(1, held{1, 1}, false, actionDone)

	// Rows that may have expired need not stay.
	expiring := func(n int, h held, sent bool, want action) {
		t.Helper()
		if got := decide(n, h, false, sent, true); got != want {
			t.Errorf("decide(%d, %+v) of expiring rows, sent %v = %v, want %v", n, h, sent, got, want)
		}
	}
	expiring(10, held{0, 0}, false, actionSend)
	expiring(10, held{0, 0}, true, actionDone)
	expiring(10, held{4, 4}, false, actionSendRest)
	expiring(10, held{4, 4}, true, actionDone)
	expiring(10, held{20, 10}, true, actionStop)
}
