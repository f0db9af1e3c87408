package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// processTree returns some processes and all their descendants.
func processTree(roots []int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, fmt.Errorf("find processes: %w", err)
	}
	children := make(map[int][]int)
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		fields, err := statFields(pid)
		if err != nil {
			continue // it has ended
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	all := append([]int(nil), roots...)
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// treeCPU is the processor time that a target's processes have used.
func treeCPU(t target) (total time.Duration, err error) {
	pids, err := processTree(t.processes())
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		used, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// memory is what processes have in RAM.
type memory struct {
	resident     int64 // pages that several share count for each (VmRSS)
	proportional int64 // and here for each its share (Pss)
}

func treeMemory(t target) (memory, error) {
	pids, err := processTree(t.processes())
	if err != nil {
		return memory{}, err
	}
	return memoryOf(pids)
}

func memoryOf(pids []int) (total memory, err error) {
	for _, pid := range pids {
		resident, err := residentBytes(pid)
		if err != nil {
			return memory{}, err
		}
		total.resident += resident
		pss := strings.TrimSuffix(procField(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss"), " kB")
		kib, err := strconv.ParseInt(pss, 10, 64)
		if err != nil {
			return memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		total.proportional += kib << 10
	}
	return total, nil
}

// ownCPU is the processor time that this process has used.
func ownCPU() (time.Duration, error) { return cpuTime(os.Getpid()) }
