package kafka

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func (d *durability) setFsync(f func(*os.File) error) {
	d.flushing.Lock()
	defer d.flushing.Unlock()
	d.fsync = f
}

// disk records what has been synced: the size that each file had when its last sync
// began.
type disk struct {
	mu     sync.Mutex // guards synced
	synced map[string]int64
}

func (k *disk) fsync(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.synced[f.Name()] = info.Size()
	return f.Sync()
}

// behind returns the files of dir that match pattern and have grown since their sync.
func (k *disk) behind(t *testing.T, pattern string) (paths []string) {
	t.Helper()
	all, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, path := range all {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if synced, ok := k.synced[path]; !ok || synced < info.Size() {
			paths = append(paths, path)
		}
	}
	return paths
}

func testDurability(t *testing.T, dir string) (*durability, *disk) {
	t.Helper()
	d, err := newDurability(dir, slog.New(slog.DiscardHandler))
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("the broker syncs by itself here")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.close() })
	k := &disk{synced: make(map[string]int64)}
	d.setFsync(k.fsync)
	return d, k
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWaitSyncsWhateverWasWritten(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("partitions/events-0/0.dat"), "left by a killed broker")
	write(t, at("groups.log"), "likewise")
	d, k := testDurability(t, dir)
	settle := func(what string) {
		t.Helper()
		if err := d.wait(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, pattern := range []string{"*.log", "partitions/*/*.dat"} {
			if paths := k.behind(t, at(pattern)); len(paths) > 0 {
				t.Errorf("%s: %q not synced", what, paths)
			}
		}
	}
	settle("start")
	write(t, at("partitions/events-0/0.dat"), "more")
	settle("append")
	write(t, at("partitions/events-0/23.dat"), "a new segment")
	write(t, at("partitions/events-1/0.dat"), "a new partition")
	settle("new files")
	write(t, at("partitions/events-1/0.dat"), "more")
	settle("append to a new partition")
	write(t, at("groups.log.tmp"), "compacted, and longer than before")
	if err := os.Rename(at("groups.log.tmp"), at("groups.log")); err != nil {
		t.Fatal(err)
	}
	delete(k.synced, at("groups.log"))
	settle("replaced file")
	if err := os.RemoveAll(at("partitions/events-0")); err != nil {
		t.Fatal(err)
	}
	settle("deleted topic")
	write(t, at("partitions/events-0/0.dat"), "made anew")
	settle("the topic made anew")

	write(t, at("partitions/events-0/0.idx"), "index")
	settle("index")
	if _, synced := k.synced[at("partitions/events-0/0.idx")]; synced {
		t.Error("an index was synced without transactions")
	}
	d.transactions.Store(true)
	if err := d.wait(); err != nil {
		t.Fatal(err)
	}
	if paths := k.behind(t, at("partitions/*/*.idx")); len(paths) > 0 {
		t.Errorf("with transactions, %q not synced", paths)
	}
	if open := len(d.files); open != 4 { // groups.log, 0.dat twice, 0.idx
		t.Errorf("%d files are open, want 4", open)
	}
}

func TestWaitersShareASync(t *testing.T) {
	dir := t.TempDir()
	d, k := testDurability(t, dir)
	path := filepath.Join(dir, "partitions", "events-0", "0.dat")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				write(t, path, "x")
				info, err := os.Stat(path)
				if err != nil {
					t.Error(err)
					return
				}
				if err := d.wait(); err != nil {
					t.Error(err)
				}
				k.mu.Lock()
				if k.synced[path] < info.Size() {
					t.Errorf("after wait, %d of %d bytes are synced", k.synced[path], info.Size())
				}
				k.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// startWithDisk starts a broker with topics and a client of it.
func startWithDisk(t *testing.T, topics Config) (*Embedded, *kgo.Client) {
	t.Helper()
	e, err := StartEmbedded(t.TempDir(), "127.0.0.1:0", topics.Partitions, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	if e.disk == nil {
		t.Skip("the broker syncs by itself here")
	}
	if err := EnsureTopics(t.Context(), e.Config()); err != nil {
		t.Fatal(err)
	}
	opts, err := e.Config().Options()
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(opts, kgo.ProducerLinger(0), kgo.DefaultProduceTopic("playhead.events"),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.ConsumeTopics("playhead.events"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return e, cl
}

func TestWhatIsAcknowledgedIsSynced(t *testing.T) {
	e, cl := startWithDisk(t, Config{Partitions: 3})
	k := &disk{synced: make(map[string]int64)}
	e.disk.setFsync(k.fsync)
	for i := range 60 {
		rec := &kgo.Record{Partition: int32(i % 3), Value: []byte("v")}
		if err := cl.ProduceSync(t.Context(), rec).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if paths := k.behind(t, filepath.Join(e.disk.dir, "partitions", "playhead.events-*", "*.dat")); len(paths) > 0 {
			t.Fatalf("record %d was acknowledged, %q not synced", i, paths)
		}
	}
}

// A reader must not see what a power cut could still take back.
func TestNobodySeesARecordBeforeItIsSynced(t *testing.T) {
	e, cl := startWithDisk(t, Config{Partitions: 1})
	release, stuck := make(chan struct{}), make(chan struct{}, 100)
	e.disk.setFsync(func(f *os.File) error {
		stuck <- struct{}{}
		<-release
		return f.Sync()
	})
	acknowledged := make(chan error, 1)
	cl.Produce(t.Context(), &kgo.Record{Value: []byte("v")}, func(_ *kgo.Record, err error) { acknowledged <- err })
	<-stuck
	early, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if n := cl.PollFetches(early).NumRecords(); n != 0 {
		t.Errorf("%d records were read before the sync", n)
	}
	select {
	case err := <-acknowledged:
		t.Errorf("acknowledged before the sync: %v", err)
	default:
	}
	close(release)
	if err := <-acknowledged; err != nil {
		t.Error(err)
	}
	for n := 0; n < 1; {
		n += cl.PollFetches(t.Context()).NumRecords()
	}
}

func TestADiskThatFailedOnceIsNotTrustedAgain(t *testing.T) {
	e, cl := startWithDisk(t, Config{Partitions: 1})
	var failed sync.Once
	e.disk.setFsync(func(f *os.File) (err error) {
		failed.Do(func() { err = &os.PathError{Op: "sync", Path: f.Name(), Err: syscall.EIO} })
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	acknowledged := make(chan error, 1)
	cl.Produce(context.Background(), &kgo.Record{Value: []byte("v")}, func(_ *kgo.Record, err error) { acknowledged <- err })
	select {
	case err := <-acknowledged:
		if err == nil {
			t.Error("a record that was not synced was acknowledged")
		}
	case <-ctx.Done(): // the client goes on trying
	}
	if err := e.disk.wait(); !errors.Is(err, syscall.EIO) {
		t.Errorf("wait = %v, want the first failure", err)
	}
}
