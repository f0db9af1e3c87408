package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// diskBytes is the size of a disk of a round: files with holes, so that it costs what is
// written.
const diskBytes = 1 << 30

// throttleFile is where Linux takes a limit for a block device (cgroup v1, the Block IO
// controller's document of the kernel). Without it a disk can be full, but not slow.
const throttleFile = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device"

// slowBytesPerSecond is how fast a slow disk writes.
const slowBytesPerSecond = 200_000

// disk is a file system of its own in a file, mounted where a server keeps its data, so
// that it can be filled, slowed down and lose its power without anybody else noticing.
type disk struct {
	name, path string
	image      string // the file
	loop       string // the block device that shows it
	device     string // its numbers
}

// makeDisk mounts a disk at path. It takes root, and programs that a container may lack.
func makeDisk(ctx context.Context, name, path string) (d *disk, err error) {
	d = &disk{name: name, path: path, image: path + ".img"}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("disk %s: %w", name, err)
	}
	f, err := os.OpenFile(d.image, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", name, err)
	}
	if err := errors.Join(f.Truncate(diskBytes), f.Close()); err != nil {
		return nil, fmt.Errorf("disk %s: %w", name, err)
	}
	if _, err := command(ctx, "mkfs.ext4", "-q", "-m", "0", d.image); err != nil {
		return nil, err
	}
	if err := d.mount(ctx); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(path, "lost+found")); err != nil {
		return nil, errors.Join(err, d.remove())
	}
	return d, nil
}

// mount puts the image where the server looks for its data.
func (d *disk) mount(ctx context.Context) (err error) {
	if d.loop, err = command(ctx, "losetup", "--find", "--show", d.image); err != nil {
		return err
	}
	if _, err := command(ctx, "mount", d.loop, d.path); err != nil {
		_, detachErr := command(ctx, "losetup", "--detach", d.loop)
		return errors.Join(err, detachErr)
	}
	var major, minor int
	numbers, err := command(ctx, "stat", "--format", "%Hr %Lr", d.loop)
	if err == nil {
		_, err = fmt.Sscan(numbers, &major, &minor)
	}
	if err != nil {
		return errors.Join(err, d.remove())
	}
	d.device = fmt.Sprintf("%d:%d", major, minor)
	return nil
}

// losePower puts the disk back to what it would hold if its machine had lost power: what
// was written and not synced is gone, but for what the system had happened to write back.
// Nobody may use the disk meanwhile.
func (d *disk) losePower(ctx context.Context) error {
	if err := d.slow(1); err != nil { // from now on nothing reaches the device
		return fmt.Errorf("disk %s: %w", d.name, err)
	}
	after := d.image + ".after"
	_, err := command(ctx, "cp", "--sparse=always", d.image, after)
	if err := errors.Join(err, d.slow(0), d.remove()); err != nil {
		return err
	}
	if err := os.Rename(after, d.image); err != nil {
		return fmt.Errorf("disk %s: %w", d.name, err)
	}
	return d.mount(ctx)
}

// command runs a program and returns what it says.
func command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return text, nil
}

// keep copies the disk's files beside it, for whoever looks into a failure.
func (d *disk) keep() error {
	_, err := command(context.Background(), "cp", "--archive", d.path, d.path+".kept")
	return err
}

// remove unmounts the disk. Nobody may use it any more.
func (d *disk) remove() error {
	_, unmountErr := command(context.Background(), "umount", d.path)
	_, detachErr := command(context.Background(), "losetup", "--detach", d.loop)
	return errors.Join(unmountErr, detachErr)
}

// fill leaves no room on the disk; the file is to be removed.
func (d *disk) fill() (ballast string) {
	ballast = filepath.Join(d.path, "ballast")
	f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return ballast // there is no room for its name
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10, 1} {
		b := make([]byte, size)
		for {
			if _, err := f.Write(b); err != nil {
				break
			}
		}
	}
	return ballast
}

// slow bounds how fast the disk writes; 0 does not.
func (d *disk) slow(bytesPerSecond int) error {
	return os.WriteFile(throttleFile, fmt.Appendf(nil, "%s %d\n", d.device, bytesPerSecond), 0o200)
}

// makeDisks gives Kafka and ClickHouse a disk each, or says why not.
func (r *round) makeDisks(ctx context.Context, dir string) {
	for _, name := range []string{"kafka", "clickhouse"} {
		d, err := makeDisk(ctx, name, filepath.Join(dir, name))
		if err != nil {
			r.report.Skipped = append(r.report.Skipped, "full and slow disks and cuts of power: "+err.Error())
			return
		}
		r.disks = append(r.disks, d)
	}
	if _, err := os.Stat(throttleFile); err != nil {
		r.report.Skipped = append(r.report.Skipped, "slow disks and cuts of power: "+err.Error())
	}
}

// powerCuts need the processes: kafka's and ClickHouse's machine lose power.
func powerCuts(r *round) []fault {
	if len(r.disks) == 0 || !canSlow() {
		return nil
	}
	cut := func(d *disk, down func(), up func(context.Context) error) fault {
		return fault{"power of " + d.name, 6, func(ctx context.Context, h *hand) string {
			ctx = context.WithoutCancel(ctx) // a disk is not left half way
			r.diskUse.Lock()
			defer r.diskUse.Unlock()
			r.power.Lock()
			defer r.power.Unlock()
			down()
			if err := d.losePower(ctx); err != nil {
				h.broken(err)
			}
			if err := up(ctx); err != nil {
				h.broken(err)
			}
			return "power of " + d.name + ", at any moment"
		}}
	}
	store, brokers := r.cluster.Store, r.cluster.Log.Brokers()
	menu := []fault{cut(r.disks[1], store.Down, store.Up)}
	if len(brokers) == 1 {
		menu = append(menu, cut(r.disks[0], brokers[0].Kill, func(context.Context) error { return brokers[0].Up() }))
	}
	return menu
}

// canSlow reports whether a disk can be slowed down, and so stopped.
func canSlow() bool {
	_, err := os.Stat(throttleFile)
	return err == nil
}

// diskFaults are what disks do while their servers run.
func diskFaults(r *round) []fault {
	var menu []fault
	for _, d := range r.disks {
		menu = append(menu, fault{"disk of " + d.name + " full", 4, func(ctx context.Context, h *hand) string {
			r.diskUse.Lock()
			defer r.diskUse.Unlock()
			ballast := d.fill()
			h.wait(ctx, 200*time.Millisecond, 4*time.Second)
			if err := os.Remove(ballast); err != nil {
				h.broken(err)
			}
			return ""
		}})
		if !canSlow() {
			continue
		}
		menu = append(menu, fault{"disk of " + d.name + " slow", 4, func(ctx context.Context, h *hand) string {
			r.diskUse.Lock()
			defer r.diskUse.Unlock()
			if err := d.slow(slowBytesPerSecond); err != nil {
				h.broken(err)
			}
			h.wait(ctx, time.Second, 5*time.Second)
			if err := d.slow(0); err != nil {
				h.broken(err)
			}
			return ""
		}})
	}
	return menu
}

// removeDisks ends the disks, and keeps their files if something went wrong.
func (r *round) removeDisks() error {
	var errs []error
	for _, d := range r.disks {
		if !r.report.OK() || r.cfg.keep {
			errs = append(errs, d.keep())
		}
		errs = append(errs, d.remove())
	}
	return errors.Join(errs...)
}
