// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"fairlead/proxier/model"
)

// changeEachField calls check with the name of each field of *v in turn, while
// that field holds something else.
func changeEachField(t *testing.T, v any, check func(field string)) {
	t.Helper()
	s := reflect.ValueOf(v).Elem()
	for i := range s.NumField() {
		f := s.Field(i)
		old := reflect.New(f.Type()).Elem()
		old.Set(f)
		switch f.Interface().(type) {
		case string:
			f.SetString("changed")
		case bool:
			f.SetBool(!f.Bool())
		case model.ObjectKey:
			f.Set(reflect.ValueOf(model.ObjectKey{Name: "changed"}))
		case model.Family:
			f.Set(reflect.ValueOf(model.IPv6))
		case time.Time:
			f.Set(reflect.ValueOf(time.Unix(1, 0)))
		case uint16:
			f.SetUint(f.Uint() + 1)
		case model.Balancing:
			f.Set(reflect.ValueOf(model.Maglev))
		case model.Scheduler:
			f.Set(reflect.ValueOf(model.Scheduler{Name: "mh"}))
		case time.Duration:
			f.SetInt(f.Int() + 1)
		default:
			if f.Kind() != reflect.Slice {
				t.Fatalf("field %s is of a type that this test does not know", s.Type().Field(i).Name)
			}
			f.Set(reflect.MakeSlice(f.Type(), f.Len()+1, f.Len()+1))
		}
		check(s.Type().Field(i).Name)
		f.Set(old)
	}
}

func TestSameSeesEveryField(t *testing.T) {
	service := func() *model.Service {
		return &model.Service{
			Key:        model.ObjectKey{Namespace: "a", Name: "b"},
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
			Ports:      []model.Port{{Name: "p", Protocol: model.TCP, Number: 1}},
		}
	}
	changedService := service()
	if !SameService(service(), changedService) {
		t.Error("equal Services differ")
	}
	changeEachField(t, changedService, func(field string) {
		if SameService(service(), changedService) {
			t.Errorf("SameService does not see %s", field)
		}
	})
	changedSlice := translated()
	if !SameEndpointSlice(translated(), changedSlice) {
		t.Error("equal EndpointSlices differ")
	}
	changeEachField(t, changedSlice, func(field string) {
		if got := SameEndpointSlice(translated(), changedSlice); got != (field == "TriggerTime") {
			t.Errorf("SameEndpointSlice with another %s = %v", field, got)
		}
	})
	changedCIDR := &model.ServiceCIDR{}
	if !SameServiceCIDR(&model.ServiceCIDR{}, changedCIDR) {
		t.Error("equal ServiceCIDRs differ")
	}
	changeEachField(t, changedCIDR, func(field string) {
		if SameServiceCIDR(&model.ServiceCIDR{}, changedCIDR) {
			t.Errorf("SameServiceCIDR does not see %s", field)
		}
	})
	changedNode := &model.Node{Name: "n"}
	if !SameNode(&model.Node{Name: "n"}, changedNode) {
		t.Error("equal Nodes differ")
	}
	changeEachField(t, changedNode, func(field string) {
		if SameNode(&model.Node{Name: "n"}, changedNode) {
			t.Errorf("SameNode does not see %s", field)
		}
	})
}

func TestSameAndNil(t *testing.T) {
	if !SameService(nil, nil) || !SameEndpointSlice(nil, nil) || !SameServiceCIDR(nil, nil) || !SameNode(nil, nil) {
		t.Error("nil differs from nil")
	}
	if SameService(nil, &model.Service{}) || SameEndpointSlice(&model.EndpointSlice{}, nil) || SameServiceCIDR(nil, &model.ServiceCIDR{}) || SameNode(nil, &model.Node{}) {
		t.Error("nil is the same as an object")
	}
}
