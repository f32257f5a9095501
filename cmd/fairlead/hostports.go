// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"fairlead/nat/conntrack"
	"fairlead/nat/nodeaddr"
	"fairlead/nat/sockets"
	"fairlead/portmap"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// hostPorts contributes the host ports of the node's pods in one family.
type hostPorts struct {
	family  model.Family
	when    switchFlag
	portmap *portmap.Portmap
	rules   hostPortRules
	others  *lookout // nil where it does not matter who else does host ports
	owned   func(owned bool, reason string)
	warner  podWarner // may be nil
	// listening returns the ports that processes of the node listen on.
	listening func() (map[sockets.Port]bool, error)
	metrics   *hostPortMetrics
	// astray tells what a pod's address is where it does not lead to one, and lost has
	// those of which that is so. at is the node as it was when all were looked at.
	astray func(netip.Addr) string
	lost   map[netip.Addr]string
	at     []netip.Addr

	// taken names who has the chains of host ports, if somebody has.
	taken string
	// pods are all that there are, for when nobody else does host ports any more, and
	// off is set while somebody does.
	pods map[model.ObjectKey]*model.Pod
	off  bool
	// adopted are the host ports for UDP that there were at start, until they are
	// taken over, and known is set once they have been.
	adopted []conntrack.Frontend
	known   bool
	// udp are the host ports whose flows are to be looked at, with what becomes of them
	// now, nil if they are gone.
	udp map[udpPort]*portmap.Mapping
	// everywhere are those for UDP that are on all of the node's addresses, which were
	// settledOn when flows were last looked at.
	everywhere map[udpPort]*portmap.Mapping
	settledOn  []netip.Addr
}

// hostPortRules is where host ports are written.
type hostPortRules interface {
	// adopt returns the host ports for UDP that there were at start.
	adopt(ctx context.Context) ([]conntrack.Frontend, error)
	// write has the next sync write what has changed.
	write(p *portmap.Portmap, c portmap.Changes)
}

// udpPort is a host port for UDP, of one pod.
type udpPort struct {
	owner string
	at    conntrack.Frontend
}

// podWarner tells the users of a Pod what is wrong with it. It does not block.
type podWarner interface {
	WarnPod(pod *model.Pod, w model.Warning)
}

var _ proxier.Contributor = (*hostPorts)(nil)

// hostPorts returns the host ports of one family. They stay off where chains of their
// names are somebody else's.
func (b *beside) hostPorts(ctx context.Context, f model.Family, own served) *hostPorts {
	cfg := b.cfg
	passes, _ := b.settings.BridgeNetfilter(ctx, f) // the mode warns
	forwarded := cfg.podCIDRs[f]
	if switchFlag(cfg.PodMasquerade.Mode) == switchOff {
		forwarded = nil
	}
	h := &hostPorts{
		family: f, when: switchFlag(cfg.HostPorts.Mode), rules: portRules(own, b.node.readings[f]),
		owned: b.owns.of(ctx, f, ownsHostPorts), warner: b.warner, listening: sockets.Listening, astray: nodeaddr.Astray, metrics: b.ports,
		pods: map[model.ObjectKey]*model.Pod{}, udp: map[udpPort]*portmap.Mapping{}, everywhere: map[udpPort]*portmap.Mapping{},
		portmap: portmap.New(portmap.Config{
			Family: f, Localhost: cfg.HostPorts.Localhost, LocalhostNodePorts: cfg.IPTables.LocalhostNodePorts, MasqueradeNeighbours: !passes, Protected: cfg.protected, Forwarded: forwarded,
		}),
	}
	h.taken = b.node.hostPortsTaken(f, own.engine, h.when)
	if h.when == switchAuto && h.taken == "" {
		h.others = lookAhead(ctx, func(ctx context.Context) string {
			return portmap.Others{
				CNI: os.DirFS(cfg.CNIConfDir), Tables: tables(ctx), Chain: b.node.chainReader(ctx, f),
			}.Who()
		})
	}
	return h
}

// Contribute implements proxier.Contributor.
func (h *hostPorts) Contribute(ctx context.Context, d proxier.Desired) {
	h.adopt(ctx)
	reason := h.whyNot(ctx, d.Verify)
	h.owned(reason == "", reason)
	h.look(d)
	objs := portmap.Objects{Pods: h.take(d.Pods, reason != ""), Services: make(map[model.ServicePortName]*model.ServicePort, len(d.Changed))}
	for _, name := range d.Changed {
		objs.Services[name] = d.Snapshot.Get(name)
	}
	changes := h.portmap.Update(objs, portmap.Node{
		Addrs: d.Node.Addrs, Links: d.Node.Links, NodePorts: d.Node.NodePorts.Addrs, AllNodePorts: d.Node.NodePorts.All,
		Astray: h.lost,
	})
	h.rules.write(h.portmap, changes)
	for _, m := range changes.Gone {
		h.note(m, nil)
	}
	for _, m := range changes.Fresh {
		h.note(m, &m)
	}
	h.tell(ctx, changes.Refused)
	h.warnTaken(ctx, changes.Fresh)
	h.metrics.set(h.family, h.portmap)
}

// whyNot returns why there are to be no host ports, empty if there are.
func (h *hostPorts) whyNot(ctx context.Context, again bool) string {
	who := h.taken
	if h.others != nil {
		who = h.others.ask(ctx, again)
	}
	switch {
	case h.when == switchOff:
		return "--host-ports=off"
	case who != "":
		return "done by " + who
	}
	return ""
}

// look finds out which pods' addresses lead nowhere: a pod's when that comes, all when
// the node's addresses change and at each check, those that are lost each time. So a
// node that has started anew does not send to the outside what is for a pod that is yet
// to get its network, or to another that has its address by then.
func (h *hostPorts) look(d proxier.Desired) {
	lost := map[netip.Addr]string{}
	check := func(a netip.Addr) {
		if why := h.astray(a); why != "" {
			lost[a] = why
		}
	}
	each := func(pods map[model.ObjectKey]*model.Pod) {
		for _, p := range pods {
			if p != nil && len(p.HostPorts) > 0 && p.IP(h.family).IsValid() {
				check(p.IP(h.family))
			}
		}
	}
	if d.Verify || !slices.Equal(h.at, d.Node.Addrs) {
		h.at = d.Node.Addrs
		each(h.pods)
	} else {
		for a := range h.lost {
			check(a)
		}
	}
	each(d.Pods)
	h.lost = lost
}

// take takes over what has changed of the pods, and returns what is to become of host
// ports: where they are switched off or on, all go or come.
func (h *hostPorts) take(changed map[model.ObjectKey]*model.Pod, off bool) map[model.ObjectKey]*model.Pod {
	out := maps.Clone(changed)
	if off != h.off {
		h.off, out = off, map[model.ObjectKey]*model.Pod{}
		maps.Copy(out, h.pods)
		maps.Copy(out, changed)
	}
	for key, pod := range changed {
		if h.pods[key] = pod; pod == nil {
			delete(h.pods, key)
		}
	}
	if off {
		for key := range out {
			out[key] = nil
		}
	}
	return out
}

// adopt notes which host ports for UDP an earlier agent has left. An error is left to
// the sync to come, which reads the same rules.
func (h *hostPorts) adopt(ctx context.Context) {
	if h.known {
		return
	}
	adopted, err := h.rules.adopt(ctx)
	h.adopted, h.known = adopted, err == nil
}

// note notes what has become of a host port.
func (h *hostPorts) note(m portmap.Mapping, now *portmap.Mapping) {
	if m.Protocol != model.UDP {
		return
	}
	p := udpPort{"pod " + m.Pod.String() + " " + m.UID, conntrack.Frontend{Addr: m.HostIP, Port: m.Number}}
	h.udp[p] = now
	if delete(h.everywhere, p); now != nil && !m.HostIP.IsValid() {
		h.everywhere[p] = now
	}
}

// tell tells which host ports no pod has got.
func (h *hostPorts) tell(ctx context.Context, refused []portmap.Refused) {
	for _, r := range refused {
		klog.FromContext(ctx).Error(nil, "Refused a host port, the rest of the Pod's are used",
			"ipFamily", h.family, "pod", r.Pod.Key, "hostPort", r.Port.String(), "reason", r.Reason)
		h.metrics.refusals.WithLabelValues(h.family.String()).Inc()
		if h.warner != nil {
			h.warner.WarnPod(r.Pod, model.Warning{
				Field: fmt.Sprintf("spec.containers.ports{%s}", r.Port), Reason: "FairleadRefused",
				Message: fmt.Sprintf("Host port %s %s and is left out", r.Port, r.Reason),
			})
		}
	}
}

// settle makes a table of flows have the host ports as they are now. Those on all of
// the node's addresses are on these.
func (h *hostPorts) settle(t *conntrack.Table, node proxier.NodeState) {
	if !slices.Equal(h.settledOn, node.Addrs) {
		h.settledOn = node.Addrs
		for p, now := range h.everywhere {
			if _, due := h.udp[p]; !due {
				h.udp[p] = now
			}
		}
	}
	for _, going := range []bool{true, false} { // what comes may be where another was
		for p, now := range h.udp {
			if going != (now == nil) {
				continue
			}
			owner := p.owner + " " + p.at.Addr.String() + " " + strconv.Itoa(int(p.at.Port))
			if going {
				t.Set(owner, nil, nil)
				continue
			}
			at := []conntrack.Frontend{p.at}
			if !p.at.Addr.IsValid() && !node.NodePorts.All {
				at = nil
				for _, a := range node.Addrs {
					if !slices.Contains(now.Except, a) {
						at = append(at, conntrack.Frontend{Addr: a, Port: p.at.Port})
					}
				}
			}
			t.Set(owner, at, []netip.AddrPort{now.To})
		}
	}
	clear(h.udp)
	t.Adopt(h.adopted...)
	h.adopted = nil
}

// warnTaken tells of host ports that processes of the node listen on, too, and get
// nothing of any more.
func (h *hostPorts) warnTaken(ctx context.Context, fresh []portmap.Mapping) {
	if len(fresh) == 0 {
		return
	}
	taken, err := h.listening()
	if err != nil {
		klog.FromContext(ctx).V(2).Info("Cannot see which ports processes of the node listen on", "reason", err.Error())
	}
	for _, m := range fresh {
		if !taken[sockets.Port{Protocol: m.Protocol, Number: m.Number}] {
			continue
		}
		klog.FromContext(ctx).Info("Warning: a process of the node listens on a host port, and gets nothing while the Pod has it",
			"ipFamily", h.family, "pod", m.Pod, "hostPort", m.Port.String())
		if pod := h.pods[m.Pod]; h.warner != nil && pod != nil {
			h.warner.WarnPod(pod, model.Warning{
				Field: fmt.Sprintf("spec.containers.ports{%s}", m.Port), Reason: "FairleadHostPortTaken",
				Message: fmt.Sprintf("A process of the node listens on host port %s, too, and gets nothing while the Pod has it", m.Port),
			})
		}
	}
}

// hostPortMetrics are the metrics of host ports.
type hostPortMetrics struct {
	ports    *prometheus.GaugeVec   // ip_family, state
	refusals *prometheus.CounterVec // ip_family
}

func newHostPortMetrics(reg prometheus.Registerer, families []model.Family) *hostPortMetrics {
	m := &hostPortMetrics{
		ports: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fairlead_host_ports",
			Help: "Host ports of the node's pods, those that lead to their pod (mapped) and those that do not (refused): another pod has the port, or the node.",
		}, []string{"ip_family", "state"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairlead_host_ports_refused_total",
			Help: "How often a pod's host port was refused.",
		}, []string{"ip_family"}),
	}
	for _, f := range families {
		m.refusals.WithLabelValues(f.String())
		for _, state := range []string{"mapped", "refused"} {
			m.ports.WithLabelValues(f.String(), state)
		}
	}
	reg.MustRegister(m.ports, m.refusals)
	return m
}

func (m *hostPortMetrics) set(f model.Family, p *portmap.Portmap) {
	mapped, refused := p.Len()
	m.ports.WithLabelValues(f.String(), "mapped").Set(float64(mapped))
	m.ports.WithLabelValues(f.String(), "refused").Set(float64(refused))
}
