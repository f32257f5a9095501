// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"cmp"
	"strings"
	"time"

	"fairlead/nftables/table"
)

func secondsOf(n int) time.Duration { return time.Duration(n) * time.Second }

// compareStrings compares pairs of strings.
func compareStrings(pairs ...string) int {
	for i := 0; i < len(pairs); i += 2 {
		if c := strings.Compare(pairs[i], pairs[i+1]); c != 0 {
			return c
		}
	}
	return cmp.Compare(0, 0)
}

// forgetClients removes the clients that are remembered to have been where they must not
// go any more. Rules remember only what is among the targets, which have changed already,
// so that none comes after this has looked.
func (m *Mode) forgetClients() error {
	if !m.forget {
		return nil
	}
	for _, s := range m.drawn.table.Sets {
		if !s.Dynamic {
			continue
		}
		f := byAddress
		if s.Name == affinityNP {
			f = byNodePort
		}
		valid := m.affinityTargets(f)
		addr := m.render.addr().Len()
		var gone []table.Element
		_, err := readAgain(func() (struct{}, error) {
			gone = nil
			return struct{}{}, m.kernel.Elements(s, func(e table.Element) {
				if !valid[e.Key[addr:]+e.Data] {
					gone = append(gone, e)
				}
			})
		})
		if err != nil {
			return err
		}
		for _, e := range gone { // one by one: some may have expired by now
			if err := m.kernel.Apply([]table.Step{table.DeleteElements{Set: s, Elements: []table.Element{e}}}); err != nil && !doubtful(err) {
				return err
			}
		}
	}
	m.forget = false
	return nil
}

// affinityTargets are destinations and endpoints that clients may be remembered for.
func (m *Mode) affinityTargets(f front) map[string]bool {
	out := map[string]bool{}
	for _, st := range m.ports {
		if st.port.AffinityTimeout == 0 {
			continue
		}
		for _, e := range m.render.port(st.port, st.slots, st.has) {
			if e.of == affinityTargetsName(f) {
				out[e.Key] = true
			}
		}
	}
	return out
}
