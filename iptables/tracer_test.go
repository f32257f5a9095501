// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"strings"
	"testing"

	"fairlead/iptables/idiom"
	"fairlead/iptables/ruleset"
	"fairlead/iptables/ruleset/trace"
	"fairlead/nat/ipset"
	fakeset "fairlead/nat/ipset/fake"
	"fairlead/proxier/model"
)

// tracer follows packets for a test, which ends at rules that cannot be traced.
type tracer struct {
	t *testing.T
	*trace.Tracer
}

// packet is a trace.Packet, its addresses as text.
type packet struct {
	src, dst string
	proto    string
	dport    uint16
	fromNode bool
}

// fate is a trace.Fate, its destination as text.
type fate struct {
	to          string
	masqueraded bool
	verdict     string
}

func newTracer(t *testing.T, save string, local ...string) *tracer {
	t.Helper()
	d, err := ruleset.Parse(strings.NewReader(save))
	if err != nil {
		t.Fatal(err)
	}
	var addrs []netip.Addr
	for _, a := range local {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return &tracer{t, trace.New(d, addrs...)}
}

// loops has the tracer know the set of endpoints that reach themselves.
func (tr *tracer) loops(l *fakeset.Set) *tracer {
	tr.Set(l.Name(), func(proto string, dst netip.AddrPort, src netip.Addr) bool {
		e := ipset.Loop(idiom.ProtocolNumber(model.Protocol(strings.ToUpper(proto))), dst)
		return src == dst.Addr() && l.In()[e]
	})
	return tr
}

// trace returns all fates with their probabilities.
func (tr *tracer) trace(pkt packet) map[fate]float64 {
	tr.t.Helper()
	fates, err := tr.Trace(trace.Packet{
		Src: netip.MustParseAddr(pkt.src), Dst: netip.AddrPortFrom(netip.MustParseAddr(pkt.dst), pkt.dport),
		Proto: pkt.proto, FromNode: pkt.fromNode,
	})
	if err != nil {
		tr.t.Fatal(err)
	}
	out := map[fate]float64{}
	for f, p := range fates {
		out[fate{f.To.String(), f.Masqueraded, f.Verdict}] = p
	}
	return out
}
