// SPDX-License-Identifier: Apache-2.0

// Package report is what a measurement has found: as data, as JSON, as a table
// that says what must hold, as a plot, and as a part of a page.
package report

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// Results are what one run of the benchmark has found. Its times are in
// seconds, milliseconds or microseconds, as their names say, its sizes in MiB.
type Results struct {
	Started time.Time `json:"started"`
	TookS   float64   `json:"tookS"`
	Machine Machine   `json:"machine"`
	// Version is Fairlead's, KubeProxy that of kube-proxy.
	Version   string `json:"version"`
	KubeProxy string `json:"kubeProxy"`
	Settings  `json:"settings"`
	Runs      []Run `json:"runs"`
	// IPVSMachine is what the runs of variant IPVS ran on, if that was another one.
	IPVSMachine *Machine `json:"ipvsMachine,omitempty"`
}

// IPVS and NFTables are the variants of runs in IPVS mode, and in nftables mode.
const (
	IPVS     = "ipvs"
	NFTables = "nftables"
)

// Machine is what it ran on.
type Machine struct {
	CPUs      int    `json:"cpus"`
	CPU       string `json:"cpu"`
	MemoryMiB int    `json:"memoryMiB"`
	Kernel    string `json:"kernel"`
	Iptables  string `json:"iptables"`
	// Load is the load average of the minute before the run. What else the
	// machine does makes all figures worse.
	Load float64 `json:"load"`
}

// Settings are how much was measured.
type Settings struct {
	Samples  int     `json:"samples"`
	Connects int     `json:"connects"`
	Changes  int     `json:"changes"`
	Rate     float64 `json:"rate"`
	Mix      string  `json:"mix"`
	Seed     uint64  `json:"seed"`
	CutoffS  float64 `json:"cutoffS"`
}

// Size is how much there is to program.
type Size struct {
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"`
}

// String returns "1000x10".
func (s Size) String() string { return fmt.Sprintf("%dx%d", s.Services, s.Endpoints) }

// Run is one subject with one variant of iptables, or in another mode, at one size. What was not
// measured is nil.
type Run struct {
	Subject string `json:"subject"`
	Variant string `json:"variant"`
	Size
	// CutOff: the first sync was not finished in time, and nothing else was
	// measured.
	CutOff    bool       `json:"cutOff,omitempty"`
	FirstSync *FirstSync `json:"firstSync,omitempty"`
	// AddedMS is from the write of a Service's first endpoint to the first
	// connect that works; RemovedMS from the write that takes it away to the
	// first that is refused; LeftMS from the write that takes away one of two
	// to the last connect that it got.
	AddedMS   *Dist `json:"addedMS,omitempty"`
	RemovedMS *Dist `json:"removedMS,omitempty"`
	LeftMS    *Dist `json:"leftMS,omitempty"`
	// ChangeSyncMS is how long syncs took, by the process's own account, while endpoints
	// were added and removed one by one: their mean.
	ChangeSyncMS float64  `json:"changeSyncMS,omitempty"`
	Connect      *Connect `json:"connect,omitempty"`
	Memory       *Memory  `json:"memory,omitempty"`
	Churn        *Churn   `json:"churn,omitempty"`
	Restart      *Restart `json:"restart,omitempty"`
	// Floor is for subjects that have one.
	Floor *Floor `json:"floor,omitempty"`
}

// FirstSync is a start on an empty node.
type FirstSync struct {
	// S is from the start of the process until connects to Services from all
	// over the range work.
	S float64 `json:"s"`
	// SyncS is how much of that the process says was spent in syncs.
	SyncS float64 `json:"syncS"`
	// DoneS is from the start of the process until it says that it has synced.
	DoneS float64 `json:"doneS,omitempty"`
}

// Connect has how long connect(2) takes. First, Middle and Last are Services by
// the place of their rules. NoService is an address that no Service has, with
// the rules in place, NoRules the same on a node without any. ByHand is a node with two
// rules, which lead to an endpoint and masquerade.
type Connect struct {
	FirstUS     Dist  `json:"firstUS"`
	MiddleUS    Dist  `json:"middleUS"`
	LastUS      Dist  `json:"lastUS"`
	NoServiceUS Dist  `json:"noServiceUS"`
	ByHandUS    *Dist `json:"byHandUS,omitempty"` // nil where that was not measured
	NoRulesUS   Dist  `json:"noRulesUS"`
}

// Memory is that of the process alone: resident after the first sync, and the
// most until then, or until the changes were made.
type Memory struct {
	SyncedMiB float64 `json:"syncedMiB"`
	PeakMiB   float64 `json:"peakMiB"`
}

// Churn is what Settings.Changes changes cost.
type Churn struct {
	// CPUS is the process's time on the CPU, and that of its commands.
	CPUS float64 `json:"cpuS"`
	// TookS is from the first change until the last one was in effect.
	TookS float64 `json:"tookS"`
	// MemoryMiB is what the process has in memory then.
	MemoryMiB float64 `json:"memoryMiB"`
}

// Restart is a start on a node that has the rules.
type Restart struct {
	// ReadyS is from the start of the process to the end of its first sync, and
	// RulesWritten how many rules that wrote; both by its own account.
	ReadyS       float64 `json:"readyS"`
	RulesWritten int     `json:"rulesWritten"`
	// SaveS is how long a bare iptables-save takes there.
	SaveS float64 `json:"saveS"`
}

// Floor is what the bare restore commands take for what the subject fed to
// them, on the same tables. Of IPVS it is what the API server takes to tell a client
// that watches, and there is none for the first sync.
type Floor struct {
	FirstSyncS float64 `json:"firstSyncS,omitempty"`
	// Restores is how many commands the first sync was.
	Restores  int   `json:"restores,omitempty"`
	AddedMS   *Dist `json:"addedMS,omitempty"`
	RemovedMS *Dist `json:"removedMS,omitempty"`
}

// Dist is a number of samples.
type Dist struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
}

// NewDist sums up samples, in a unit.
func NewDist(samples []time.Duration, unit time.Duration) *Dist {
	if len(samples) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(samples))
	at := func(q float64) float64 { // the nearest rank
		rank := int(math.Ceil(q * float64(len(sorted))))
		return float64(sorted[rank-1]) / float64(unit)
	}
	return &Dist{N: len(sorted), P50: at(0.5), P90: at(0.9), P99: at(0.99)}
}

// Find returns the run of a subject, or nil.
func (r *Results) Find(subject, variant string, size Size) *Run {
	for i := range r.Runs {
		if run := &r.Runs[i]; run.Subject == subject && run.Variant == variant && run.Size == size {
			return run
		}
	}
	return nil
}

// Write writes the results as JSON.
func (r *Results) Write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// Read reads what Write has written.
func Read(file string) (*Results, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var r Results
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read results from %s: %w", file, err)
	}
	return &r, nil
}
