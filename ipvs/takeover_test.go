// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead/proxier/model"
)

// TestTakeOver: what iptables mode has left serves until IPVS serves, and then goes.
func TestTakeOver(t *testing.T) {
	left, err := os.ReadFile("../iptables/testdata/golden/node-port.txt")
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(model.IPv4)
	if err := h.rules.Edit(string(left)); err != nil {
		t.Fatal(err)
	}
	h.device.Fault = func(op string) error {
		if strings.HasPrefix(op, "add ") && !strings.Contains(h.rules.Save(), "-j KUBE-SEP-") {
			t.Error("the rules have gone before the addresses are there")
		}
		return nil
	}
	web := with(port(portName("shop", "web", "http", model.TCP), "10.96.0.10", 80, one, three), nodePort)
	h.agent(t, config(model.IPv4)).sync(web)
	fresh := newHost(model.IPv4)
	fresh.agent(t, config(model.IPv4)).sync(web)
	// A jump that both have stays where it is; which comes first makes no difference.
	lines := func(h *host) []string { return slices.Sorted(strings.SplitSeq(h.save(), "\n")) }
	if diff := cmp.Diff(lines(fresh), lines(h)); diff != "" {
		t.Errorf("(-fresh +taken over):\n%s", diff)
	}
}
