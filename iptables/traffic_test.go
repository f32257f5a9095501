// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/iptables/ruleset"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/traffic"
)

// TestTraffic: connections of a port are those that its rules have translated, by
// whichever chain, and those of others are nobody's.
func TestTraffic(t *testing.T) {
	name := func(s string) model.ServicePortName {
		return model.ServicePortName{Service: model.ObjectKey{Namespace: "shop", Name: s}, Port: "http", Protocol: model.TCP}
	}
	web, db, gone := name("web"), name("db"), name("gone")
	type rule struct {
		chain string
		n     uint64
		text  string
	}
	svc, svl, compact := serviceChain(web), localChain(web), serviceChain(db)
	sep := func(s string) string { return endpointPrefix + (s + "AAAAAAAAAAAAAAAA")[:16] }
	rules := []rule{
		{sep("1"), 3, "-p tcp -m tcp -j DNAT --to-destination 10.244.0.1:80"},
		{sep("1"), 9, "-s 10.244.0.1/32 -j KUBE-MARK-MASQ"},
		{sep("2"), 5, "-p tcp -m tcp -j DNAT --to-destination 10.244.0.2:80"},
		{sep("3"), 7, "-p tcp -m tcp -j DNAT --to-destination 10.244.0.3:80"},
		{sep("4"), 70, "-p tcp -m tcp -j DNAT --to-destination 10.244.0.4:80"},
		{"KUBE-SERVICES", 100, "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j " + svc},
		{"KUBE-SVC-10.96.0.0/24", 100, "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j " + svc},
		{svc, 1, "! -s 10.244.0.0/16 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ"},
		{svc, 3, "-m statistic --mode random --probability 0.50000000000 -j " + sep("1")},
		{svc + "/07", 5, "-j " + sep("2")},
		{svl, 7, "-j " + sep("3")},
		{serviceChain(gone), 70, "-j " + sep("4")},
		{compact, 11, "-p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.244.0.5:80"},
		{compact, 13, "-p tcp -j DNAT --to-destination 10.244.0.6:80"},
		{"PREROUTING", 1000, "-j DNAT --to-destination 10.244.0.6:80"},
	}
	tr := NewTraffic(func(_ context.Context, table ruleset.Table, visit func(ruleset.ChainKey, uint64, []byte)) error {
		for _, r := range rules {
			visit(ruleset.ChainKey{Table: table, Name: r.chain}, r.n, []byte(r.text))
		}
		return nil
	})
	read := func() (map[string]uint64, map[uint64]bool) {
		t.Helper()
		sums, ids := map[string]uint64{}, map[uint64]bool{}
		if err := tr.Read(t.Context(), func(s traffic.Sample) {
			if ids[s.ID] {
				t.Errorf("ID %d is there twice", s.ID)
			}
			ids[s.ID] = true
			sums[s.Port.String()] += s.Connections
			if s.PacketsIn+s.PacketsOut+s.BytesIn+s.BytesOut != 0 || s.Wraps {
				t.Errorf("%s has packets or bytes: %+v", s.Port, s)
			}
		}); err != nil {
			t.Fatal(err)
		}
		return sums, ids
	}
	changes := map[model.ServicePortName]*model.ServicePort{}
	for _, n := range []model.ServicePortName{web, db, gone} {
		changes[n] = &model.ServicePort{Name: n}
	}
	follow := func(changes map[model.ServicePortName]*model.ServicePort, snapshot *model.Snapshot) *model.Snapshot {
		d := proxier.Desired{Snapshot: snapshot.With(changes)}
		for n := range changes {
			d.Changed = append(d.Changed, n)
		}
		if err := tr.Follow(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		return d.Snapshot
	}
	snapshot := follow(changes, model.NewSnapshot())
	follow(map[model.ServicePortName]*model.ServicePort{gone: nil}, snapshot)
	sums, ids := read()
	if diff := cmp.Diff(map[string]uint64{"shop/web:http": 3 + 5 + 7, "shop/db:http": 11 + 13}, sums); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, again := read(); fmt.Sprint(again) != fmt.Sprint(ids) {
		t.Error("IDs have changed")
	}
}
