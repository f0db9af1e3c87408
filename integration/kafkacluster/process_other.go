//go:build !linux

package kafkacluster

import "syscall"

func diesWithParent() *syscall.SysProcAttr { return nil }
