// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netns"

	"fairlead/proxier/model"
)

// Plan returns the lab that New would build, of labels and addresses alone: it
// has no namespaces, and nothing in it can be run or asked.
func Plan(cfg Config) *Lab {
	l := &Lab{Client: planClient()}
	for range max(cfg.Nodes, 1) {
		n := l.planNode()
		for range cfg.Pods {
			n.Pods = append(n.Pods, n.planPod())
		}
		l.Nodes = append(l.Nodes, n)
	}
	return l
}

func planClient() *NS {
	return plan("client", func(f model.Family) netip.Addr { return LANAddr(f, clientHost) })
}

// planNode returns the lab's next node: no two have the same number.
func (l *Lab) planNode() *Node {
	index := l.planned
	l.planned++
	ns := plan(fmt.Sprintf("node-%d", index+1), func(f model.Family) netip.Addr { return LANAddr(f, firstHost+index) })
	return &Node{NS: ns, lab: l, index: index}
}

// planPod returns the node's next pod.
func (n *Node) planPod() *NS {
	number := len(n.Pods) + 1
	return plan(fmt.Sprintf("%s-pod-%d", n.Label, number), func(f model.Family) netip.Addr { return n.podAddr(f, firstHost+number-1) })
}

// plan returns a namespace that is not there yet.
func plan(label string, addr func(model.Family) netip.Addr) *NS {
	ns := &NS{Label: label, handle: netns.None(), addrs: map[model.Family]netip.Addr{}}
	for _, f := range model.Families() {
		ns.addrs[f] = addr(f)
	}
	return ns
}
