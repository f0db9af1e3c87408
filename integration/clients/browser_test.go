package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// chromium is one headless Chromium with one page, which does the jobs of all tests. It
// needs no driver: the page asks for its work and reports over HTTP.
type chromium struct {
	pages  *http.Server
	origin string
	cmd    *exec.Cmd
	output *lockedBuffer
	exited chan struct{}
	orders chan any // for the page to fetch

	mu   sync.Mutex
	jobs map[int]*follower
	last int
}

// browserJob is a job as the page gets it.
type browserJob struct {
	job
	Number int    `json:"number"`
	API    string `json:"api"`
}

// chromiumNames are the commands a Chromium goes by.
var chromiumNames = []string{"chromium", "chromium-browser", "chromium-headless-shell", "google-chrome"}

func chromiumPath() (string, error) {
	var errs []error
	for _, name := range chromiumNames {
		path, err := exec.LookPath(name)
		if err == nil {
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

func lacksChromium() (string, error) {
	_, err := chromiumPath()
	return "Chromium", err
}

// canInstallChromium reports whether scripts/fetch-clients.sh could have.
func canInstallChromium() bool {
	_, err := exec.LookPath("apt-get")
	return os.Geteuid() == 0 && err == nil
}

// startChromium starts the browser, once, and opens the page.
var startChromium = sync.OnceValues(func() (*chromium, error) {
	path, err := chromiumPath()
	if err != nil {
		return nil, err
	}
	dir, err := keptDir()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &chromium{
		origin: "http://" + ln.Addr().String(), output: &lockedBuffer{}, exited: make(chan struct{}),
		orders: make(chan any, 64), jobs: make(map[int]*follower),
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir("browser")))
	mux.HandleFunc("/next", c.next)
	mux.HandleFunc("/report", c.report)
	c.pages = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = c.pages.Serve(ln) }()
	c.cmd = exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
		"--mute-audio", "--no-default-browser-check", "--no-first-run", "--no-proxy-server",
		"--remote-debugging-port=0", // keeps the page open
		"--user-data-dir="+dir+"/chromium", c.origin+"/page.html")
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.exited)
	}()
	kept.Lock()
	defer kept.Unlock()
	kept.chrome = c
	return c, nil
})

// close ends the browser; its processes end with the first of them.
func (c *chromium) close() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.exited:
	case <-time.After(5 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.exited
	}
	_ = c.pages.Close()
}

// next hands the page its next order, or nothing after a while.
func (c *chromium) next(w http.ResponseWriter, r *http.Request) {
	var order any = struct{}{}
	select {
	case order = <-c.orders:
	case <-time.After(20 * time.Second):
	case <-r.Context().Done():
	}
	_ = json.NewEncoder(w).Encode(order)
}

func (c *chromium) report(_ http.ResponseWriter, r *http.Request) {
	var batch []struct {
		record
		Job int `json:"job"`
	}
	if err := json.NewDecoder(r.Body).Decode(&batch); err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range batch {
		if f := c.jobs[b.Job]; f != nil {
			f.note(b.record)
		}
	}
}

// inBrowser returns the start of a client that is one of the browser's own APIs.
func inBrowser(api string) func(*testing.T, job) *follower {
	return func(t *testing.T, j job) *follower {
		t.Helper()
		c, err := startChromium()
		if err != nil {
			t.Fatal(err)
		}
		f := &follower{client: "chromium " + api}
		c.mu.Lock()
		c.last++
		number := c.last
		c.jobs[number] = f
		c.mu.Unlock()
		c.order(t, browserJob{job: j.whole(), Number: number, API: api})
		f.stop = sync.OnceFunc(func() {
			c.order(t, map[string]int{"stop": number})
			f.await(t, "stopped", 1, 20*time.Second)
		})
		t.Cleanup(f.stop)
		return f
	}
}

func (c *chromium) order(t *testing.T, order any) {
	t.Helper()
	select {
	case c.orders <- order:
	case <-c.exited:
		t.Fatal(fmt.Sprint("chromium ended: ", c.output))
	case <-time.After(20 * time.Second):
		t.Fatal(fmt.Sprint("the page takes no orders: ", c.output))
	}
}
