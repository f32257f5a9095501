// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The parts of the page between these lines are the program's, the rest is
// people's.
const (
	beginMark = "<!-- results: written by make bench -->"
	endMark   = "<!-- end of results -->"
)

// Names of the files in the directory of documents.
const (
	PageFile = "performance.md"
	DataFile = "performance.json"
	PlotFile = "performance.svg"
)

// UpdateDocs writes the results as JSON and as a plot to a directory, and as
// tables into the page there.
func (r *Results) UpdateDocs(dir string) error {
	page := filepath.Join(dir, PageFile)
	text, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("read page: %w", err)
	}
	updated, err := r.UpdatePage(string(text))
	if err != nil {
		return fmt.Errorf("update %s: %w", page, err)
	}
	if err := r.Write(filepath.Join(dir, DataFile)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, PlotFile), []byte(r.Plot()), 0o644); err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	if err := os.WriteFile(page, []byte(updated), 0o644); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// UpdatePage returns a page with the results between its marks.
func (r *Results) UpdatePage(page string) (string, error) {
	before, rest, ok := strings.Cut(page, beginMark+"\n")
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("it has no lines %q and %q", beginMark, endMark)
	}
	return before + beginMark + "\n" + r.page() + endMark + after, nil
}

// page is the part of the page that is ours.
func (r *Results) page() string {
	var b strings.Builder
	m := r.Machine
	fmt.Fprintf(&b, "\nFairlead %s beside kube-proxy %s, on %s. %d CPUs (%s), %d GiB, kernel %s, iptables %s; load average before the run %.1f. All took %s.\n",
		r.Version, r.KubeProxy, r.Started.Format("2006-01-02"), m.CPUs, m.CPU, (m.MemoryMiB+512)>>10, m.Kernel, m.Iptables, m.Load,
		(time.Duration(r.TookS) * time.Second).String())
	if r.Plot() != "" {
		fmt.Fprintf(&b, "\n![cost of one change and of a first sync against the number of Services](%s)\n", PlotFile)
	}
	if m := r.IPVSMachine; m != nil {
		fmt.Fprintf(&b, "\nThe tables of ipvs are from User-Mode Linux, kernel %s with %d CPU.\n", m.Kernel, m.CPUs)
	}
	for _, g := range r.Groups() {
		fmt.Fprintf(&b, "\n%s", Markdown(g.Table(r.CutoffS)))
	}
	b.WriteString("\n")
	return b.String()
}
