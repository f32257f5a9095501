// SPDX-License-Identifier: Apache-2.0

package e2e

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
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelRestart: a restart with unchanged objects runs no restore command,
// moves nothing in nf_tables, keeps the rules' counters, and breaks no
// connection.
func TestKernelRestart(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0], l.Nodes[1].Pods[0])...)
		first := startAgent(ctx, t, node, v, "--manifests", dir.path)
		first.waitSynced(ctx, 0)

		var held []*lab.Held
		for _, f := range families() {
			h, err := webProbe(node.Pods[1], f, "tcp").Hold(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			held = append(held, h)
		}
		if took := first.stop(); took > time.Second {
			t.Errorf("stopping took %s, want at most a second", took)
		}
		before, gen := counters(ctx, t, node, v), generation(t, node)

		logged := newLoggedCommands(t)
		second := startAgentEnv(ctx, t, node, v, []string{logged.path()}, "--manifests", dir.path)
		second.waitSynced(ctx, 0)
		if got := logged.matching("-restore --noflush"); len(got) > 0 {
			t.Errorf("the restart ran %q, want no restore", got)
		}
		if len(logged.matching("-save")) == 0 {
			t.Error("no save command was logged: the log does not see the agent's commands")
		}
		// In nftables mode an agent tries out at start what the kernel can do.
		if got := generation(t, node); got != gen && *proxyMode != "nftables" {
			t.Errorf("nf_tables generation went from %d to %d", gen, got)
		}
		if diff := cmp.Diff(before, counters(ctx, t, node, v)); diff != "" {
			t.Errorf("rules or counters changed (-before +after):\n%s", diff)
		}
		for _, h := range held {
			if r := h.Ping(ctx); r.Outcome != lab.Answered {
				t.Errorf("a connection made before the restart: %s", r)
			}
		}
	})
}

// counters returns the rules that lead to Services with their counters, in IPVS mode the
// virtual servers with their connections, and in nftables mode the table, which counts nothing. The held connections are silent, so
// nothing moves them.
func counters(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) string {
	t.Helper()
	if *proxyMode == "ipvs" {
		return virtualServers(ctx, t, n)
	}
	if *proxyMode == "nftables" {
		return tableText(ctx, t, n)
	}
	var b strings.Builder
	for _, f := range families() {
		out, err := n.Run(ctx, v.Tool(f, "-save"), "-c", "-t", "nat")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, " -A KUBE-SVC-") || strings.Contains(line, " -A KUBE-SEP-") {
				b.WriteString(line)
			}
		}
	}
	if !strings.Contains(b.String(), "[1:") {
		t.Fatalf("no rule has counted anything:\n%s", &b)
	}
	return b.String()
}

// generation returns the number of nf_tables commits in the node's namespace
// (NFT_MSG_GETGEN, linux/netfilter/nf_tables.h).
func generation(t *testing.T, n *lab.Node) uint32 {
	t.Helper()
	const getGen, attrID = 16, 1
	var id uint32
	err := n.Do(func() error {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|getGen, 0)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
			if err != nil {
				return err
			}
			for _, a := range attrs {
				if a.Attr.Type == attrID {
					id = uint32(a.Value[0])<<24 | uint32(a.Value[1])<<16 | uint32(a.Value[2])<<8 | uint32(a.Value[3])
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("read the nf_tables generation: %v", err)
	}
	return id
}

// loggedCommands is a directory for PATH in which every iptables command notes
// that it ran before it does.
type loggedCommands struct {
	t        *testing.T
	dir, log string
}

func newLoggedCommands(t *testing.T) *loggedCommands {
	t.Helper()
	c := &loggedCommands{t: t, dir: t.TempDir()}
	c.log = filepath.Join(c.dir, "log")
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, v := range []string{"", "-nft", "-legacy"} {
			for _, suffix := range []string{"", "-save", "-restore"} {
				c.wrap(base+v+suffix, "")
			}
		}
	}
	return c
}

// wrap puts a command into the directory that runs a line of shell first.
func (c *loggedCommands) wrap(name, line string) {
	c.t.Helper()
	real, err := exec.LookPath(name)
	if err != nil {
		return
	}
	script := fmt.Sprintf("#!/bin/sh\necho \"%s $*\" >>%s\n%s\nexec %s \"$@\"\n", name, c.log, line, real)
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(script), 0o755); err != nil {
		c.t.Fatal(err)
	}
}

func (c *loggedCommands) path() string { return "PATH=" + c.dir + ":" + os.Getenv("PATH") }

// matching returns the commands that ran and contain a text.
func (c *loggedCommands) matching(text string) []string {
	c.t.Helper()
	log, err := os.ReadFile(c.log)
	if err != nil && !os.IsNotExist(err) {
		c.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, text) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// slowRestore makes the restore command of IPv4 say that it has begun, and then
// hang. The returned function waits until it has.
func (c *loggedCommands) slowRestore(v lab.Variant) (begun func()) {
	c.t.Helper()
	fifo := filepath.Join(c.dir, "begun")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.wrap("iptables-"+string(v)+"-restore", `case "$*" in *noflush*) echo begun >`+fifo+`; exec sleep 60;; esac`)
	return func() {
		c.t.Helper()
		if _, err := os.ReadFile(fifo); err != nil {
			c.t.Fatal(err)
		}
	}
}

// TestKernelStopDuringSync: an agent that is told to stop while a restore
// command hangs does so within a second, and takes the command with it.
func TestKernelStopDuringSync(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, l.Nodes[0].Pods[0])...)
		logged := newLoggedCommands(t)
		begun := logged.slowRestore(v)
		a := startAgentEnv(ctx, t, l.Nodes[0], v, []string{logged.path()}, "--manifests", dir.path)
		begun()
		if took := a.stop(); took > time.Second {
			t.Errorf("stopping took %s, want at most a second", took)
		}
	})
}

// TestKernelKilledDuringSync: an agent that is killed while it restores rules
// leaves a node that the next one brings to the right state.
func TestKernelKilledDuringSync(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)

		logged := newLoggedCommands(t)
		begun := logged.slowRestore(v)
		first := startAgentEnv(ctx, t, node, v, []string{logged.path()}, "--manifests", dir.path)
		begun()
		first.kill()

		second := startAgent(ctx, t, node, v, "--manifests", dir.path)
		second.waitSynced(ctx, 0)
		forFlows(t, func(t *testing.T, f model.Family, network string) {
			if r := webProbe(node.Pods[1], f, network).Once(ctx); r.Outcome != lab.Answered {
				t.Errorf("after the restart: %s", r)
			}
		})
	})
}
