// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/klog/v2"

	"fairlead/nat/conntrack"
	"fairlead/nat/nft"
	"fairlead/nat/sysctl"
	"fairlead/proxier"
	"fairlead/proxier/health"
	"fairlead/proxier/model"
)

// flows cuts the UDP flows of one family that the rules have left behind.
type flows struct {
	// adopters are asked once, at the first time at which flows may be cut.
	adopters []adopter
	// moved returns, once, where flows went by something that has gone since; it may
	// be nil.
	moved      func() []netip.AddrPort
	ports      *hostPorts
	table      *conntrack.Table
	reconciler *conntrack.Reconciler
}

var _ proxier.Follower = (*flows)(nil)

func newFlows(f model.Family, own served, ports *hostPorts, metrics *conntrack.Metrics) *flows {
	return &flows{
		adopters:   own.adopters,
		moved:      own.moved,
		ports:      ports,
		table:      conntrack.NewTable(),
		reconciler: conntrack.New(conntrack.Config{Family: f, Kernel: conntrack.Netlink{}, Metrics: metrics}),
	}
}

// Follow implements proxier.Follower.
func (w *flows) Follow(ctx context.Context, d proxier.Desired) error {
	for _, name := range d.Changed {
		w.table.SetService(name, d.Snapshot.Get(name))
	}
	w.ports.settle(w.table, d.Node)
	if d.Node.NodePorts.All {
		w.table.SetNodeAddrs(d.Node.Addrs)
	} else {
		w.table.SetNodeAddrs(d.Node.NodePorts.Addrs)
	}
	if !d.Prune { // a Service that could not be read is not gone
		return nil
	}
	for _, a := range w.adopters {
		for _, ap := range a.AdoptedUDP() {
			w.table.Adopt(conntrack.Frontend{Addr: ap.Addr(), Port: ap.Port()})
		}
	}
	w.adopters = nil
	if w.moved != nil {
		for _, ap := range w.moved() {
			w.table.Moved(conntrack.Frontend{Addr: ap.Addr(), Port: ap.Port()})
		}
	}
	if d.Verify {
		w.table.Recheck()
	}
	_, err := w.reconciler.Reconcile(ctx, w.table)
	return err
}

// once does something a single time, when the rules of all objects are in place: it
// removes what served, or was used, before.
type once struct {
	do   func(ctx context.Context) error
	done bool
}

var _ proxier.Follower = (*once)(nil)

// Follow implements proxier.Follower. What fails for now, with errNotYet, is tried again.
func (o *once) Follow(ctx context.Context, d proxier.Desired) error {
	if o.done || !d.Prune {
		return nil
	}
	err := o.do(ctx)
	o.done = !errors.Is(err, errNotYet)
	if !o.done {
		return nil
	}
	return err
}

var errNotYet = errors.New("not yet")

// nftablesLeftovers removes what nftables modes have left in one family, kube-proxy's and,
// unless it is kept as the mode has it, ours. Their rules decide before ours, and follow no
// change any more.
func nftablesLeftovers(f model.Family, keep bool) *once {
	return &once{do: func(ctx context.Context) error {
		err := removeNftables(ctx, f)
		if !keep {
			err = errors.Join(err, removeTable(ctx, f))
		}
		return err
	}}
}

func removeNftables(ctx context.Context, f model.Family) error {
	deleted, err := nft.Delete(f, nft.KubeProxy)
	if deleted {
		klog.FromContext(ctx).Info("Removed the rules of kube-proxy's nftables mode", "ipFamily", f)
	}
	return err
}

// localnet lets node ports or host ports answer on 127.0.0.1, once the first sync has put the
// rule in place that keeps the neighbours away (CVE-2020-8558).
type localnet struct {
	settings             *sysctl.Settings
	nodePorts, hostPorts bool
	done                 bool
}

var _ proxier.Follower = (*localnet)(nil)

// Follow implements proxier.Follower.
func (l *localnet) Follow(ctx context.Context, d proxier.Desired) error {
	onLoopback := d.Node.NodePorts.All || slices.ContainsFunc(d.Node.NodePorts.Addrs, netip.Addr.IsLoopback)
	if !l.done && (l.hostPorts || l.nodePorts && onLoopback) {
		l.done = true
		sysctl.Warn(ctx, l.settings.SetRouteLocalnet(ctx))
	}
	return nil
}

// healthChecks answers on the health check node ports of one family.
type healthChecks struct {
	family   model.Family
	services *health.NodePortServices
	ports    *health.NodePorts
	// addrs are those that the ports answer on.
	addrs []netip.Addr
}

var _ proxier.Follower = (*healthChecks)(nil)

func newHealthChecks(f model.Family, state *health.State, warner proxier.Warner) *healthChecks {
	cfg := health.NodePortsConfig{State: state}
	if warner != nil {
		cfg.Failed = func(s model.ObjectKey, port uint16, err error) {
			warner.Warn(s, model.Warning{
				Field: "spec.healthCheckNodePort", Reason: "FailedToStartServiceHealthcheck",
				Message: fmt.Sprintf("node cannot answer on health check node port %d: %v", port, err),
			})
		}
	}
	return &healthChecks{family: f, services: health.NewNodePortServices(), ports: health.NewNodePorts(cfg)}
}

// Follow implements proxier.Follower.
func (h *healthChecks) Follow(ctx context.Context, d proxier.Desired) error {
	for _, name := range d.Changed {
		h.services.Set(name, d.Snapshot.Get(name))
	}
	addrs := d.Node.NodePorts.Addrs
	if d.Node.NodePorts.All {
		addrs = []netip.Addr{netip.IPv4Unspecified()}
		if h.family == model.IPv6 {
			addrs = []netip.Addr{netip.IPv6Unspecified()}
		}
	}
	if h.services.Changed() || !slices.Equal(addrs, h.addrs) {
		h.ports.Sync(ctx, addrs, h.services.Wanted())
		h.addrs = addrs
	}
	return nil
}
