// SPDX-License-Identifier: Apache-2.0

// Package sourcetest helps to test sources: a sink that records and can be
// waited on, and the invariants that every value from a source holds.
package sourcetest

import (
	"fmt"
	"net/netip"
	"regexp"

	"fairlead/proxier/model"
)

// The names that the Kubernetes API allows. They are spelled here a second time
// on purpose, in another way than in the translation.
var (
	label     = regexp.MustCompile(`\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\z`)
	subdomain = regexp.MustCompile(`\A[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\z`)
)

// CheckService returns an error that names the invariant that s breaks.
func CheckService(s *model.Service) error {
	if err := checkNames(s.Key, label); err != nil {
		return err
	}
	families := map[model.Family]bool{}
	for _, ip := range s.ClusterIPs {
		if err := checkAddr(ip); err != nil {
			return err
		}
		if families[model.FamilyOf(ip)] {
			return fmt.Errorf("two cluster IPs of one family in %v", s.ClusterIPs)
		}
		families[model.FamilyOf(ip)] = true
	}
	if len(families) == 0 {
		return fmt.Errorf("no cluster IP")
	}
	numbers := map[string]bool{}
	for _, p := range s.Ports {
		id := fmt.Sprint(p.Number, p.Protocol)
		if numbers[id] {
			return fmt.Errorf("port number %d twice for %s", p.Number, p.Protocol)
		}
		numbers[id] = true
	}
	return checkPorts(s.Ports)
}

// CheckEndpointSlice returns an error that names the invariant that s breaks.
func CheckEndpointSlice(s *model.EndpointSlice) error {
	if err := checkNames(s.Key, subdomain); err != nil {
		return err
	}
	if err := checkNames(s.Service, label); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	if s.Key.Namespace != s.Service.Namespace {
		return fmt.Errorf("slice %v of a Service in another namespace %v", s.Key, s.Service)
	}
	if s.Family != model.IPv4 && s.Family != model.IPv6 {
		return fmt.Errorf("no family %d", s.Family)
	}
	for _, e := range s.Endpoints {
		if err := checkAddr(e.Addr); err != nil {
			return err
		}
		if model.FamilyOf(e.Addr) != s.Family {
			return fmt.Errorf("%v in a slice of %v", e.Addr, s.Family)
		}
		if e.NodeName != "" && (len(e.NodeName) > 253 || !subdomain.MatchString(e.NodeName)) {
			return fmt.Errorf("node name %q", e.NodeName)
		}
	}
	return checkPorts(s.Ports)
}

// CheckNode returns an error that names the invariant that n breaks.
func CheckNode(n *model.Node) error {
	if len(n.Name) > 253 || !subdomain.MatchString(n.Name) {
		return fmt.Errorf("node name %q", n.Name)
	}
	return nil
}

// CheckChanges returns an error that names the first invariant that is broken
// in a step, in any order.
func CheckChanges(c model.Changes) error {
	for key, s := range c.Services {
		if s == nil {
			continue
		}
		if s.Key != key {
			return fmt.Errorf("service %v under the key %v", s.Key, key)
		}
		if err := CheckService(s); err != nil {
			return fmt.Errorf("service %v: %w", key, err)
		}
	}
	for key, s := range c.EndpointSlices {
		if s == nil {
			continue
		}
		if s.Key != key {
			return fmt.Errorf("slice %v under the key %v", s.Key, key)
		}
		if err := CheckEndpointSlice(s); err != nil {
			return fmt.Errorf("slice %v: %w", key, err)
		}
	}
	if c.Node != nil && c.Node.Node != nil {
		return CheckNode(c.Node.Node)
	}
	return nil
}

func checkNames(key model.ObjectKey, name *regexp.Regexp) error {
	if !label.MatchString(key.Namespace) {
		return fmt.Errorf("namespace %q", key.Namespace)
	}
	if len(key.Name) > 253 || !name.MatchString(key.Name) {
		return fmt.Errorf("name %q", key.Name)
	}
	return nil
}

func checkPorts(ports []model.Port) error {
	names := map[string]bool{}
	for _, p := range ports {
		if p.Protocol != model.TCP && p.Protocol != model.UDP && p.Protocol != model.SCTP {
			return fmt.Errorf("protocol %q", p.Protocol)
		}
		if p.Name != "" && !label.MatchString(p.Name) {
			return fmt.Errorf("port name %q", p.Name)
		}
		if p.Number == 0 {
			return fmt.Errorf("port number 0")
		}
		id := p.Name + "/" + string(p.Protocol)
		if names[id] {
			return fmt.Errorf("port %s twice", id)
		}
		names[id] = true
	}
	return nil
}

// notUnicast are the ranges whose addresses no destination may be.
var notUnicast = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/32"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/128"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

func checkAddr(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
		return fmt.Errorf("address %v", a)
	}
	for _, p := range notUnicast {
		if p.Contains(a) {
			return fmt.Errorf("address %v is in %v", a, p)
		}
	}
	return nil
}
