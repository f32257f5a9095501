// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Group is what one table shows: all subjects with one variant at one size.
type Group struct {
	Variant string
	Size
	Runs []*Run
	all  *Results
}

// Groups returns the groups of which all was measured, smaller sizes first.
func (r *Results) Groups() []Group {
	var out []Group
	for i := range r.Runs {
		run := &r.Runs[i]
		at := slices.IndexFunc(out, func(g Group) bool { return g.Variant == run.Variant && g.Size == run.Size })
		if at < 0 {
			at = len(out)
			out = append(out, Group{Variant: run.Variant, Size: run.Size, all: r})
		}
		out[at].Runs = append(out[at].Runs, run)
	}
	out = slices.DeleteFunc(out, func(g Group) bool { return !g.complete() })
	slices.SortStableFunc(out, func(a, b Group) int {
		return a.Services*max(a.Endpoints, 1) - b.Services*max(b.Endpoints, 1)
	})
	return out
}

// complete tells a table from points of the plot: something has more than a
// first sync and one change, or is shown for its memory. Of modes other than iptables
// there is no plot.
func (g Group) complete() bool {
	return g.Variant == IPVS || g.Variant == NFTables || slices.ContainsFunc(g.Runs, func(r *Run) bool {
		return r.Connect != nil || r.FirstSync != nil && r.AddedMS == nil
	})
}

// find returns the run of a subject, or nil.
func (g Group) find(subject string) *Run {
	for _, r := range g.Runs {
		if r.Subject == subject {
			return r
		}
	}
	return nil
}

// Reference and Product are the subjects whose ratio the tables show.
const (
	Reference = "kube-proxy"
	Product   = "fairlead"
)

// row is a line of a table. Its values are NaN where nothing was measured.
type row struct {
	key    string // for targets; empty if there is none
	name   string
	format string
	value  func(*Run) float64
	// floor is what the subject's floor says; nil where it says nothing.
	floor func(*Floor) float64
	// cutOff: a run that was cut off shows after how long here.
	cutOff bool
}

// at returns the 50th, 90th or 99th percentile.
func (d *Dist) at(percentile int) float64 {
	if d == nil {
		return math.NaN()
	}
	return map[int]float64{50: d.P50, 90: d.P90, 99: d.P99}[percentile]
}

// of returns a value of a part that may be missing.
func of[P any](part *P, get func(*P) float64) float64 {
	if part == nil {
		return math.NaN()
	}
	return get(part)
}

// Keys of the rows that have targets.
const (
	keyFirstSync = "firstSync"
	keyDone      = "done"
	keyAdded     = "added"
	keyRemoved   = "removed"
	keyChange    = "change"
	keyLast      = "last"
	keySynced    = "synced"
	keyChanged   = "changed"
	keyCPU       = "cpu"
	keyReady     = "ready"
	keyWritten   = "written"
)

// rows are the lines of every table.
func rows() []row {
	out := []row{
		{key: keyFirstSync, name: "first sync, s", format: "%.2f", cutOff: true,
			value: func(r *Run) float64 { return of(r.FirstSync, func(f *FirstSync) float64 { return f.S }) },
			floor: func(f *Floor) float64 {
				if f.Restores == 0 {
					return math.NaN()
				}
				return f.FirstSyncS
			}},
		{key: keyDone, name: "· until it says so itself", format: "%.2f",
			value: func(r *Run) float64 {
				if r.FirstSync == nil || r.FirstSync.DoneS == 0 {
					return math.NaN()
				}
				return r.FirstSync.DoneS
			}},
		{name: "· of it in the sync itself", format: "%.2f",
			value: func(r *Run) float64 { return of(r.FirstSync, func(f *FirstSync) float64 { return f.SyncS }) }},
	}
	for _, c := range []struct {
		key, name string
		get       func(*Run) *Dist
		floor     func(*Floor) *Dist
	}{
		{keyAdded, "endpoint added → works", func(r *Run) *Dist { return r.AddedMS }, func(f *Floor) *Dist { return f.AddedMS }},
		{keyRemoved, "endpoint removed → refused", func(r *Run) *Dist { return r.RemovedMS }, func(f *Floor) *Dist { return f.RemovedMS }},
	} {
		for _, percentile := range []int{50, 90, 99} {
			out = append(out, row{key: keyOfMedian(c.key, percentile), name: fmt.Sprintf("%s, ms, p%d", c.name, percentile), format: "%.1f",
				value: func(r *Run) float64 { return c.get(r).at(percentile) },
				floor: func(f *Floor) float64 { return c.floor(f).at(percentile) }})
		}
	}
	out = append(out, row{key: keyChange, name: "· sync of one such change, ms, mean", format: "%.2f",
		value: func(r *Run) float64 {
			if r.ChangeSyncMS == 0 {
				return math.NaN()
			}
			return r.ChangeSyncMS
		}})
	out = append(out, row{name: "one of two removed → left, ms, p50", format: "%.1f",
		value: func(r *Run) float64 { return r.LeftMS.at(50) }})
	return append(append(out, connectRows()...), costRows()...)
}

// keyOfMedian is the key if the percentile is the median, which has the targets.
func keyOfMedian(key string, percentile int) string {
	if percentile != 50 {
		return ""
	}
	return key
}

// connectRows are those of connect(2).
func connectRows() []row {
	var out []row
	for _, c := range []struct {
		key, name string
		get       func(*Connect) *Dist
	}{
		{"", "connect to first VIP", func(c *Connect) *Dist { return &c.FirstUS }},
		{"", "connect to middle VIP", func(c *Connect) *Dist { return &c.MiddleUS }},
		{keyLast, "connect to last VIP", func(c *Connect) *Dist { return &c.LastUS }},
		{"", "connect to no Service", func(c *Connect) *Dist { return &c.NoServiceUS }},
		{"", "connect by two rules", func(c *Connect) *Dist { return c.ByHandUS }},
		{"", "connect without rules", func(c *Connect) *Dist { return &c.NoRulesUS }},
	} {
		for _, percentile := range []int{50, 99} {
			out = append(out, row{key: keyOfMedian(c.key, percentile), name: fmt.Sprintf("%s, µs, p%d", c.name, percentile), format: "%.1f",
				value: func(r *Run) float64 {
					return of(r.Connect, func(k *Connect) float64 { return c.get(k).at(percentile) })
				}})
		}
	}
	return out
}

// costRows are memory, CPU time and restart.
func costRows() []row {
	memory := func(get func(*Memory) float64) func(*Run) float64 {
		return func(r *Run) float64 { return of(r.Memory, get) }
	}
	restart := func(get func(*Restart) float64) func(*Run) float64 {
		return func(r *Run) float64 { return of(r.Restart, get) }
	}
	rules := func(get func(*Restart) float64) func(*Run) float64 {
		return func(r *Run) float64 {
			if r.Variant == IPVS || r.Variant == NFTables { // where rules are few, and not what matters
				return math.NaN()
			}
			return of(r.Restart, get)
		}
	}
	return []row{
		{key: keySynced, name: "memory after first sync, MiB", format: "%.0f", value: memory(func(m *Memory) float64 { return m.SyncedMiB })},
		{key: keyChanged, name: "memory after the changes, MiB", format: "%.0f", value: func(r *Run) float64 {
			return of(r.Churn, func(c *Churn) float64 { return c.MemoryMiB })
		}},
		{name: "· most until then", format: "%.0f", value: memory(func(m *Memory) float64 { return m.PeakMiB })},
		{key: keyCPU, name: "CPU for the changes, s", format: "%.2f", value: func(r *Run) float64 {
			return of(r.Churn, func(c *Churn) float64 { return c.CPUS })
		}},
		{key: keyReady, name: "restart: ready, s", format: "%.2f", value: restart(func(r *Restart) float64 { return r.ReadyS })},
		{key: keyWritten, name: "· rules written", format: "%.0f", value: rules(func(r *Restart) float64 { return float64(r.RulesWritten) })},
		{name: "· bare iptables-save, s", format: "%.2f", value: rules(func(r *Restart) float64 { return r.SaveS })},
	}
}

// none stands for what was not measured.
const none = "–"

// Table returns the group's table: a line of heads, and a line for each figure
// that some run has.
func (g Group) Table(cutoffS float64) [][]string {
	head := []string{fmt.Sprintf("%d × %d, %s", g.Services, g.Endpoints, g.Variant)}
	for _, r := range g.Runs {
		if r.Floor != nil {
			head = append(head, floorName(r.Subject))
		}
		head = append(head, r.Subject)
	}
	both := g.find(Product) != nil && g.find(Reference) != nil
	if both {
		head = append(head, Reference+" / "+Product)
	}
	head = append(head, "must hold")
	table := [][]string{head}
	for _, row := range rows() {
		cells, any := g.cells(row, cutoffS)
		if !any {
			continue
		}
		if both {
			cells = append(cells, ratio(row.value(g.find(Reference)), row.value(g.find(Product))))
		}
		table = append(table, append(append([]string{row.name}, cells...), g.verdicts(row)))
	}
	return table
}

// floorName is the head of the column of a subject's floor.
func floorName(subject string) string {
	if subject == Product {
		return "floor"
	}
	return strings.TrimPrefix(subject, Product+"-") + " floor"
}

// cells are the figures of a row, and whether there are any.
func (g Group) cells(row row, cutoffS float64) (out []string, any bool) {
	for _, r := range g.Runs {
		if r.Floor != nil {
			cell := none
			if row.floor != nil {
				cell = show(row.floor(r.Floor), row.format)
			}
			out = append(out, cell)
		}
		cell := show(row.value(r), row.format)
		any = any || cell != none
		if r.CutOff && row.cutOff {
			cell = fmt.Sprintf("> %.0f", cutoffS)
		}
		out = append(out, cell)
	}
	return out, any
}

func show(v float64, format string) string {
	if math.IsNaN(v) {
		return none
	}
	return fmt.Sprintf(format, v)
}

func ratio(a, b float64) string {
	switch r := a / b; {
	case math.IsNaN(r), math.IsInf(r, 0):
		return none
	case r >= 10:
		return fmt.Sprintf("%.0f", r)
	default:
		return fmt.Sprintf("%.1f", r)
	}
}

// Text lays a table out for a terminal.
func Text(table [][]string) string {
	width := make([]int, len(table[0]))
	for _, line := range table {
		for i, cell := range line {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for _, line := range table {
		for i, cell := range line {
			pad := strings.Repeat(" ", width[i]-len([]rune(cell)))
			switch {
			case i == 0:
				b.WriteString(cell + pad)
			default:
				b.WriteString("  " + pad + cell)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Markdown lays a table out for a page.
func Markdown(table [][]string) string {
	var b strings.Builder
	for i, line := range table {
		b.WriteString("| " + strings.Join(line, " | ") + " |\n")
		if i == 0 {
			b.WriteString("|---|" + strings.Repeat("--:|", len(line)-1) + "\n")
		}
	}
	return b.String()
}
