// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"testing"

	"fairlead/nat/sysctl"
	"fairlead/proxier"
	"fairlead/proxier/model"
)

// kernelHas are the schedulers that a kernel has.
type kernelHas []string

func (k kernelHas) Schedulers(names ...string) (found []string, err error) {
	for _, name := range names {
		if slices.Contains(k, name) {
			found = append(found, name)
		}
	}
	return found, nil
}

// TestProbeScheduler: a default scheduler that the kernel does not have is an error
// that names those it has.
func TestProbeScheduler(t *testing.T) {
	k := kernelHas{"rr", "wlc"}
	if err := probeScheduler(k, "wlc"); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	err := probeScheduler(k, "mh")
	if err == nil || err.Error() != "--ipvs-scheduler mh: the kernel does not have it; it has rr, wlc" {
		t.Errorf("one that is not there: %v", err)
	}
}

// TestReservedNodePorts: the node ports of all families are reserved, each as long as a
// Service port of one has it.
func TestReservedNodePorts(t *testing.T) {
	var reserved reservations
	all := newReservedPorts(&reserved)
	snapshot := model.NewSnapshot()
	followers := map[model.Family]proxier.Follower{}
	for _, f := range model.Families() {
		followers[f] = all.family(f)
	}
	for _, step := range []struct {
		family model.Family
		name   string
		port   uint16 // 0 where there is none
		want   []uint16
	}{
		{model.IPv4, "web", 30080, []uint16{30080}},
		{model.IPv6, "web", 30080, []uint16{30080}},
		{model.IPv4, "dns", 30081, []uint16{30080, 30081}},
		{model.IPv4, "web", 30090, []uint16{30080, 30081, 30090}},
		{model.IPv6, "web", 0, []uint16{30081, 30090}},
		{model.IPv4, "dns", 0, []uint16{30090}},
	} {
		name := model.ServicePortName{Port: step.name, Protocol: model.TCP}
		p := &model.ServicePort{Name: name, NodePort: step.port}
		if step.port == 0 {
			p = nil
		}
		snapshot = snapshot.With(map[model.ServicePortName]*model.ServicePort{name: p})
		d := proxier.Desired{Snapshot: snapshot, Changed: []model.ServicePortName{name}}
		if err := followers[step.family].Follow(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(reserved, step.want) {
			t.Errorf("%s of %s at %d: reserved are %d, want %d", step.name, step.family, step.port, reserved, step.want)
		}
	}
}

// reservations are the ports that are reserved.
type reservations []uint16

func (r *reservations) Set(_ context.Context, ports []uint16) []*sysctl.Problem {
	*r = ports
	return nil
}
