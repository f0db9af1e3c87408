package materializer

import "testing"

func TestDecide(t *testing.T) {
	f := func(n int, h held, acknowledged bool, want action) {
		t.Helper()
		if got := decide(n, h, acknowledged); got != want {
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
}
