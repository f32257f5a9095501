// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"flag"
	"net/netip"
	"testing"
	"time"

	"fairlead/e2e/lab"
)

var transition = flag.Duration("transition", 5*time.Second, "how long clients ask after each change of mode")

// TestKernelIPVSTransitions: from iptables mode to IPVS mode, back, and there again, with
// clients that ask all the time, by connections that are kept and by a new one each, at a
// cluster IP, a node port and a host port. Nothing fails of what is not repeated. The
// control is that requests fail once there are no virtual servers.
func TestKernelIPVSTransitions(t *testing.T) {
	l, v := ipvsLab(t)
	modes := []string{"iptables", "ipvs", "iptables", "ipvs"}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(len(modes))**transition)
	defer cancel()
	node, pod, other := l.Nodes[0], l.Nodes[0].Pods[0], l.Nodes[0].Pods[1]
	dir := newDirectory(t)
	dir.write("web.yaml", exposed(l, pod, l.Nodes[1].Pods[0])...)
	dir.write("pod.yaml", podObject("web", pod, publish(hostPort)))
	var probes []lab.Probe
	for _, f := range families() {
		probes = append(probes, webProbe(other, f, "tcp"), webProbe(node.NS, f, "tcp"),
			lab.Probe{From: l.Client, Network: "tcp", To: netip.AddrPortFrom(node.Addr(f), 30080)},
			ask(l.Client, "tcp", node.Addr(f)))
	}
	for i := range probes {
		probes[i].Timeout = patience
	}
	var a *agent
	var kept *talks
	var anew *crowd
	for _, mode := range modes {
		began := time.Now()
		if a != nil {
			a.stop()
		}
		a = startAgent(ctx, t, node, v, "--proxy-mode", mode, "--manifests", dir.path, "--cni-conf-dir", t.TempDir())
		a.waitSynced(ctx, 0)
		if anew == nil {
			kept, anew = talkTo(ctx, t, probes...), startRequests(ctx, probes...)
			defer anew.stop()
		}
		time.Sleep(time.Until(began.Add(*transition)))
		anew.check(t, "to "+mode)
		kept.check(t, "to "+mode)
	}
	a.kill()
	if _, err := node.Run(ctx, "ipvsadm", "-C"); err != nil {
		t.Fatal(err)
	}
	anew.settle()
	if made, failed, _ := anew.failures(); failed == 0 {
		t.Errorf("none of %d requests failed although there was no virtual server", made)
	}
}
