// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/e2e/lab"
)

func TestKernelCloseLeavesNothing(t *testing.T) {
	before := links(t)
	l := newLab(t, lab.Config{Nodes: 2, Pods: 1})
	echo(t, l.Nodes[0].Pods[0])
	cmd := l.Nodes[0].Command(context.Background(), "sh", "-c", "echo ready; exec sleep 1000")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, links(t)); diff != "" {
		t.Errorf("a lab shows on the outside: -before +now:\n%s", diff)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Errorf("process in a closed lab: got %v, want killed", err)
	}
	left, err := filepath.Glob("/var/run/netns/" + l.Prefix() + "*")
	if err != nil || len(left) > 0 {
		t.Errorf("got namespaces %v, %v after Close, want none", left, err)
	}
	if diff := cmp.Diff(before, links(t)); diff != "" {
		t.Errorf("links after Close: -before +now:\n%s", diff)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestKernelFailureMidwayLeavesNothing(t *testing.T) {
	newLab(t, lab.Config{}) // skips where there are no labs
	before := namespaces(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := lab.New(ctx, lab.Config{Pods: 100})
	if err == nil {
		t.Fatal("a lab of 100 pods in 30 ms: got no error")
	}
	if diff := cmp.Diff(before, namespaces(t)); diff != "" {
		t.Errorf("-before +now:\n%s", diff)
	}
}

func TestKernelSweep(t *testing.T) {
	newLab(t, lab.Config{})
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("fl-%d-abcdef-node-1", dead.Process.Pid)
	foreign := fmt.Sprintf("fl-other-%d", os.Getpid())
	for _, ns := range []string{name, foreign} {
		if err := exec.Command("ip", "netns", "add", ns).Run(); err != nil {
			t.Fatal(err)
		}
	}
	before := namespaces(t)
	if err := lab.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	delete(before, name)
	if diff := cmp.Diff(before, namespaces(t)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := exec.Command("ip", "netns", "del", foreign).Run(); err != nil {
		t.Error(err)
	}
}

// namespaces returns the names of this process's labs and of what a test made.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	entries, err := os.ReadDir("/var/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fmt.Sprintf("fl-%d-", os.Getpid())) || strings.Contains(e.Name(), "-abcdef-") {
			names[e.Name()] = true
		}
	}
	return names
}

// links returns the machine's own links.
func links(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
