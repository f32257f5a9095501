// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

// agent is a running Fairlead in a node of a lab.
type agent struct {
	t    *testing.T
	node *lab.Node
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended and err is set
	err  error

	mu    sync.Mutex
	lines []string
	// grown is closed, and made anew, when lines grows.
	grown chan struct{}
}

// startAgent starts the agent with a test's flags and those that all share. It
// is killed at the end of the test if it still runs.
func startAgent(ctx context.Context, t *testing.T, node *lab.Node, v lab.Variant, args ...string) *agent {
	t.Helper()
	return startAgentEnv(ctx, t, node, v, nil, args...)
}

func startAgentEnv(ctx context.Context, t *testing.T, node *lab.Node, v lab.Variant, env []string, args ...string) *agent {
	t.Helper()
	return startProgram(ctx, t, node, v, binary, env, args...)
}

// startProgram starts a program that becomes the agent.
func startProgram(ctx context.Context, t *testing.T, node *lab.Node, v lab.Variant, program string, env []string, args ...string) *agent {
	t.Helper()
	args = append([]string{
		"-v=2", "--proxy-mode", *proxyMode, "--hostname-override", node.Label, "--cluster-cidr", clusterCIDR, "--iptables-variant", string(v),
		"--pod-masquerade", "off", "--state-file", "", // which is for their own tests
		"--cni-conf-dir", "/nonexistent", // the machine's own is no business of the lab's
	}, args...)
	cmd := node.Command(ctx, program, args...)
	cmd.Env = append(cmd.Environ(), env...)
	return startProxy(t, node, cmd)
}

// startProxy starts a service proxy, the agent or another one.
func startProxy(t *testing.T, node *lab.Node, cmd *exec.Cmd) *agent {
	t.Helper()
	a := &agent{t: t, node: node, cmd: cmd, done: make(chan struct{}), grown: make(chan struct{})}
	out, err := a.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go a.read(out)
	t.Cleanup(func() {
		a.kill()
		if t.Failed() {
			t.Logf("log of the agent on %s:\n%s", node.Label, strings.Join(a.log(), "\n"))
		}
	})
	return a
}

func (a *agent) read(out io.Reader) {
	for s := bufio.NewScanner(out); s.Scan(); {
		a.mu.Lock()
		a.lines = append(a.lines, s.Text())
		close(a.grown)
		a.grown = make(chan struct{})
		a.mu.Unlock()
	}
	a.err = a.cmd.Wait()
	close(a.done)
}

func (a *agent) log() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.lines...)
}

// waitLog waits until n lines of the log, from the line numbered from on,
// contain all of want.
func (a *agent) waitLog(ctx context.Context, from, n int, want ...string) {
	a.t.Helper()
	for {
		a.mu.Lock()
		found, grown := 0, a.grown
		for _, line := range a.lines[min(from, len(a.lines)):] {
			if containsAll(line, want) {
				found++
			}
		}
		a.mu.Unlock()
		if found >= n {
			return
		}
		select {
		case <-grown:
		case <-a.done:
			a.t.Fatalf("the agent ended (%v) before it logged %q", a.err, want)
		case <-ctx.Done():
			a.t.Fatalf("the agent did not log %q: %v", want, ctx.Err())
		}
	}
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// waitSynced waits for a sync of both families after the log line from.
func (a *agent) waitSynced(ctx context.Context, from int) {
	a.t.Helper()
	a.waitLog(ctx, from, 1, "Synced", `ipFamily="IPv4"`)
	a.waitLog(ctx, from, 1, "Synced", `ipFamily="IPv6"`)
}

// stop asks the agent to stop and returns how long it took. It must exit with
// status 0.
func (a *agent) stop() time.Duration {
	a.t.Helper()
	start := time.Now()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
	select {
	case <-a.done:
	case <-time.After(10 * time.Second):
		a.t.Fatal("the agent did not stop within 10 s of SIGTERM")
	}
	if a.err != nil {
		a.t.Errorf("the agent ended with %v, want status 0", a.err)
	}
	return time.Since(start)
}

// kill ends the agent with SIGKILL.
func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	<-a.done
}

// cpu returns the CPU time that the agent has used so far, and the commands that it
// has waited for: fields 14 to 17 of proc_pid_stat(5), in hundredths of a second.
func (a *agent) cpu() time.Duration {
	a.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.cmd.Process.Pid))
	if err != nil {
		a.t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var sum time.Duration
	for _, f := range fields[14-3 : 17-3+1] {
		n, err := strconv.Atoi(f)
		if err != nil {
			a.t.Fatal(err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}

// get fetches a page from the agent over its own node's loopback.
func (a *agent) get(ctx context.Context, url string) (status int, body string, err error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return a.node.Dial(ctx, network, addr)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// save returns the node's rules of both families.
func save(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) string {
	t.Helper()
	var b strings.Builder
	for _, f := range families() {
		text, err := n.Save(ctx, v, f)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "# %s\n%s", f, text)
	}
	if *proxyMode == "nftables" {
		b.WriteString(tableText(ctx, t, n))
	}
	return b.String()
}

// exitStatus returns the status of a command that has run.
func exitStatus(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}
