// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
)

func TestFamilies(t *testing.T) {
	for _, tc := range []struct {
		addr string
		want Family
		text string
	}{
		{"10.0.0.1", IPv4, "IPv4"},
		{"fd00::1", IPv6, "IPv6"},
		{"::ffff:10.0.0.1", IPv6, "IPv6"},
	} {
		t.Run(tc.addr, func(t *testing.T) {
			got := FamilyOf(netip.MustParseAddr(tc.addr))
			if got != tc.want || got.String() != tc.text {
				t.Errorf("got %v (%d), want %s", got, got, tc.text)
			}
			if !slices.Contains(Families(), got) {
				t.Errorf("%v is not among Families", got)
			}
		})
	}
	if got := Family(0).String(); got != "IP?" {
		t.Errorf("got %q for no family", got)
	}
}

func TestServiceClusterIP(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")
	for _, tc := range []struct {
		name   string
		ips    []netip.Addr
		family Family
		want   netip.Addr
	}{
		{name: "none", family: IPv4},
		{name: "IPv4", ips: []netip.Addr{v4}, family: IPv4, want: v4},
		{name: "not IPv6", ips: []netip.Addr{v4}, family: IPv6},
		{name: "second", ips: []netip.Addr{v6, v4}, family: IPv4, want: v4},
		{name: "first", ips: []netip.Addr{v6, v4}, family: IPv6, want: v6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := (&Service{ClusterIPs: tc.ips}).ClusterIP(tc.family)
			if got != tc.want || ok != tc.want.IsValid() {
				t.Errorf("got %v, %t, want %v", got, ok, tc.want)
			}
		})
	}
}

func TestServicePortNames(t *testing.T) {
	name := func(ns, svc, port string, p Protocol) ServicePortName {
		return ServicePortName{Service: ObjectKey{ns, svc}, Port: port, Protocol: p}
	}
	// In the order in which Compare puts them.
	sorted := []struct {
		name ServicePortName
		text string
	}{
		{name("a", "x", "", TCP), "a/x"},
		{name("a", "x", "", UDP), "a/x"},
		{name("a", "x", "http", SCTP), "a/x:http"},
		{name("a", "x", "http", TCP), "a/x:http"},
		{name("a", "x", "https", TCP), "a/x:https"},
		{name("a", "y", "", TCP), "a/y"},
		{name("b", "a", "", TCP), "b/a"},
	}
	for i, a := range sorted {
		if got := a.name.String(); got != a.text {
			t.Errorf("got %q, want %q", got, a.text)
		}
		for j, b := range sorted {
			if got, want := a.name.Compare(b.name), min(max(i-j, -1), 1); got != want {
				t.Errorf("Compare(%v, %v): got %d, want %d", a.name, b.name, got, want)
			}
		}
	}
	if got := SCTP.Lower(); got != "sctp" {
		t.Errorf("got %q, want sctp", got)
	}
}

// TestServicePortEqualComparesEveryField has a variant for each field of a
// ServicePort; a field that is new needs one, and a place in Equal.
func TestServicePortEqualComparesEveryField(t *testing.T) {
	one, two := netip.MustParseAddrPort("10.1.0.1:8080"), netip.MustParseAddrPort("10.1.0.2:8080")
	base := func() *ServicePort {
		return &ServicePort{
			Name:      ServicePortName{Service: ObjectKey{"shop", "web"}, Port: "http", Protocol: TCP},
			ClusterIP: netip.MustParseAddr("10.96.0.1"), Port: 80,
			Endpoints: []Endpoint{{AddrPort: one}, {AddrPort: two}},
		}
	}
	variants := map[string][]func(*ServicePort){
		"Name": {
			func(p *ServicePort) { p.Name.Protocol = UDP },
			func(p *ServicePort) { p.Name.Port = "" },
			func(p *ServicePort) { p.Name.Service.Name = "x" },
			func(p *ServicePort) { p.Name.Service.Namespace = "x" },
		},
		"ClusterIP": {func(p *ServicePort) { p.ClusterIP = netip.MustParseAddr("10.96.0.2") }},
		"Port":      {func(p *ServicePort) { p.Port++ }},
		"Endpoints": {
			func(p *ServicePort) { p.Endpoints = nil },
			func(p *ServicePort) { p.Endpoints = p.Endpoints[:1] },
			func(p *ServicePort) { p.Endpoints[1].Local = true },
			func(p *ServicePort) { p.Endpoints[1].AddrPort = netip.MustParseAddrPort("10.1.0.2:8081") },
			func(p *ServicePort) { slices.Reverse(p.Endpoints) },
		},
		"NodePort":             {func(p *ServicePort) { p.NodePort = 30080 }},
		"ExternalIPs":          {func(p *ServicePort) { p.ExternalIPs = []netip.Addr{one.Addr()} }},
		"LoadBalancerIPs":      {func(p *ServicePort) { p.LoadBalancerIPs = []netip.Addr{one.Addr()} }},
		"Restricted":           {func(p *ServicePort) { p.Restricted = true }},
		"SourceRanges":         {func(p *ServicePort) { p.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }},
		"ExternalTrafficLocal": {func(p *ServicePort) { p.ExternalTrafficLocal = true }},
		"InternalTrafficLocal": {func(p *ServicePort) { p.InternalTrafficLocal = true }},
		"HealthCheckNodePort":  {func(p *ServicePort) { p.HealthCheckNodePort = 30081 }},
		"AffinityTimeout":      {func(p *ServicePort) { p.AffinityTimeout = time.Hour }},
		"Balancing":            {func(p *ServicePort) { p.Balancing = Random }, func(p *ServicePort) { p.Balancing = Maglev }},
		"Scheduler":            {func(p *ServicePort) { p.Scheduler.Name = "mh" }, func(p *ServicePort) { p.Scheduler.Port = true }},
		"SparePort":            {func(p *ServicePort) { p.SparePort = 1 }},
		"LocalEndpoints":       {func(p *ServicePort) { p.LocalEndpoints = p.Endpoints }},
		"Usable":               {func(p *ServicePort) { p.Usable = true }},
		"Known":                {func(p *ServicePort) { p.Known++ }},
		"LocalReady":           {func(p *ServicePort) { p.LocalReady = []netip.Addr{one.Addr()} }},
		"Serving":              {func(p *ServicePort) { p.Serving = []netip.AddrPort{one} }},
	}
	if !base().Equal(base()) {
		t.Error("a port does not equal itself")
	}
	for f := range reflect.TypeFor[ServicePort]().Fields() {
		if variants[f.Name] == nil {
			t.Errorf("field %s: no variant", f.Name)
		}
		for i, change := range variants[f.Name] {
			other := base()
			change(other)
			if base().Equal(other) || other.Equal(base()) {
				t.Errorf("field %s, variant %d: equal to what differs", f.Name, i)
			}
		}
	}
}
