// SPDX-License-Identifier: Apache-2.0

package proxier

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

// podStep is a step after which a pod has these addresses, or is gone.
func podStep(name, ips string) model.Changes {
	key := model.ObjectKey{Namespace: "shop", Name: name}
	if ips == "" {
		return model.Changes{Pods: map[model.ObjectKey]*model.Pod{key: nil}}
	}
	return model.Changes{Pods: map[model.ObjectKey]*model.Pod{key: {Key: key, IPs: parseAddrs(strings.Fields(ips)...)}}}
}

// podsText writes the pods that a sync was handed: "a=10.244.0.1 b-", the latter gone.
func podsText(pods map[model.ObjectKey]*model.Pod) string {
	var out []string
	for key, pod := range pods {
		if pod == nil {
			out = append(out, key.Name+"-")
			continue
		}
		out = append(out, key.Name+"="+joined(pod.IPs))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// recorder is a Contributor that notes what it is called with.
type recorder struct{ calls []string }

func (r *recorder) Contribute(_ context.Context, d Desired) {
	r.calls = append(r.calls, podsText(maps.Clone(d.Pods)))
}

// TestContributors: contributors are called before each sync, with the pods of the
// family that have changed since one succeeded.
func TestContributors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &recorder{}
		r := newRig(t, 0, seldom, []outcome{took(0), failed(0)})
		r.loop.Contributors = []Contributor{c}
		r.start()
		defer r.end()
		step := func(change model.Changes) {
			r.tracker.Update(change)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		step(podStep("early", "10.244.0.1"))
		step(listed())
		step(podStep("a", "10.244.0.2 fd00::2")) // fails, and is tried again
		step(podStep("b", "fd00::3"))
		step(podStep("b", "10.244.0.3"))
		step(podStep("a", ""))
		step(podStep("b", "fd00::3"))
		r.tracker.Poke()
		synctest.Wait()
		want := []string{"early=10.244.0.1", "a=10.244.0.2 fd00::2", "a=10.244.0.2 fd00::2", "b=10.244.0.3", "a-", "b=fd00::3", ""}
		if diff := cmp.Diff(want, c.calls); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestLinks: another network of the node's is handed on like another address.
func TestLinks(t *testing.T) {
	inBubble(t, 0, seldom, nil, func(t *testing.T, r *rig) {
		links := func(list ...string) model.Changes {
			n := &model.NodeAddrs{}
			for _, l := range list {
				n.Links = append(n.Links, netip.MustParsePrefix(l))
			}
			return model.Changes{NodeAddrs: n}
		}
		for _, change := range []model.Changes{listed(), links("10.0.0.0/24", "fd00::/64"), links("10.0.0.0/24", "fd00::/64"), links("10.0.1.0/24")} {
			r.tracker.Update(change)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		var got []string
		for _, call := range r.calls() {
			got = append(got, fmt.Sprint(call.desired.Node.Links))
		}
		if diff := cmp.Diff([]string{"[]", "[10.0.0.0/24]", "[10.0.1.0/24]"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
