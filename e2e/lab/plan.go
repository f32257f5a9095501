// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"

	"fairlead/proxier/model"
)

// Plan returns the lab that New would build, of labels and addresses alone: it
// has no namespaces, and nothing in it can be run or asked.
func Plan(cfg Config) *Lab {
	l := &Lab{Client: planned("client", func(f model.Family) netip.Addr { return LANAddr(f, clientHost) })}
	for i := range max(cfg.Nodes, 1) {
		label := fmt.Sprintf("node-%d", i+1)
		n := &Node{
			NS:  planned(label, func(f model.Family) netip.Addr { return LANAddr(f, firstHost+i) }),
			lab: l, index: i,
		}
		for j := range cfg.Pods {
			n.Pods = append(n.Pods, planned(fmt.Sprintf("%s-pod-%d", label, j+1),
				func(f model.Family) netip.Addr { return n.podAddr(f, firstHost+j) }))
		}
		l.Nodes = append(l.Nodes, n)
	}
	return l
}

func planned(label string, addr func(model.Family) netip.Addr) *NS {
	ns := &NS{Label: label, addrs: map[model.Family]netip.Addr{}}
	for _, f := range model.Families() {
		ns.addrs[f] = addr(f)
	}
	return ns
}
