// SPDX-License-Identifier: Apache-2.0

// Package sourcetest helps to test sources: a sink that records and can be
// waited on, and the invariants that every value from a source holds.
package sourcetest

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"fairlead/proxier/model"
)

// The names that the Kubernetes API allows. They are spelled here a second time
// on purpose, in another way than in the translation.
var (
	label      = regexp.MustCompile(`\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\z`)
	labelValue = regexp.MustCompile(`\A[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?\z`)
	subdomain  = regexp.MustCompile(`\A[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\z`)
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
	numbers, nodePorts := map[string]bool{}, map[string]bool{}
	for _, p := range s.Ports {
		if isTwice(numbers, fmt.Sprint(p.Number, p.Protocol)) {
			return fmt.Errorf("port number %d twice for %s", p.Number, p.Protocol)
		}
		if p.NodePort != 0 && isTwice(nodePorts, fmt.Sprint(p.NodePort, p.Protocol)) {
			return fmt.Errorf("node port %d twice for %s", p.NodePort, p.Protocol)
		}
	}
	if err := checkExternal(s); err != nil {
		return err
	}
	return checkPorts(s.Ports)
}

// isTwice notes that there is v, and reports whether it was noted before.
func isTwice[T comparable](seen map[T]bool, v T) bool {
	twice := seen[v]
	seen[v] = true
	return twice
}

// The most that a Service's lists may have, and that they may come to for all
// its ports.
const (
	maxAddrs, maxRanges = 256, 2048
	maxProduct          = 65536
)

func checkExternal(s *model.Service) error {
	seen := map[netip.Addr]bool{}
	for _, ip := range s.ClusterIPs {
		seen[ip] = true
	}
	for _, ip := range slices.Concat(s.ExternalIPs, s.LoadBalancerIPs) {
		if err := checkAddr(ip); err != nil {
			return fmt.Errorf("external: %w", err)
		}
		if isTwice(seen, ip) {
			return fmt.Errorf("address %v twice, cluster IPs counted", ip)
		}
	}
	for _, n := range []int{len(s.ExternalIPs), len(s.LoadBalancerIPs)} {
		if n > maxAddrs || n*len(s.Ports) > maxProduct {
			return fmt.Errorf("%d external addresses with %d ports", n, len(s.Ports))
		}
	}
	if !s.Restricted && len(s.SourceRanges) > 0 {
		return fmt.Errorf("source ranges %v of a Service that is not restricted", s.SourceRanges)
	}
	if n := len(s.SourceRanges); n > maxRanges || n*len(s.Ports) > maxProduct {
		return fmt.Errorf("%d source ranges with %d ports", n, len(s.Ports))
	}
	if err := checkPrefixes(s.SourceRanges); err != nil {
		return fmt.Errorf("source ranges: %w", err)
	}
	if s.HealthCheckNodePort != 0 && !s.ExternalTrafficLocal {
		return fmt.Errorf("health check node port %d, but external traffic is not local", s.HealthCheckNodePort)
	}
	if t := s.AffinityTimeout; t < 0 || t > 24*time.Hour || t%time.Second != 0 {
		return fmt.Errorf("affinity timeout %v", t)
	}
	return nil
}

func checkPrefixes(prefixes []netip.Prefix) error {
	seen := map[netip.Prefix]bool{}
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" || p != p.Masked() {
			return fmt.Errorf("prefix %v", p)
		}
		if isTwice(seen, p) {
			return fmt.Errorf("prefix %v twice", p)
		}
	}
	return nil
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
	if len(s.Endpoints) > 1000 {
		return fmt.Errorf("%d endpoints", len(s.Endpoints))
	}
	for _, p := range s.Ports {
		if p.NodePort != 0 {
			return fmt.Errorf("node port %d of a slice", p.NodePort)
		}
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
		if err := checkHints(e); err != nil {
			return err
		}
	}
	return checkPorts(s.Ports)
}

func hintNames(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func checkHints(e model.SliceEndpoint) error {
	zones, nodes := hintNames(e.Hints.Zones()), hintNames(e.Hints.Nodes())
	for _, list := range [][]string{zones, nodes} {
		if len(list) > 8 {
			return fmt.Errorf("%d hints", len(list))
		}
		seen := map[string]bool{}
		for _, name := range list {
			if isTwice(seen, name) {
				return fmt.Errorf("hint %q twice", name)
			}
		}
	}
	for _, zone := range zones {
		if !labelValue.MatchString(zone) {
			return fmt.Errorf("hint for the zone %q", zone)
		}
	}
	for _, node := range nodes {
		if len(node) > 253 || !subdomain.MatchString(node) {
			return fmt.Errorf("hint for the node %q", node)
		}
	}
	return nil
}

// CheckServiceCIDR returns an error that names the invariant that c breaks.
func CheckServiceCIDR(c *model.ServiceCIDR) error {
	if c.Key.Namespace != "" || len(c.Key.Name) > 253 || !subdomain.MatchString(c.Key.Name) {
		return fmt.Errorf("name %q", c.Key)
	}
	if len(c.CIDRs) > 64 {
		return fmt.Errorf("%d CIDRs", len(c.CIDRs))
	}
	return checkPrefixes(c.CIDRs)
}

// CheckNode returns an error that names the invariant that n breaks.
func CheckNode(n *model.Node) error {
	if len(n.Name) > 253 || !subdomain.MatchString(n.Name) {
		return fmt.Errorf("node name %q", n.Name)
	}
	if n.Zone != "" && !labelValue.MatchString(n.Zone) {
		return fmt.Errorf("zone %q", n.Zone)
	}
	if len(n.Addrs) > 64 || len(n.PodCIDRs) > 64 {
		return fmt.Errorf("%d addresses and %d pod CIDRs", len(n.Addrs), len(n.PodCIDRs))
	}
	for _, ip := range n.Addrs {
		if err := checkAddr(ip); err != nil {
			return err
		}
	}
	return checkPrefixes(n.PodCIDRs)
}

// CheckPod returns an error that names the invariant that p breaks.
func CheckPod(p *model.Pod) error {
	if err := checkNames(p.Key, subdomain); err != nil {
		return err
	}
	if p.UID != "" && (len(p.UID) > 253 || !subdomain.MatchString(p.UID)) {
		return fmt.Errorf("UID %q", p.UID)
	}
	families := map[model.Family]bool{}
	for _, ip := range p.IPs {
		if err := checkAddr(ip); err != nil {
			return err
		}
		if isTwice(families, model.FamilyOf(ip)) {
			return fmt.Errorf("two addresses of one family in %v", p.IPs)
		}
	}
	if len(p.IPs) == 0 || len(p.HostPorts) == 0 || len(p.HostPorts) > 20000 {
		return fmt.Errorf("%d addresses and %d host ports", len(p.IPs), len(p.HostPorts))
	}
	seen := map[model.HostPort]bool{}
	for _, h := range p.HostPorts {
		if h.HostPort == 0 || h.ContainerPort == 0 {
			return fmt.Errorf("port 0 in %+v", h)
		}
		if h.Protocol != model.TCP && h.Protocol != model.UDP && h.Protocol != model.SCTP {
			return fmt.Errorf("protocol %q", h.Protocol)
		}
		ip := h.HostIP
		if ip.IsValid() && (ip.Zone() != "" || ip.Is4In6() || ip.IsMulticast() || ip.Is6() && ip.IsLoopback()) {
			return fmt.Errorf("host IP %v", ip)
		}
		if h.ContainerPort = 0; isTwice(seen, h) {
			return fmt.Errorf("host port %+v twice", h)
		}
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
	for key, cidr := range c.ServiceCIDRs {
		if cidr == nil {
			continue
		}
		if cidr.Key != key {
			return fmt.Errorf("service CIDR %v under the key %v", cidr.Key, key)
		}
		if err := CheckServiceCIDR(cidr); err != nil {
			return fmt.Errorf("service CIDR %v: %w", key, err)
		}
	}
	for key, pod := range c.Pods {
		if pod == nil {
			continue
		}
		if pod.Key != key {
			return fmt.Errorf("pod %v under the key %v", pod.Key, key)
		}
		if err := CheckPod(pod); err != nil {
			return fmt.Errorf("pod %v: %w", key, err)
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
	if len(ports) > 20000 {
		return fmt.Errorf("%d ports", len(ports))
	}
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
		if id := p.Name + "/" + string(p.Protocol); isTwice(names, id) {
			return fmt.Errorf("port %s twice", id)
		}
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
	netip.MustParsePrefix("::a00:0/104"), // 10.0.0.0/8 in an IPv4-compatible address
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
