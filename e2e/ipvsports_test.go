// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelIPVSReservedBefore: in IPVS mode --init-only reserves node ports where the kernel
// may choose them for sockets, and an agent after it has nothing to write there.
func TestKernelIPVSReservedBefore(t *testing.T) {
	l, v := ipvsLab(t)
	ctx := testContext(t)
	node := l.Nodes[0]
	const chosen, reserved = "net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/ip_local_reserved_ports"
	if err := node.SetSysctl(chosen, "20000 60999"); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		text, err := node.Run(ctx, "cat", reserved)
		if got := strings.TrimSpace(text); err != nil || got != "30000-32767" {
			t.Errorf("%s: reserved are %q, %v", when, got, err)
		}
	}
	if out, err := node.Command(ctx, binary, "--init-only", "--proxy-mode", "ipvs", "--iptables-variant", string(v)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	check("after --init-only")
	dir := newDirectory(t)
	dir.write("web.yaml", exposed(l, node.Pods[0])...)
	a := startAgent(ctx, t, node, v, "--proxy-mode", "ipvs", "--manifests", dir.path)
	a.waitSynced(ctx, 0)
	check("with an agent")
	for _, line := range a.log() {
		if strings.Contains(line, "ip_local_reserved_ports") {
			t.Errorf("the agent says %s", line)
		}
	}
	a.stop()
}

// TestKernelIPVSSourcePorts: answers that are for an address of the node, and for a port
// where there is a virtual server, get to who waits for them. What is masqueraded is
// made to have a node port's number for its source port, and to processes of the node
// the kernel has little else to give: five ports, of which three are node ports.
func TestKernelIPVSSourcePorts(t *testing.T) {
	l, v := ipvsLab(t)
	ctx := testContext(t)
	node, pod, client := l.Nodes[0], l.Nodes[0].Pods[1], l.Client
	if err := l.RouteClient(node, netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:f::/64")); err != nil {
		t.Fatal(err)
	}
	dir := newDirectory(t)
	dir.write("web.yaml", exposed(l, l.Nodes[1].Pods[0])...)
	a := startEgress(ctx, t, l, v, "--proxy-mode", "ipvs", "--manifests", dir.path, "--non-masquerade-cidrs", nodesExempt)
	a.waitLog(ctx, 0, 1, "ip_local_reserved_ports", `to="30080-30082"`)
	if err := node.SetSysctl("net/ipv4/ip_local_port_range", "30079 30083"); err != nil {
		t.Fatal(err)
	}
	taken := map[string]uint16{"tcp": 30080, "udp": dnsNodePort}
	for _, f := range families() {
		for network, port := range taken {
			for _, match := range [][]string{
				{"-m", "mark", "--mark", "0x4000/0x4000"},
				{"-s", pod.Addr(f).String(), "-d", client.Addr(f).String()},
			} {
				args := append([]string{"-t", "nat", "-I", "POSTROUTING", "-p", network}, match...)
				args = append(args, "-j", "MASQUERADE", "--to-ports", strconv.Itoa(int(port)))
				if err := node.Iptables(ctx, v, f, args...); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	forFlows(t, func(t *testing.T, f model.Family, network string) {
		port := taken[network]
		service := udpAddrs(l, f) // the addresses are those of TCP, too
		at := func(kind string) netip.AddrPort {
			switch {
			case kind == "node port":
				return netip.AddrPortFrom(node.Addr(f), port)
			case network == "tcp":
				return netip.AddrPortFrom(service[kind].Addr(), httpPort)
			}
			return service[kind]
		}
		for _, tt := range []struct {
			name  string
			probe lab.Probe
			own   bool // the port is the client's own
		}{
			{"node to a cluster IP", lab.Probe{From: node.NS, To: at("cluster IP")}, false},
			{"client to a cluster IP", lab.Probe{From: client, To: at("cluster IP")}, false},
			{"client to a node port", lab.Probe{From: client, To: at("node port")}, false},
			{"node to its node port", lab.Probe{From: node.NS, To: at("node port")}, false},
			{"client to a load balancer", lab.Probe{From: client, To: at("load balancer IP")}, false},
			{"client to an external IP", lab.Probe{From: client, To: at("external IP")}, false},
			{"pod to the outside", lab.Probe{From: pod, To: netip.AddrPortFrom(client.Addr(f), outsidePort)}, false},
			{"node to the outside", lab.Probe{From: node.NS, To: netip.AddrPortFrom(client.Addr(f), outsidePort)}, true},
			{"node to a pod elsewhere", lab.Probe{From: node.NS, To: netip.AddrPortFrom(l.Nodes[1].Pods[0].Addr(f), outsidePort)}, true},
		} {
			t.Run(tt.name, func(t *testing.T) {
				if err := node.FlushConntrack(); err != nil { // one port is for one connection at a time
					t.Fatal(err)
				}
				p := tt.probe
				p.Network = network
				r := p.Once(ctx)
				if r.Outcome != lab.Answered {
					t.Fatalf("%s: %s", p, r)
				}
				if got := r.Source.Port(); !tt.own && got != port || tt.own && got != 30079 && got != 30083 {
					t.Errorf("%s: came from port %d", p, got)
				}
			})
		}
	})
}
