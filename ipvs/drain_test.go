// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"fairlead/ipvs/drain"
	"fairlead/ipvs/servers"
	"fairlead/nat/ipset"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// drained is a node with a Service of two endpoints, the second of which has one
// connection.
type drained struct {
	*agent
	t    *testing.T
	name model.ServicePortName
	key  servers.Key
}

func newDrained(t *testing.T, p model.Protocol) *drained {
	h := newHost(model.IPv4)
	d := &drained{agent: h.agent(t, config(model.IPv4)), t: t, name: portName("shop", "web", "http", p)}
	d.key = placeOf(servers.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80}).server()
	d.set(one, three)
	for _, l := range h.servers.Servers() {
		d.key = l.Key
	}
	h.servers.SetConns(d.key, netip.MustParseAddrPort(three), 1, 0)
	return d
}

// set gives the Service endpoints.
func (d *drained) set(endpoints ...string) {
	d.t.Helper()
	s, names := snapshot(port(d.name, "10.96.0.10", 80, endpoints...))
	d.syncChanged(s, names)
}

// later passes time, and syncs without a change.
func (d *drained) later(by time.Duration, endpoints ...string) proxier.Report {
	d.t.Helper()
	d.host.now = d.host.now.Add(by)
	s, _ := snapshot(port(d.name, "10.96.0.10", 80, endpoints...))
	return d.syncChanged(s, nil)
}

// expect compares the destinations with "10.244.1.7:8080/0".
func (d *drained) expect(what string, want ...string) {
	d.t.Helper()
	var got []string
	for line := range strings.Lines(d.host.servers.Save()) {
		if _, dest, ok := strings.Cut(line, " -r "); ok {
			addr, weight, _ := strings.Cut(strings.TrimSpace(dest), " -m -w ")
			got = append(got, addr+"/"+weight)
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		d.t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestDrain(t *testing.T) {
	gone := netip.MustParseAddrPort(three)
	for _, tt := range []struct {
		name  string
		proto model.Protocol
		do    func(d *drained)
	}{
		{"connections end", model.TCP, func(d *drained) {
			d.set(one)
			d.expect("gone", one+"/1", three+"/0")
			if r := d.later(drain.Interval, one); r.Unsettled != 1 {
				d.t.Errorf("Report.Unsettled = %d while one drains, want 1", r.Unsettled)
			}
			d.expect("still connected", one+"/1", three+"/0")
			d.host.servers.SetConns(d.key, gone, 0, 0)
			if r := d.later(drain.Interval, one); r.Unsettled != 0 {
				d.t.Errorf("Report.Unsettled = %d when none drains, want 0", r.Unsettled)
			}
			d.expect("connections have ended", one+"/1")
		}},
		{"time is over", model.TCP, func(d *drained) {
			d.set(one)
			d.later(15*time.Minute-time.Second, one)
			d.expect("a second before", one+"/1", three+"/0")
			d.later(drain.Interval, one)
			d.expect("after", one+"/1")
		}},
		{"without connections it goes at once", model.TCP, func(d *drained) {
			d.host.servers.SetConns(d.key, gone, 0, 0)
			d.set(one)
			d.expect("gone", one+"/1")
		}},
		{"comes back", model.TCP, func(d *drained) {
			d.set(one)
			d.host.servers.Ops()
			d.set(one, three)
			d.expect("back", one+"/1", three+"/1")
			if ops := strings.Join(d.host.servers.Ops(), "\n"); strings.Contains(ops, "-d ") || strings.Contains(ops, "-a ") {
				d.t.Errorf("its connections are lost:\n%s", ops)
			}
			d.later(time.Hour, one, three)
			d.expect("an hour later", one+"/1", three+"/1")
		}},
		{"UDP goes at once", model.UDP, func(d *drained) {
			d.set(one)
			d.expect("gone", one+"/1")
		}},
		{"SCTP drains", model.SCTP, func(d *drained) {
			d.set(one)
			d.expect("gone", one+"/1", three+"/0")
		}},
		{"a restart", model.TCP, func(d *drained) {
			d.set(one)
			d.agent = d.host.agent(d.t, config(model.IPv4))
			d.set(one)
			d.expect("after it", one+"/1", three+"/0")
			d.later(2*drain.Interval, one)
			d.expect("still connected", one+"/1", three+"/0")
			d.host.servers.SetConns(d.key, gone, 0, 0)
			d.later(drain.Interval, one)
			d.expect("connections have ended", one+"/1")
		}},
		{"the last endpoint", model.TCP, func(d *drained) {
			d.set()
			d.expect("gone", three+"/0")
			d.host.servers.SetConns(d.key, gone, 0, 0)
			d.later(drain.Interval)
			d.expect("connections have ended")
			if save := d.host.servers.Save(); save != "" {
				d.t.Errorf("virtual servers stay:\n%s", save)
			}
		}},
		{"the Service goes", model.TCP, func(d *drained) {
			d.syncChanged(model.NewSnapshot(), []model.ServicePortName{d.name})
			d.expect("gone", three+"/0")
			vip := netip.MustParseAddr("10.96.0.10")
			if !d.host.device.Has(vip) {
				d.t.Error("its address has gone before its connections")
			}
			d.host.servers.SetConns(d.key, gone, 0, 0)
			d.host.now = d.host.now.Add(drain.Interval)
			d.syncChanged(model.NewSnapshot(), nil)
			if d.host.device.Has(vip) || d.host.servers.Save() != "" {
				d.t.Errorf("after its connections, there is\n%s", d.host.save())
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.do(newDrained(t, tt.proto)) })
	}
}

// TestSchedulerChange: another scheduler takes over the virtual server with its
// destinations.
func TestSchedulerChange(t *testing.T) {
	h := newHost(model.IPv4)
	a := h.agent(t, config(model.IPv4))
	web := port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, one, three)
	a.sync(web)
	h.servers.Ops()
	a.sync(with(web, maglev))
	if got := strings.Join(h.servers.Ops(), "\n"); got != "-E -t 10.96.0.10:80 -s mh -b mh-port" {
		t.Errorf("calls:\n%s", got)
	}
}

// TestUnknownScheduler: a Service that names a scheduler that is not there has the
// default, and is told of.
func TestUnknownScheduler(t *testing.T) {
	h := newHost(model.IPv4)
	h.servers.Has = []string{"rr", "lc"}
	cfg := config(model.IPv4)
	cfg.HasScheduler = func(name string) bool { return slices.Contains(h.servers.Has, name) }
	s, names := snapshot(with(port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, one), maglev))
	a := h.agent(t, cfg)
	r, err := a.Sync(t.Context(), proxier.Desired{Snapshot: s, Node: a.where, Changed: names, Prune: true})
	if err != nil || len(r.Refused) != 1 || !strings.Contains(r.Refused[0], "shop/web:http/tcp: the kernel has no scheduler mh") {
		t.Errorf("Sync() = %+v, %v", r, err)
	}
	if !strings.Contains(h.servers.Save(), "-A -t 10.96.0.10:80 -s rr\n") {
		t.Errorf("got\n%s", h.servers.Save())
	}
}

// TestOthers: virtual servers of others, and those in excluded networks, stay as they
// are, whatever comes and goes.
func TestOthers(t *testing.T) {
	h := newHost(model.IPv4)
	listed := func(addr string, port uint16) servers.Listed {
		return servers.Listed{
			Server:       servers.Server{Key: servers.Key{Addr: netip.MustParseAddr(addr), Protocol: servers.TCP, Port: port}, Scheduler: "lc"},
			Destinations: []servers.Status{{Destination: servers.Destination{Addr: netip.MustParseAddrPort("198.51.100.1:80"), Weight: 3}}},
		}
	}
	h.servers.Put(listed("192.0.2.11", 5000)) // an address of the node, no node port
	h.servers.Put(listed("198.51.100.9", 80)) // an address that nobody has
	h.servers.Put(listed("10.97.0.1", 80))    // excluded
	h.device.Put(netip.MustParseAddr("10.97.0.1"))
	before := h.servers.Save()
	h.servers.Put(listed("10.96.0.99", 80)) // ours, of a Service that has gone
	h.device.Put(netip.MustParseAddr("10.96.0.99"))
	cfg := config(model.IPv4)
	cfg.ExcludeCIDRs = []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")}
	a := h.agent(t, cfg)
	web := with(port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, one), balanced)
	a.sync(web)
	if save := h.servers.Save(); strings.Contains(save, "10.96.0.99") {
		t.Errorf("what is ours stays:\n%s", save)
	}
	sets := func(name string, typ ipset.Type) Set { return h.sets.Set(name, typ, false) }
	a.syncChanged(model.NewSnapshot(), []model.ServicePortName{web.Name})
	if got := h.servers.Save(); got != before {
		t.Errorf("after the Services have gone:\n%s\nbefore:\n%s", got, before)
	}
	a.sync(web)
	if _, err := a.engine.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	left := NewLeftovers(model.IPv4, Remains{Servers: &h.servers, Device: &h.device, Sets: sets, ExcludeCIDRs: cfg.ExcludeCIDRs})
	if got, err := left.Remove(h.now); err != nil || got.Objects == 0 {
		t.Fatalf("Remove() = %v, %v", got, err)
	}
	if got := h.servers.Save(); got != before {
		t.Errorf("after Remove:\n%s\nbefore:\n%s", got, before)
	}
	if got := h.sets.Save() + h.device.Save(); got != "kube-ipvs0\n    10.97.0.1/32\n" {
		t.Errorf("Remove leaves\n%s", got)
	}
}
