// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"fairlead/iptables/ruleset"
	"fairlead/nat/egress"
	"fairlead/nat/sysctl"
	"fairlead/portmap"
	"fairlead/proxier"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// options are the flags as given. Names and defaults are kube-proxy's where it
// has the flag.
type options struct {
	kubeconfig, master, manifests string
	hostname                      string
	mode, variant                 string
	clusterCIDR                   string
	serviceCIDRs, externalIPCIDRs string
	detectLocal                   string
	podBridge, podPrefix          string
	nodePortAddresses             []string
	bindAddress                   string
	healthzAddress                string
	metricsAddress                string
	bindHardFail, profiling       bool
	minSyncPeriod, syncPeriod     time.Duration
	masqueradeAll                 bool
	masqueradeBit                 int
	localhostNodePorts, compact   bool
	conntrack                     sysctl.ConntrackConfig
	ipvs                          ipvsOptions
	stateFile                     string
	egressOptions
	hostPortOptions
	// changed tells whether a flag was given.
	changed func(name string) bool
}

// register defines the flags.
func (o *options) register(fs *pflag.FlagSet) {
	o.changed = fs.Changed
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "File with the address and credentials of the API server. Empty, with --master empty too, means those of the pod that the agent runs in.")
	fs.StringVar(&o.master, "master", "", "URL of the API server; overrides the kubeconfig's.")
	fs.StringVar(&o.manifests, "manifests", "", "Directory of .yaml, .yml and .json files with Services, EndpointSlices, ServiceCIDRs and a Node, to use instead of an API server.")
	fs.StringVar(&o.hostname, "hostname-override", "", "Name of this node; empty means the host name.")
	fs.StringVar(&o.mode, "proxy-mode", "iptables", "How to program the kernel: iptables or ipvs; or several with commas between, of which the first is used that this node can.")
	fs.StringVar(&o.mode, "mode", "iptables", "Same as --proxy-mode.")
	fs.StringVar(&o.variant, "iptables-variant", "auto", "Which iptables to use: nft, legacy, or auto, which finds out what this host uses.")
	fs.StringVar(&o.clusterCIDR, "cluster-cidr", "", "CIDRs of the pods' addresses, of either family, with commas between. Traffic to a cluster IP from elsewhere is masqueraded.")
	fs.StringVar(&o.serviceCIDRs, "service-cidrs", "", "CIDRs of cluster IPs, with commas between, besides those of ServiceCIDR objects. No external IP or load balancer's address of a Service may be in one, nor in --cluster-cidr.")
	fs.StringVar(&o.externalIPCIDRs, "external-ip-cidrs", "", "CIDRs that external IPs of Services must be in, with commas between. Given but empty, it refuses all; not given, it refuses none.")
	fs.StringVar(&o.detectLocal, "detect-local-mode", "ClusterCIDR", "How to tell the traffic of pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.")
	fs.StringVar(&o.podBridge, "pod-bridge-interface", "", "The bridge that pods are on, for BridgeInterface.")
	fs.StringVar(&o.podPrefix, "pod-interface-name-prefix", "", "What the names of the pods' interfaces on the node begin with, for InterfaceNamePrefix.")
	fs.StringSliceVar(&o.nodePortAddresses, "nodeport-addresses", nil, "Where node ports answer: CIDRs of the node's addresses, or primary for its own. Empty means on all addresses.")
	fs.StringVar(&o.bindAddress, "bind-address", "0.0.0.0", "This node's own address, in the place of the one in its Node object; an unspecified one means that. An IPv6 address moves the defaults of the two addresses below to IPv6.")
	fs.StringVar(&o.healthzAddress, "healthz-bind-address", "0.0.0.0:10256", "Address and port of /healthz and /livez; empty means none.")
	fs.StringVar(&o.metricsAddress, "metrics-bind-address", "127.0.0.1:10249", "Address and port of /metrics and /proxyMode; empty means none.")
	fs.BoolVar(&o.bindHardFail, "bind-address-hard-fail", false, "Exit when an address cannot be bound, instead of trying again.")
	fs.BoolVar(&o.profiling, "profiling", false, "Serve /debug/pprof beside /metrics.")
	fs.DurationVar(&o.minSyncPeriod, "iptables-min-sync-period", 0, "Least time between the starts of two syncs. 0 means at once when idle, and after a sync a rest as long as the sync.")
	fs.DurationVar(&o.syncPeriod, "iptables-sync-period", 30*time.Second, "How often the rules are checked against what others may have changed.")
	fs.BoolVar(&o.masqueradeAll, "masquerade-all", false, "Masquerade all traffic to cluster IPs.")
	fs.BoolVar(&o.localhostNodePorts, "iptables-localhost-nodeports", true, "Let node ports answer on 127.0.0.1 too.")
	fs.BoolVar(&o.compact, "iptables-compact", false, "Write a third of the rules: Services without session affinity translate in KUBE-SVC-… and KUBE-SVL-…, and their endpoints have no KUBE-SEP-… chains. It needs ipset: the node's own endpoints are in the set KUBE-LOOP-BACK. Switching it on or off takes a restart, and interrupts no connection.")
	fs.IntVar(&o.masqueradeBit, "iptables-masquerade-bit", 14, "Bit, 0 to 31, of the packet mark that asks for masquerading.")
	fs.StringVar(&o.stateFile, "state-file", defaultStateFile, "File that tells others on the node, in JSON, what of its NAT this agent does; empty means none.")
	conntrackFlags(fs, &o.conntrack)
	o.ipvs.register(fs)
	o.egressOptions.register(fs)
	o.hostPortOptions.register(fs)
}

// defaultStateFile is where others on the node look for what this agent does.
const defaultStateFile = "/run/fairlead/state.json"

// logFlags returns klog's flags that are useful in a container.
func logFlags() *pflag.FlagSet {
	all := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(all)
	fs := pflag.NewFlagSet("log", pflag.ContinueOnError)
	v := pflag.PFlagFromGoFlag(all.Lookup("v"))
	v.Usage = "How much to log: 0 what an operator must know, 2 a line per sync, 4 details, 6 every rule written."
	fs.AddFlag(v)
	fs.AddFlag(pflag.PFlagFromGoFlag(all.Lookup("vmodule")))
	return fs
}

// config is what the flags mean.
type config struct {
	options
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
	nodePodCIDRs           bool
	policy                 source.Policy
	egress                 egress.Config // where no file says otherwise
	protected              map[portmap.Port]string
}

// config checks the flags. Its errors name the flag, the value and the remedy.
func (o *options) config() (*config, error) {
	cfg := &config{options: *o}
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var err error
	cfg.modes, err = parseModes(o.mode)
	check(err)
	check(cfg.setIPVS())
	cfg.variant, err = parseVariant(o.variant)
	check(err)
	cfg.clusterCIDRs, err = parseCIDRs("--cluster-cidr", o.clusterCIDR)
	check(err)
	cfg.podCIDRs = cfg.clusterCIDRs
	check(cfg.setPolicy())
	check(cfg.setLocalDetection())
	cfg.nodePorts, err = parseNodePortAddresses(o.nodePortAddresses)
	check(err)
	cfg.nodeName, err = nodeName(o.hostname)
	check(err)
	check(o.checkNumbers())
	check(cfg.setAddresses())
	cfg.egress, err = o.egressOptions.config(o.changed)
	check(err)
	cfg.protected, err = o.hostPortOptions.config(cfg.healthzAddress, cfg.metricsAddress)
	check(err)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return cfg, nil
}

// The modes.
const (
	iptablesName = "iptables"
	ipvsName     = "ipvs"
)

// parseModes reads the modes in the order of preference.
func parseModes(list string) ([]string, error) {
	if list == "" {
		return []string{iptablesName}, nil
	}
	var out []string
	for mode := range strings.SplitSeq(list, ",") {
		switch mode = strings.TrimSpace(mode); mode {
		case iptablesName, ipvsName:
			out = append(out, mode)
		case "nftables":
			return nil, fmt.Errorf("--proxy-mode %s is not available in this version; use iptables or ipvs", mode)
		default:
			return nil, fmt.Errorf("--proxy-mode %q is unknown; use iptables or ipvs", mode)
		}
	}
	return out, nil
}

func parseVariant(s string) (ruleset.Variant, error) {
	switch v := ruleset.Variant(s); v {
	case ruleset.NFT, ruleset.Legacy:
		return v, nil
	case "auto", "":
		return "", nil
	}
	return "", fmt.Errorf("--iptables-variant %q is unknown; use auto, nft or legacy", s)
}

// parseCIDRs reads a list of CIDRs and sorts them by family.
func parseCIDRs(flag, s string) (map[model.Family][]netip.Prefix, error) {
	out := map[model.Family][]netip.Prefix{}
	for _, part := range strings.Split(s, ",") {
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

// setPolicy reads which external addresses Services may have.
func (c *config) setPolicy() error {
	services, err := parseCIDRs("--service-cidrs", c.serviceCIDRs)
	if err != nil {
		return err
	}
	external, err := parseCIDRs("--external-ip-cidrs", c.externalIPCIDRs)
	if err != nil {
		return err
	}
	c.policy = source.Policy{
		ServiceCIDRs:        both(services),
		PodCIDRs:            both(c.clusterCIDRs),
		RestrictExternalIPs: c.changed("external-ip-cidrs"),
		ExternalIPCIDRs:     both(external),
	}
	return nil
}

// both returns the CIDRs of both families.
func both(cidrs map[model.Family][]netip.Prefix) []netip.Prefix {
	return slices.Concat(cidrs[model.IPv4], cidrs[model.IPv6])
}

// setLocalDetection checks how to tell the traffic of pods.
func (c *config) setLocalDetection() error {
	needs := func(flag, value string) error {
		if value == "" {
			return fmt.Errorf("--detect-local-mode %s needs --%s", c.detectLocal, flag)
		}
		if len(value) > 15 || strings.ContainsAny(value, "/ \t\n\"!+") { // IFNAMSIZ less the final NUL
			return fmt.Errorf("--%s %q is not the name of an interface", flag, value)
		}
		return nil
	}
	switch c.detectLocal {
	case "ClusterCIDR", "":
		return nil
	case "NodeCIDR":
		c.nodePodCIDRs = true
		return nil
	case "BridgeInterface":
		c.clusterCIDRs, c.podInterface = nil, c.podBridge
		return needs("pod-bridge-interface", c.podBridge)
	case "InterfaceNamePrefix":
		c.clusterCIDRs, c.podInterface = nil, c.podPrefix+"+"
		return needs("pod-interface-name-prefix", c.podPrefix)
	}
	return fmt.Errorf("--detect-local-mode %q is unknown; use ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", c.detectLocal)
}

// parseNodePortAddresses reads CIDRs, or the word primary alone.
func parseNodePortAddresses(list []string) (proxier.NodePortAddresses, error) {
	const flag = "--nodeport-addresses"
	if len(list) == 1 && list[0] == "primary" {
		return proxier.NodePortAddresses{Primary: true}, nil
	}
	if slices.Contains(list, "primary") {
		return proxier.NodePortAddresses{}, fmt.Errorf("%s %q mixes primary with CIDRs; give one or the other", flag, list)
	}
	cidrs, err := parseCIDRs(flag, strings.Join(list, ","))
	return proxier.NodePortAddresses{CIDRs: both(cidrs)}, err
}

// nodeName is the name that the Node object has: lower case, as kubelet
// registers it.
func nodeName(override string) (string, error) {
	name := override
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("read host name: %w; name the node with --hostname-override", err)
		}
	}
	name = strings.ToLower(strings.TrimSpace(name))
	if name == "" {
		return "", errors.New("this host has no name; name the node with --hostname-override")
	}
	return name, nil
}

func (o *options) checkNumbers() error {
	switch {
	case o.masqueradeBit < 0 || o.masqueradeBit > 31:
		return fmt.Errorf("--iptables-masquerade-bit %d is not a bit of a mark; use 0 to 31", o.masqueradeBit)
	case o.syncPeriod <= 0:
		return fmt.Errorf("--iptables-sync-period %s must be above 0", o.syncPeriod)
	case o.minSyncPeriod < 0:
		return fmt.Errorf("--iptables-min-sync-period %s must not be below 0", o.minSyncPeriod)
	case o.conntrack.MaxPerCore < 0 || o.conntrack.Min < 0:
		return fmt.Errorf("--conntrack-max-per-core %d and --conntrack-min %d must not be below 0", o.conntrack.MaxPerCore, o.conntrack.Min)
	case o.minSyncPeriod > o.syncPeriod:
		return fmt.Errorf("--iptables-min-sync-period %s must not be above --iptables-sync-period %s", o.minSyncPeriod, o.syncPeriod)
	}
	return o.ipvs.check()
}

// setAddresses takes over the node's own address, and fills in the defaults of
// those to serve on.
func (c *config) setAddresses() error {
	bind, err := netip.ParseAddr(c.bindAddress)
	if err != nil {
		return fmt.Errorf("--bind-address %q is not an IP address; write it like 0.0.0.0 or ::", c.bindAddress)
	}
	if !bind.IsUnspecified() {
		c.nodeIP = bind
	}
	if bind.Is6() {
		if !c.changed("healthz-bind-address") {
			c.healthzAddress = "[::]:10256"
		}
		if !c.changed("metrics-bind-address") {
			c.metricsAddress = "[::1]:10249"
		}
	}
	if c.healthzAddress, err = hostPort("--healthz-bind-address", c.healthzAddress, 10256); err != nil {
		return err
	}
	c.metricsAddress, err = hostPort("--metrics-bind-address", c.metricsAddress, 10249)
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
