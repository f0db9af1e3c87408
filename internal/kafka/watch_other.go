//go:build !linux

package kafka

import "errors"

// watcher is not to be had here: the broker syncs by itself.
type watcher struct{}

func newWatcher() (*watcher, error) { return nil, errors.ErrUnsupported }

func (w *watcher) close() error                     { return nil }
func (w *watcher) add(string) error                 { return errors.ErrUnsupported }
func (w *watcher) changes(func(change) error) error { return errors.ErrUnsupported }
