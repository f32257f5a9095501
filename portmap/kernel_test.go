// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// recording is an Exec that keeps what the last restore was fed, how many there were,
// and how long they took.
type recording struct {
	ruleset.Exec
	input    []byte
	restores int
	took     time.Duration
}

func (r *recording) Run(ctx context.Context, c ruleset.Command) error {
	if strings.HasSuffix(c.Name, "-restore") {
		text, err := io.ReadAll(c.Stdin)
		if err != nil {
			return err
		}
		r.input, c.Stdin = text, bytes.NewReader(text)
		r.restores++
		start := time.Now()
		defer func() { r.took += time.Since(start) }()
	}
	return r.Exec.Run(ctx, c)
}

// kernelRig is a Portmap whose rules go into a kernel.
type kernelRig struct {
	exec    *recording
	engine  *ruleset.Engine
	portmap *Portmap
}

func newKernelRig(h *kerneltest.Host, s kerneltest.Setup, cfg Config) *kernelRig {
	x := &recording{Exec: h}
	e := ruleset.NewEngine(ruleset.Config{
		Exec: x, Commands: s.Commands(), Variant: s.Variant,
		Contributions: []ruleset.Contribution{nat.Contribution(), Contribution(cfg)},
	})
	e.Stage(nat.Chains(14, ""))
	return &kernelRig{x, e, New(cfg)}
}

// update returns how many rules were written, and how long that took.
func (r *kernelRig) update(t *testing.T, pods map[model.ObjectKey]*model.Pod) (written int, took time.Duration) {
	t.Helper()
	start := time.Now()
	r.engine.Stage(r.portmap.Chains(r.portmap.Update(Objects{Pods: pods}, testNode())))
	res, err := r.engine.Apply(t.Context(), ruleset.Options{Prune: true})
	if err != nil || len(res.Refused) > 0 {
		t.Fatalf("apply: %v %v", err, res.Refused)
	}
	for _, n := range res.Written {
		written += n
	}
	return written, time.Since(start)
}

// TestKernelRestart: the rules are written as the commands print them, so that who
// finds them has nothing to write.
func TestKernelRestart(t *testing.T) {
	for _, s := range kerneltest.Setups() {
		t.Run(s.String(), func(t *testing.T) {
			h := kerneltest.New(t, s)
			cfg := Config{Family: model.IPv4, Localhost: true, MasqueradeNeighbours: true}
			if s.IPv6 {
				cfg.Family = model.IPv6
			}
			long := pod(strings.Repeat("long.", 50), 1, "10.244.0.12 fd00:244::12", "9000>90")
			pods := podsOf(pod("web", 1, "10.244.0.11 fd00:244::11", "8080>80", "53/udp>5353", "132/sctp>132",
				"192.0.2.1:9090>90", "[2001:db8::1]:9090>90", "127.0.0.1:9091>90"), long)
			for i := range 100 {
				p := pod(fmt.Sprint("many-", i), 1, fmt.Sprintf("10.245.0.%d fd00:245::%d", i, i+1), fmt.Sprintf("%d>80", 20000+i*37))
				pods[p.Key] = p
			}
			if written, _ := newKernelRig(h, s, cfg).update(t, pods); written == 0 {
				t.Error("nothing was written")
			}
			again := newKernelRig(h, s, cfg)
			if written, _ := again.update(t, pods); written > 0 {
				t.Errorf("a restart writes %d rules:\n%s", written, again.exec.input)
			}
		})
	}
}

// TestKernelOneChangeAmongMany: with 5,000 host ports, one that changes is one command
// that writes a few rules, and takes hardly longer than that.
func TestKernelOneChangeAmongMany(t *testing.T) {
	const hostPorts, rounds, more = 5000, 21, 15 * time.Millisecond
	for _, s := range kerneltest.Setups() {
		if s.IPv6 {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			h := kerneltest.New(t, s)
			one := func(i, generation int) *model.Pod {
				ip := netip.AddrFrom4([4]byte{10, byte(244 + generation%2), byte(i / 200), byte(1 + i%200)})
				return pod(fmt.Sprint("web-", i), 1, ip.String(), fmt.Sprintf("%d>80", 10000+i))
			}
			pods := map[model.ObjectKey]*model.Pod{}
			for i := range hostPorts {
				p := one(i, 0)
				pods[p.Key] = p
			}
			r := newKernelRig(h, s, Config{Family: model.IPv4, Forwarded: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
			_, first := r.update(t, pods)
			var ours, besides, bare []time.Duration
			for i := range rounds {
				r.exec.restores, r.exec.took = 0, 0
				written, took := r.update(t, podsOf(one(hostPorts/2, i+1)))
				if written == 0 || written > 20 || r.exec.restores != 1 {
					t.Errorf("one host port that changes: %d rules were written by %d commands", written, r.exec.restores)
				}
				ours, besides = append(ours, took), append(besides, took-r.exec.took)
				r.exec.took = 0
				err := r.exec.Run(t.Context(), ruleset.Command{
					Name: s.Commands().Restore, Args: []string{"--noflush", "-w", "5"}, Stdin: bytes.NewReader(r.exec.input),
				})
				if err != nil {
					t.Fatal(err)
				}
				bare = append(bare, r.exec.took)
			}
			p50 := func(d []time.Duration) time.Duration {
				slices.Sort(d)
				return d[len(d)/2].Round(10 * time.Microsecond)
			}
			t.Logf("%d host ports in %v; one change %v, %v of it besides the command; the bare command %v (p50)",
				hostPorts, first, p50(ours), p50(besides), p50(bare))
			if besides[0] > more { // the least, as others use the machine, too
				t.Errorf("a change takes %v besides its command, want at most %v", besides[0], more)
			}
		})
	}
}
