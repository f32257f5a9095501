// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fairlead/iptables/ruleset/kerneltest"
	"fairlead/nat"
	"fairlead/nat/ipset"
)

// hostLoops is the set of endpoints that reach themselves in a host's namespace.
type hostLoops struct {
	h     *kerneltest.Host
	loops *ipset.Set
}

var _ Loops = hostLoops{}

func loopsIn(h *kerneltest.Host, s kerneltest.Setup) Loops {
	return hostLoops{h, ipset.NewSet(nat.LoopBack(s.IPv6), ipset.HashIPPortIP, s.IPv6)}
}

func (l hostLoops) Name() string { return l.loops.Name() }

func (l hostLoops) List() (in []ipset.Element, found bool, err error) {
	err = l.h.Enter(func() error { in, found, err = l.loops.List(); return err })
	return in, found, err
}

func (l hostLoops) Create(size int) error {
	return l.h.Enter(func() error { return l.loops.Create(size) })
}

func (l hostLoops) Add(e ...ipset.Element) error {
	return l.h.Enter(func() error { return l.loops.Add(e...) })
}

func (l hostLoops) Remove(e ...ipset.Element) error {
	return l.h.Enter(func() error { return l.loops.Remove(e...) })
}

func (l hostLoops) Destroy() error { return l.h.Enter(l.loops.Destroy) }
