// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// configMap is a directory as kubelet makes it of a ConfigMap: a file is a link through
// another one, which is replaced in one step.
type configMap struct {
	t       *testing.T
	dir     string
	version int
}

func newConfigMap(t *testing.T) *configMap {
	t.Helper()
	c := &configMap{t: t, dir: t.TempDir()}
	if err := os.Symlink("..data/config.conf", c.file()); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *configMap) file() string { return filepath.Join(c.dir, "config.conf") }

// set makes fields those of a KubeProxyConfiguration.
func (c *configMap) set(fields string) {
	c.t.Helper()
	c.version++
	name := fmt.Sprintf("..%d", c.version)
	tmp := filepath.Join(c.dir, "..data_tmp")
	text := "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: " + clusterCIDR + "\n" + fields
	for _, step := range []func() error{
		func() error { return os.Mkdir(filepath.Join(c.dir, name), 0o755) },
		func() error { return os.WriteFile(filepath.Join(c.dir, name, "config.conf"), []byte(text), 0o644) },
		func() error { return os.Symlink(name, tmp) },
		func() error { return os.Rename(tmp, filepath.Join(c.dir, "..data")) },
	} {
		if err := step(); err != nil {
			c.t.Fatal(err)
		}
	}
}

// TestKernelConfigFile: the agent does what the file of a ConfigMap says. A change takes
// effect in the same process, and not one connection fails for it; a file that makes no
// sense, or is impossible on this node, is refused, and all goes on.
func TestKernelConfigFile(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir, cm := newDirectory(t), newConfigMap(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		cm.set("iptables: {masqueradeBit: 20}\nunknown: 1\n")
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--config", cm.file())
		a.waitLog(ctx, 0, 1, "Warning: "+cm.file()+":5: unknown field unknown; it has no effect")
		a.waitLog(ctx, 0, 1, "--proxy-mode has no effect beside --config")
		a.waitSynced(ctx, 0)
		rules := func(has, lacks string) {
			t.Helper()
			if text := save(ctx, t, node, v); !strings.Contains(text, has) || strings.Contains(text, lacks) {
				t.Errorf("rules without %q, or with %q:\n%s", has, lacks, text)
			}
		}
		rules("0x100000/0x100000", "0x4000/0x4000")

		probe := webProbe(node.Pods[1], model.IPv4, "tcp")
		held, err := probe.Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		stop := probeOn(ctx, probe)
		from := len(a.log())
		cm.set("iptables: {masqueradeBit: 14}\n")
		a.waitLog(ctx, from, 1, "The configuration has changed, starting anew")
		a.waitSynced(ctx, from)
		rules("0x4000/0x4000", "0x100000/0x100000")

		from = len(a.log())
		cm.set("iptables: {masqueradeBit: 99}\n")
		a.waitLog(ctx, from, 1, "Refused the changed configuration", cm.file()+":4: iptables.masqueradeBit 99")
		if _, body := fetch(ctx, t, a, "http://127.0.0.1:10249/metrics"); !strings.Contains(body, "\nfairlead_config_refused 1\n") {
			t.Error("fairlead_config_refused is not 1")
		}
		taken, err := node.Listen(ctx, "tcp", "127.0.0.1:10299")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		from = len(a.log())
		cm.set("metricsBindAddress: 127.0.0.1:10299\n")
		a.waitLog(ctx, from, 1, "Refused the changed configuration", cm.file()+":4: metricsBindAddress: listen tcp 127.0.0.1:10299: bind: address already in use")
		from = len(a.log())
		cm.set("iptables: {masqueradeBit: 15}\n")
		a.waitSynced(ctx, from)
		rules("0x8000/0x8000", "0x4000/0x4000")
		if tally := stop(); tally.Servers[node.Pods[0].Label] == 0 || tally.Refused+tally.TimedOut+tally.Failed > 0 {
			t.Errorf("connections meanwhile: %+v", tally)
		}
		if r := held.Ping(ctx); r.Outcome != lab.Answered {
			t.Errorf("a connection of before: %s", r)
		}
		if status, body := fetch(ctx, t, a, "http://127.0.0.1:10249/configz"); status != 200 || !strings.Contains(body, `"masqueradeBit":15`) {
			t.Errorf("/configz: got %d %s", status, body)
		}
		a.stop()
	})
}

// probeOn makes requests one after the other until the function that it returns is
// called, which returns what became of them.
func probeOn(ctx context.Context, p lab.Probe) (stop func() lab.Tally) {
	ctx, cancel := context.WithCancel(ctx)
	sum := lab.Tally{Servers: map[string]int{}}
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			t := p.Spread(context.WithoutCancel(ctx), 10)
			for server, n := range t.Servers {
				sum.Servers[server] += n
			}
			sum.Refused, sum.TimedOut, sum.Failed = sum.Refused+t.Refused, sum.TimedOut+t.TimedOut, sum.Failed+t.Failed
		}
	})
	return func() lab.Tally {
		cancel()
		done.Wait()
		return sum
	}
}

// TestKernelInitOnly: --init-only makes the kernel's settings what an agent without the
// permission to do so needs, the rule that keeps neighbours from 127.0.0.1 first; it
// leaves the rules of others and those of an agent alone. --cleanup takes all back.
func TestKernelInitOnly(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		run := func(args ...string) {
			t.Helper()
			var out bytes.Buffer
			cmd := node.Command(ctx, binary, append(args, "--proxy-mode", *proxyMode, "--iptables-variant", string(v))...)
			cmd.Stderr = &out
			if err := cmd.Run(); err != nil {
				t.Fatalf("%s: %v\n%s", args, err, &out)
			}
		}
		check := func(setting string, guarded bool) {
			t.Helper()
			if got := routeLocalnet(t, node); got != setting {
				t.Errorf("route_localnet is %s, want %s", got, setting)
			}
			if got := strings.Contains(save(ctx, t, node, v), loopbackGuard()); got != guarded {
				t.Errorf("the rule that keeps neighbours away: %t, want %t", got, guarded)
			}
		}
		run("--init-only", "--iptables-localhost-nodeports=false")
		check("0", false)
		run("--init-only", "--conntrack-tcp-timeout-established=2h")
		check("1", true)
		if got := conntrackSetting(t, node, "tcp_timeout_established"); got != "7200" {
			t.Errorf("tcp_timeout_established is %s, want 7200", got)
		}
		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		before := save(ctx, t, node, v)
		run("--init-only")
		if after := save(ctx, t, node, v); after != before {
			t.Errorf("beside an agent, rules changed from\n%s\nto\n%s", before, after)
		}
		a.stop()
		run("--cleanup")
		check("0", false)
		if text := save(ctx, t, node, v); strings.Contains(text, "KUBE-S") {
			t.Errorf("after --cleanup:\n%s", text)
		}
	})
}

// TestKernelOOMScore: the kernel is told how soon to end the agent when memory runs out.
func TestKernelOOMScore(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	node := newLab(t).Nodes[0]
	a := startAgent(ctx, t, node, oneVariant(), "--manifests", "/nonexistent", "--oom-score-adj=321")
	a.waitLog(ctx, 0, 1, "/nonexistent")
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(text)); got != "321" {
		t.Errorf("oom_score_adj is %s, want 321", got)
	}
}
