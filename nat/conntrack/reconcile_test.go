// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netlink/nl"

	"fairlead/proxier/model"
)

// fakeKernel has flows and errors in store: reads and deletes that fail, each
// after it has done half of its work.
type fakeKernel struct {
	flows                   []Flow
	readErrs, deleteErrs    []error
	reads, deletes, yielded int
}

func (k *fakeKernel) Flows(_ context.Context, _ model.Family, yield func(Flow) bool) error {
	k.reads++
	n, err := half(&k.readErrs, len(k.flows))
	for _, f := range k.flows[:n] {
		k.yielded++
		if !yield(f) {
			break
		}
	}
	return err
}

func (k *fakeKernel) Delete(_ context.Context, _ model.Family, flows []Flow) (deleted int, err error) {
	k.deletes++
	n, err := half(&k.deleteErrs, len(flows))
	for _, f := range flows[:n] {
		if i := slices.Index(k.flows, f); i >= 0 {
			k.flows = slices.Delete(k.flows, i, i+1)
			deleted++
		}
	}
	return deleted, err
}

// half returns the next error, and how much of n is done.
func half(errs *[]error, n int) (int, error) {
	if len(*errs) == 0 {
		return n, nil
	}
	err := (*errs)[0]
	*errs = (*errs)[1:]
	if err == nil {
		return n, nil
	}
	return n / 2, err
}

// newRig returns a Reconciler on a fake kernel with n stale flows and one that
// is not, and the table that says so.
func newRig(n int) (*Reconciler, *fakeKernel, *Table, *prometheus.Registry) {
	k := &fakeKernel{flows: []Flow{flow("198.51.100.1:53", "198.51.100.1:53")}}
	for i := range n {
		f := flow(vip, "10.244.0.99:8053")
		f.Ref.ID = uint32(i)
		k.flows = append(k.flows, f)
	}
	tab := NewTable()
	tab.Set("dns", fronts(vip), aps(ep1))
	reg := prometheus.NewPedanticRegistry()
	return New(Config{Family: model.IPv4, Kernel: k, Metrics: NewMetrics(reg, model.Families())}), k, tab, reg
}

func TestReconcile(t *testing.T) {
	interrupted := fmt.Errorf("dump: %w", ErrInterrupted)
	broken := errors.New("broken")
	for _, tt := range []struct {
		name                 string
		readErrs, deleteErrs []error
		wantErr              error
		wantCut, wantReads   int
		wantDue              bool
	}{
		{name: "all is well", wantCut: 9, wantReads: 1},
		{name: "interrupted twice", readErrs: []error{interrupted, interrupted}, wantCut: 9, wantReads: 3},
		{name: "interrupted for ever", readErrs: slices.Repeat([]error{interrupted}, 9), wantErr: ErrInterrupted, wantCut: 7, wantReads: 5, wantDue: true},
		{name: "cannot read", readErrs: []error{broken}, wantErr: broken, wantCut: 4, wantReads: 1, wantDue: true},
		{name: "cannot delete", deleteErrs: []error{broken}, wantErr: broken, wantCut: 4, wantReads: 1, wantDue: true},
		{name: "cannot delete, interrupted", readErrs: []error{interrupted}, deleteErrs: []error{broken}, wantCut: 9, wantReads: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, k, tab, reg := newRig(9)
			k.readErrs, k.deleteErrs = tt.readErrs, tt.deleteErrs
			cut, err := r.Reconcile(t.Context(), tab)
			if cut != tt.wantCut || !errors.Is(err, tt.wantErr) || k.reads != tt.wantReads || tab.Due() != tt.wantDue {
				t.Errorf("got cut %d, error %v, %d reads, due %t, want cut %d, error %v, %d reads, due %t",
					cut, err, k.reads, tab.Due(), tt.wantCut, tt.wantErr, tt.wantReads, tt.wantDue)
			}
			checkDeleted(t, reg, tt.wantCut)
			k.readErrs, k.deleteErrs = nil, nil
			if _, err := r.Reconcile(t.Context(), tab); err != nil || tab.Due() || len(k.flows) != 1 {
				t.Errorf("next time: got error %v, due %t, flows %v, want nothing left", err, tab.Due(), k.flows)
			}
		})
	}
}

func checkDeleted(t *testing.T, reg prometheus.Gatherer, want int) {
	t.Helper()
	const name = "kubeproxy_conntrack_reconciler_deleted_entries_total"
	err := testutil.GatherAndCompare(reg, strings.NewReader(fmt.Sprintf(`
# HELP %[1]s Stale UDP flows that were cut.
# TYPE %[1]s counter
%[1]s{ip_family="IPv4"} %[2]d
%[1]s{ip_family="IPv6"} 0
`, name, want)), name)
	if err != nil {
		t.Error(err)
	}
}

func TestReconcileReadsOnlyWhenDue(t *testing.T) {
	r, k, tab, _ := newRig(1)
	for i, tt := range []struct {
		name   string
		change func()
		want   int
	}{
		{"at first", func() {}, 1},
		{"nothing new", func() {}, 1},
		{"an endpoint more", func() { tab.Set("dns", fronts(vip), aps(ep1+" "+ep2)) }, 1},
		{"an endpoint fewer", func() { tab.Set("dns", fronts(vip), aps(ep1)) }, 2},
		{"gone", func() { tab.Set("dns", nil, nil) }, 3},
		{"nothing there", func() {}, 3},
	} {
		tt.change()
		if _, err := r.Reconcile(t.Context(), tab); err != nil || k.reads != tt.want {
			t.Errorf("step %d, %s: got %d reads, error %v, want %d", i, tt.name, k.reads, err, tt.want)
		}
	}
	if k.deletes != 1 {
		t.Errorf("got %d calls of Delete, want 1: there was nothing else to delete", k.deletes)
	}
}

func TestGoneSurvivesFailure(t *testing.T) {
	r, k, tab, _ := newRig(0)
	k.flows = []Flow{flow(vip, ep1)}
	if _, err := r.Reconcile(t.Context(), tab); err != nil {
		t.Fatal(err)
	}
	tab.Set("dns", nil, nil)
	k.readErrs = []error{errors.New("broken")}
	if _, err := r.Reconcile(t.Context(), tab); err == nil {
		t.Fatal("got no error")
	}
	if cut, err := r.Reconcile(t.Context(), tab); cut != 1 || err != nil {
		t.Errorf("got %d, %v, want the flow cut", cut, err)
	}
}

func TestNotSupportedIsSaidOnce(t *testing.T) {
	r, k, tab, _ := newRig(1)
	none := fmt.Errorf("open: %w", ErrNotSupported)
	var got []bool
	for _, err := range []error{none, none, nil, none, none} {
		k.readErrs = []error{err}
		tab.Adopt(fronts("10.96.0.77:53")...)
		_, err := r.Reconcile(t.Context(), tab)
		got = append(got, errors.Is(err, ErrNotSupported))
		if len(tab.gone) > 0 {
			t.Error("frontends that are gone pile up")
		}
	}
	if diff := cmp.Diff([]bool{true, false, false, true, false}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMetricsFromTheStart(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	NewMetrics(reg, model.Families())
	checkDeleted(t, reg, 0)
	n, err := testutil.GatherAndCount(reg, "kubeproxy_conntrack_reconciler_sync_duration_seconds")
	if n != 2 || err != nil {
		t.Errorf("got %d series of the duration, %v, want 2", n, err)
	}
}

func TestParseFlow(t *testing.T) {
	want := flow(vip, ep1)
	want.Ref = Ref{ID: 0xfeed, Zone: 3, OrigZone: 4, ReplyZone: 5}
	msg := message(want)
	got, ok := parseFlow(msg)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(Flow{})); !ok || diff != "" {
		t.Errorf("got ok %t, -want +got:\n%s", ok, diff)
	}
	for n := range len(msg) {
		parseFlow(msg[:n]) // whatever it says, it does not panic
	}
}

// FuzzParseFlow: what is read from any message does not panic, and is read
// again from what is written of it.
func FuzzParseFlow(f *testing.F) {
	f.Add(message(flow(vip, ep1)))
	f.Add(message(flow("[fd00::10]:53", "[fd00::1]:53")))
	f.Fuzz(func(t *testing.T, msg []byte) {
		flow, ok := parseFlow(msg)
		if !ok || flow.Src.Addr().Is4() != flow.Dst.Addr().Is4() || flow.ReplySrc.Addr().Is4() != flow.ReplyDst.Addr().Is4() {
			return
		}
		if again, ok := parseFlow(message(flow)); !ok || again != flow {
			t.Errorf("got %v, want %v", again, flow)
		}
	})
}

// message is a flow as a dump has it.
func message(f Flow) []byte {
	b := []byte{2, 0, 0, 0}
	orig := tuple(nl.CTA_TUPLE_ORIG, f.Src, f.Dst, f.Ref.OrigZone)
	for _, attr := range append(keyOf(f), orig) {
		b = append(b, attr.Serialize()...)
	}
	return b
}
