// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"fairlead/config"
	"fairlead/iptables/ruleset"
	"fairlead/nat/egress"
	"fairlead/portmap"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/source/apiserver"
	"fairlead/proxier/traffic"
)

// agentConfig is what the agent was told, checked, and in the form that its parts take.
type agentConfig struct {
	*config.Settings
	nodeName string
	variant  ruleset.Variant // empty: find out
	// podCIDRs are those of --cluster-cidr, and clusterCIDRs too unless pods are told by
	// their interface.
	podCIDRs, clusterCIDRs map[model.Family][]netip.Prefix
	nodePorts              proxier.NodePortAddresses
	nodeIP                 netip.Addr // invalid: that of the Node object
	podInterface           string
	modes                  []string // in the order of preference
	excludeCIDRs           []netip.Prefix
	scheduler              model.Scheduler
	balancing              model.Balancing
	nodePodCIDRs           bool
	policy                 source.Policy
	egress                 egress.Config // where no file says otherwise
	protected              map[portmap.Port]string
	counted                traffic.Selection // of which Services metrics tell what they carry
	healthz, metrics       string            // addresses with ports
	startupTaint           apiserver.Taint   // no key: none
}

// check makes of settings what the agent takes. Its errors name flag or field, the value
// and the remedy.
func check(s *config.Settings) (*agentConfig, error) {
	cfg := &agentConfig{Settings: s}
	for _, set := range []func() error{
		cfg.setMode, cfg.setIPVS, cfg.setBalancing, cfg.setVariant, cfg.setPodCIDRs, cfg.setPolicy, cfg.setLocalDetection, cfg.setNodePorts,
		cfg.setNodeName, cfg.checkNumbers, cfg.checkChoices, cfg.setAddresses, cfg.setEgress, cfg.setProtected, cfg.setStartupTaint, cfg.setTraffic,
	} {
		if err := set(); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// The modes.
const (
	iptablesName = "iptables"
	ipvsName     = "ipvs"
	nftablesName = "nftables"
)

// setMode reads the modes in the order of preference.
func (c *agentConfig) setMode() error {
	const flag = "proxy-mode"
	for mode := range strings.SplitSeq(c.Mode, ",") {
		switch mode = strings.TrimSpace(mode); mode {
		case iptablesName, ipvsName, nftablesName:
			c.modes = append(c.modes, mode)
		case "":
			if c.Mode != "" {
				return fmt.Errorf("%s %q has an empty item; use iptables, ipvs or nftables", c.Where(flag), c.Mode)
			}
			c.modes = []string{iptablesName}
		default:
			return fmt.Errorf("%s %q is unknown; use iptables, ipvs or nftables", c.Where(flag), mode)
		}
	}
	return nil
}

// needsIptables tells whether all modes that may be used need iptables.
func (c *agentConfig) needsIptables() bool { return !slices.Contains(c.modes, nftablesName) }

func (c *agentConfig) setBalancing() (err error) {
	if c.balancing, err = source.ParseBalancing(c.NFTables.LoadBalancing); err != nil {
		return fmt.Errorf("%s %q %w", c.Where("load-balancing"), c.NFTables.LoadBalancing, err)
	}
	return nil
}

func (c *agentConfig) setVariant() error {
	switch v := ruleset.Variant(c.IPTables.Variant); v {
	case ruleset.NFT, ruleset.Legacy:
		c.variant = v
		return nil
	case "auto", "":
		return nil
	}
	return fmt.Errorf("%s %q is unknown; use auto, nft or legacy", c.Where("iptables-variant"), c.IPTables.Variant)
}

// parseCIDRs reads CIDRs and sorts them by family. Flag names where they come from.
func parseCIDRs(flag string, list []string) (map[model.Family][]netip.Prefix, error) {
	out := map[model.Family][]netip.Prefix{}
	for _, part := range list {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s %q is not a CIDR; write it like 10.244.0.0/16 or fd00:10:244::/56", flag, part)
		}
		out[model.FamilyOf(p.Addr())] = append(out[model.FamilyOf(p.Addr())], p.Masked())
	}
	return out, nil
}

func (c *agentConfig) setPodCIDRs() (err error) {
	c.clusterCIDRs, err = parseCIDRs(c.Where("cluster-cidr"), strings.Split(c.ClusterCIDR, ","))
	c.podCIDRs = c.clusterCIDRs
	return err
}

// setPolicy reads which external addresses Services may have.
func (c *agentConfig) setPolicy() error {
	services, err := parseCIDRs(c.Where("service-cidrs"), c.ServiceCIDRs)
	if err != nil {
		return err
	}
	external, err := parseCIDRs(c.Where("external-ip-cidrs"), c.ExternalIPCIDRs)
	if err != nil {
		return err
	}
	c.policy = source.Policy{
		ServiceCIDRs:        both(services),
		PodCIDRs:            both(c.clusterCIDRs),
		RestrictExternalIPs: c.ExternalIPCIDRs != nil,
		ExternalIPCIDRs:     both(external),
	}
	if !c.ExternalIPsAllowed() {
		c.policy.RestrictExternalIPs, c.policy.ExternalIPCIDRs = true, nil
	}
	return nil
}

// both returns the CIDRs of both families.
func both(cidrs map[model.Family][]netip.Prefix) []netip.Prefix {
	return slices.Concat(cidrs[model.IPv4], cidrs[model.IPv6])
}

// setLocalDetection checks how to tell the traffic of pods.
func (c *agentConfig) setLocalDetection() error {
	const flag = "detect-local-mode"
	needs := func(name, value string) error {
		if value == "" {
			return fmt.Errorf("%s %s needs --%s", c.Where(flag), c.DetectLocal, name)
		}
		if len(value) > 15 || strings.ContainsAny(value, "/ \t\n\"!+") { // IFNAMSIZ less the final NUL
			return fmt.Errorf("%s %q is not the name of an interface", c.Where(name), value)
		}
		return nil
	}
	switch c.DetectLocal {
	case "ClusterCIDR", "":
		return nil
	case "NodeCIDR":
		c.nodePodCIDRs = true
		return nil
	case "BridgeInterface":
		c.clusterCIDRs, c.podInterface = nil, c.PodBridge
		return needs("pod-bridge-interface", c.PodBridge)
	case "InterfaceNamePrefix":
		c.clusterCIDRs, c.podInterface = nil, c.PodPrefix+"+"
		return needs("pod-interface-name-prefix", c.PodPrefix)
	}
	return fmt.Errorf("%s %q is unknown; use ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", c.Where(flag), c.DetectLocal)
}

// setNodePorts reads CIDRs, or the word primary alone.
func (c *agentConfig) setNodePorts() error {
	const primary = "primary"
	where, given := c.Where("nodeport-addresses"), c.NodePortAddresses
	if len(given) == 1 && given[0] == primary {
		c.nodePorts.Primary = true
		return nil
	}
	if slices.Contains(given, primary) {
		return fmt.Errorf("%s %q mixes primary with CIDRs; give one or the other", where, given)
	}
	cidrs, err := parseCIDRs(where, given)
	c.nodePorts.CIDRs = both(cidrs)
	return err
}

// setNodeName finds the name that the Node object has: lower case, as kubelet
// registers it.
func (c *agentConfig) setNodeName() error {
	name := c.Hostname
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return fmt.Errorf("read host name: %w; name the node with --hostname-override", err)
		}
	}
	c.nodeName = strings.ToLower(strings.TrimSpace(name))
	if c.nodeName == "" {
		return errors.New("this host has no name; name the node with --hostname-override")
	}
	return nil
}

// setAddresses takes over the node's own address, and adds ports to addresses to serve
// on that have none.
func (c *agentConfig) setAddresses() error {
	bind, err := netip.ParseAddr(c.BindAddress)
	if err != nil {
		return fmt.Errorf("%s %q is not an IP address; write it like 0.0.0.0 or ::", c.Where("bind-address"), c.BindAddress)
	}
	if !bind.IsUnspecified() {
		c.nodeIP = bind
	}
	if c.healthz, err = hostPort(c.Where("healthz-bind-address"), c.HealthzAddress, 10256); err != nil {
		return err
	}
	c.metrics, err = hostPort(c.Where("metrics-bind-address"), c.MetricsAddress, 10249)
	return err
}

// hostPort checks an address to serve on, and adds the port where it is
// missing. Empty stays empty.
func hostPort(flag, s string, port int) (string, error) {
	if s == "" {
		return "", nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), strconv.Itoa(port)), nil
	}
	if _, err := netip.ParseAddrPort(s); err != nil {
		return "", fmt.Errorf("%s %q is not an address and port; write it like 0.0.0.0:%d", flag, s, port)
	}
	return s, nil
}

// setStartupTaint reads key, or key:effect.
func (c *agentConfig) setStartupTaint() error {
	key, effect, _ := strings.Cut(c.StartupTaint, ":")
	c.startupTaint = apiserver.Taint{Key: key, Effect: effect}
	if c.StartupTaint == "" {
		return nil
	}
	known := []string{"", "NoSchedule", "PreferNoSchedule", "NoExecute"}
	if key == "" || strings.ContainsAny(key, " \t\n=") || !slices.Contains(known, effect) {
		return fmt.Errorf("%s %q is not a taint; write it like fairlead.io/not-ready:NoSchedule", c.Where("startup-taint"), c.StartupTaint)
	}
	if c.Manifests != "" {
		return fmt.Errorf("%s needs an API server, and --manifests takes its place; leave one out", c.Where("startup-taint"))
	}
	return nil
}
