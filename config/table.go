// SPDX-License-Identifier: Apache-2.0

package config

// document is where a setting can be written.
type document int

const (
	// commandLine settings have a flag alone.
	commandLine document = iota
	// kubeProxy settings are fields of a KubeProxyConfiguration. Their flags have no
	// effect beside a file.
	kubeProxy
	// fairlead settings are fields of a FairleadConfiguration. A flag counts more.
	fairlead
)

// setting is a row of the table.
type setting struct {
	flag  string // empty: there is none
	field string // names with dots between
	in    document
	// value points to a field of Settings.
	value any
	// zeroIsDefault is set where zero, in a file, stands for the default.
	zeroIsDefault bool
	// beside is set where kube-proxy's flag counts beside a file.
	beside bool
	usage  string
}

// name is what the setting is called in Settings.given.
func (s *setting) name() string {
	if s.flag != "" {
		return s.flag
	}
	return s.field
}

// section is a part of the table, as people look for it.
type section struct {
	title    string
	settings []setting
}

// table has all that s can be told.
func (s *Settings) table() []section {
	return []section{
		{"What to do", s.whatToDo()},
		{"API server and node", s.apiServer()},
		{"Mode and traffic", s.traffic()},
		{"iptables mode", s.iptables()},
		{"IPVS mode", s.ipvs()},
		{"nftables mode", s.nftables()},
		{"Host ports and what pods send to the outside", s.beside()},
		{"Connection tracking", s.conntrack()},
		{"Health, metrics and logs", s.process()},
	}
}

// all returns the table without its sections.
func (s *Settings) all() []setting {
	var out []setting
	for _, sec := range s.table() {
		out = append(out, sec.settings...)
	}
	return out
}

func (s *Settings) whatToDo() []setting {
	return []setting{
		{flag: "config", value: &s.File, usage: "Configuration file: a KubeProxyConfiguration, and after a line with --- a FairleadConfiguration; either may be missing. Beside it kube-proxy's own flags have no effect, --hostname-override, --master and those of logs apart. A change takes effect at once, by a restart in place that leaves the rules alone."},
		{flag: "write-config-to", value: &s.WriteTo, usage: "File to write all settings to, as a configuration file; the agent does nothing else."},
		{flag: "init-only", value: &s.InitOnly, usage: "Set what of the kernel's settings takes full privileges, and exit. After that the agent needs CAP_NET_ADMIN alone."},
		{flag: "cleanup", value: &s.Cleanup, usage: "Same as the command cleanup: remove the rules that Fairlead or kube-proxy has left, and exit."},
	}
}

func (s *Settings) apiServer() []setting {
	return []setting{
		{flag: "kubeconfig", field: "clientConnection.kubeconfig", in: kubeProxy, value: &s.Kubeconfig, usage: "File with the address and credentials of the API server. Empty, with --master empty too, means those of the pod that the agent runs in."},
		{flag: "master", value: &s.Master, usage: "URL of the API server; overrides the kubeconfig's."},
		{flag: "kube-api-content-type", field: "clientConnection.contentType", in: kubeProxy, value: &s.APIContentType, zeroIsDefault: true, usage: "What to ask the API server for: application/vnd.kubernetes.protobuf or application/json."},
		{flag: "kube-api-qps", field: "clientConnection.qps", in: kubeProxy, value: &s.APIQPS, zeroIsDefault: true, usage: "Requests to the API server in a second; below 0 for no bound."},
		{flag: "kube-api-burst", field: "clientConnection.burst", in: kubeProxy, value: &s.APIBurst, zeroIsDefault: true, usage: "Requests to the API server at once, above --kube-api-qps."},
		{flag: "manifests", field: "manifests", in: fairlead, value: &s.Manifests, usage: "Directory of .yaml, .yml and .json files with Services, EndpointSlices, ServiceCIDRs, Pods and a Node, to use instead of an API server."},
		{flag: "hostname-override", field: "hostnameOverride", in: kubeProxy, beside: true, value: &s.Hostname, zeroIsDefault: true, usage: "Name of this node; empty means the host name."},
		{flag: "startup-taint", field: "startupTaint", in: fairlead, value: &s.StartupTaint, usage: "Taint, as key or key:effect, to remove from this node once all rules are in place for the first time, so that pods start after it; empty for none. It takes the permission to patch nodes."},
	}
}

func (s *Settings) traffic() []setting {
	return []setting{
		{flag: "proxy-mode", field: "mode", in: kubeProxy, value: &s.Mode, zeroIsDefault: true, usage: "How to program the kernel: iptables, ipvs or nftables; or several with commas between, of which the first is used that this node can. --mode is the same."},
		{flag: "cluster-cidr", field: "clusterCIDR", in: kubeProxy, value: &s.ClusterCIDR, usage: "CIDRs of the pods' addresses, of either family, with commas between. Traffic to a cluster IP from elsewhere is masqueraded."},
		{flag: "detect-local-mode", field: "detectLocalMode", in: kubeProxy, value: &s.DetectLocal, zeroIsDefault: true, usage: "How to tell the traffic of pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix."},
		{flag: "pod-bridge-interface", field: "detectLocal.bridgeInterface", in: kubeProxy, value: &s.PodBridge, usage: "The bridge that pods are on, for BridgeInterface."},
		{flag: "pod-interface-name-prefix", field: "detectLocal.interfaceNamePrefix", in: kubeProxy, value: &s.PodPrefix, usage: "What the names of the pods' interfaces on the node begin with, for InterfaceNamePrefix."},
		{flag: "nodeport-addresses", field: "nodePortAddresses", in: kubeProxy, value: &s.NodePortAddresses, usage: "Where node ports answer: CIDRs of the node's addresses, or primary for its own. Empty means on all addresses."},
		{flag: "bind-address", field: "bindAddress", in: kubeProxy, value: &s.BindAddress, zeroIsDefault: true, usage: "This node's own address, in the place of the one in its Node object; an unspecified one means that. An IPv6 address moves the defaults of --healthz-bind-address and --metrics-bind-address to IPv6."},
		{flag: "service-cidrs", field: "serviceCIDRs", in: fairlead, value: &s.ServiceCIDRs, usage: "CIDRs of cluster IPs, with commas between, besides those of ServiceCIDR objects. No external IP or load balancer's address of a Service may be in one, nor in --cluster-cidr."},
		{flag: "external-ip-cidrs", field: "externalIPCIDRs", in: fairlead, value: &s.ExternalIPCIDRs, usage: "CIDRs that external IPs of Services must be in, with commas between. Given but empty, it refuses all; not given, it refuses none."},
	}
}

func (s *Settings) iptables() []setting {
	return []setting{
		{flag: "iptables-masquerade-bit", field: "iptables.masqueradeBit", in: kubeProxy, value: &s.IPTables.MasqueradeBit, usage: "Bit, 0 to 31, of the packet mark that asks for masquerading. Also in IPVS mode."},
		{flag: "masquerade-all", field: "iptables.masqueradeAll", in: kubeProxy, value: &s.IPTables.MasqueradeAll, usage: "Masquerade all traffic to cluster IPs. Also in IPVS mode."},
		{flag: "iptables-localhost-nodeports", field: "iptables.localhostNodePorts", in: kubeProxy, value: &s.IPTables.LocalhostNodePorts, usage: "Let node ports answer on 127.0.0.1 too. Also in IPVS mode."},
		{flag: "iptables-sync-period", field: "iptables.syncPeriod", in: kubeProxy, value: &s.IPTables.SyncPeriod, zeroIsDefault: true, usage: "How often the rules are checked against what others may have changed."},
		{flag: "iptables-min-sync-period", field: "iptables.minSyncPeriod", in: kubeProxy, value: &s.IPTables.MinSyncPeriod, usage: "Least time between the starts of two syncs. 0 means at once when idle, and after a sync a rest as long as the sync."},
		{flag: "iptables-variant", field: "iptables.variant", in: fairlead, value: &s.IPTables.Variant, usage: "Which iptables to use: nft, legacy, or auto, which finds out what this host uses. Also in IPVS mode."},
		{flag: "iptables-compact", field: "iptables.compact", in: fairlead, value: &s.IPTables.Compact, usage: "Write a third of the rules: Services without session affinity translate in KUBE-SVC-… and KUBE-SVL-…, and their endpoints have no KUBE-SEP-… chains. It needs ipset: the node's own endpoints are in the set KUBE-LOOP-BACK. Switching it on or off takes a restart, and interrupts no connection."},
	}
}

func (s *Settings) ipvs() []setting {
	return []setting{
		{flag: "ipvs-scheduler", field: "ipvs.scheduler", in: kubeProxy, value: &s.IPVS.Scheduler, zeroIsDefault: true, usage: "How IPVS chooses among endpoints: a scheduler of the kernel, and after commas its flags as ipvsadm has them, mh,mh-port for example. A Service may name another one by the annotation fairlead.io/ipvs-scheduler."},
		{flag: "ipvs-strict-arp", field: "ipvs.strictARP", in: kubeProxy, value: &s.IPVS.StrictARP, usage: "Answer ARP requests only on the interface that has the address, so that the node does not answer for addresses of Services (arp_ignore=1, arp_announce=2)."},
		{flag: "ipvs-exclude-cidrs", field: "ipvs.excludeCIDRs", in: kubeProxy, value: &s.IPVS.ExcludeCIDRs, usage: excludeUsage},
		{flag: "ipvs-tcp-timeout", field: "ipvs.tcpTimeout", in: kubeProxy, value: &s.IPVS.TCPTimeout, usage: "How long IPVS keeps an idle TCP connection; 0 leaves the kernel's timeout as it is."},
		{flag: "ipvs-tcpfin-timeout", field: "ipvs.tcpFinTimeout", in: kubeProxy, value: &s.IPVS.TCPFinTimeout, usage: "How long IPVS keeps a TCP connection that has been closed; 0 leaves the kernel's timeout as it is."},
		{flag: "ipvs-udp-timeout", field: "ipvs.udpTimeout", in: kubeProxy, value: &s.IPVS.UDPTimeout, usage: "How long IPVS keeps a UDP flow without packets; 0 leaves the kernel's timeout as it is."},
		{flag: "ipvs-sync-period", field: "ipvs.syncPeriod", in: kubeProxy, value: &s.IPVS.SyncPeriod, zeroIsDefault: true, usage: "How often the kernel is checked against what others may have changed, in IPVS mode."},
		{flag: "ipvs-min-sync-period", field: "ipvs.minSyncPeriod", in: kubeProxy, value: &s.IPVS.MinSyncPeriod, usage: "Least time between the starts of two syncs in IPVS mode. 0 means at once when idle, and after a sync a rest as long as the sync."},
		{flag: "ipvs-graceful-period", field: "ipvs.gracefulPeriod", in: fairlead, value: &s.IPVS.GracePeriod, usage: "How long an endpoint that is gone may keep its TCP and SCTP connections in IPVS mode. 0 cuts them at once."},
	}
}

const excludeUsage = "CIDRs of virtual servers that are not Fairlead's, and that it does not remove."

func (s *Settings) nftables() []setting {
	const asFlag = " Without a file it is what the flag of iptables mode says."
	return []setting{
		{flag: "load-balancing", field: "nftables.loadBalancing", in: fairlead, value: &s.NFTables.LoadBalancing, usage: "How nftables mode chooses endpoints: random; or maglev, by which all nodes choose alike by the client's address, and a change of endpoints moves few clients; or maglev-port, by its address and port. The annotation fairlead.io/load-balancing of a Service overrides it."},
		{field: "nftables.masqueradeBit", in: kubeProxy, value: &s.NFTables.MasqueradeBit, usage: "Bit, 0 to 31, of the packet mark that asks for masquerading." + asFlag},
		{field: "nftables.masqueradeAll", in: kubeProxy, value: &s.NFTables.MasqueradeAll, usage: "Masquerade all traffic to cluster IPs." + asFlag},
		{field: "nftables.syncPeriod", in: kubeProxy, value: &s.NFTables.SyncPeriod, zeroIsDefault: true, usage: "How often the rules are checked against what others may have changed." + asFlag},
		{field: "nftables.minSyncPeriod", in: kubeProxy, value: &s.NFTables.MinSyncPeriod, usage: "Least time between the starts of two syncs." + asFlag},
	}
}

func (s *Settings) beside() []setting {
	return []setting{
		{flag: "pod-masquerade", field: "podMasquerade.mode", in: fairlead, value: &s.PodMasquerade.Mode, usage: "Whether to masquerade what pods (--cluster-cidr) send to the outside: on, off, or auto, which leaves it to others on the node that do it."},
		{flag: "ip-masq-config", field: "podMasquerade.config", in: fairlead, value: &s.PodMasquerade.Config, usage: "File of ip-masq-agent, in YAML or JSON, with what not to masquerade of it. It need not be there; changes take effect at once."},
		{flag: "non-masquerade-cidrs", field: "podMasquerade.nonMasqueradeCIDRs", in: fairlead, value: &s.PodMasquerade.NonMasqueradeCIDRs, usage: "CIDRs, with commas between, to which pods come with their own addresses, where --ip-masq-config does not say. Not given, these are the private ones of IPv4: 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16. Pods and addresses of the node always are."},
		{flag: "masquerade-random-fully", field: "podMasquerade.randomFully", in: fairlead, value: &s.PodMasquerade.RandomFully, usage: "Choose the source ports of what pods send to the outside at random, which makes it unlikely that two connections race for one."},
		{flag: "host-ports", field: "hostPorts.mode", in: fairlead, value: &s.HostPorts.Mode, usage: "Whether to lead host ports of this node's Pods to them: on, off, or auto, which leaves it to a CNI plugin or a container runtime that does."},
		{flag: "host-ports-localhost", field: "hostPorts.localhost", in: fairlead, value: &s.HostPorts.Localhost, usage: "Let host ports answer on 127.0.0.1 too. The kernel then routes packets for it (route_localnet), and those of neighbours are dropped."},
		{flag: "protected-ports", field: "hostPorts.protectedPorts", in: fairlead, value: &s.HostPorts.ProtectedPorts, usage: "Ports of the node that no pod gets, besides the agent's own."},
		{flag: "cni-conf-dir", field: "cniConfDir", in: fairlead, value: &s.CNIConfDir, usage: "Where CNI's configurations are, by which --host-ports=auto and --pod-masquerade=auto know of CNI plugins."},
		{flag: "state-file", field: "stateFile", in: fairlead, value: &s.StateFile, usage: "File that tells others on the node, in JSON, what of its NAT this agent does; empty means none."},
	}
}

func (s *Settings) conntrack() []setting {
	c := &s.Conntrack
	return []setting{
		{flag: "conntrack-max-per-core", field: "conntrack.maxPerCore", in: kubeProxy, value: &c.MaxPerCore, usage: "How many connections to track for each CPU; 0 leaves the kernel's limit as it is."},
		{flag: "conntrack-min", field: "conntrack.min", in: kubeProxy, value: &c.Min, usage: "How many connections to track at least, whatever --conntrack-max-per-core says."},
		{flag: "conntrack-tcp-timeout-established", field: "conntrack.tcpEstablishedTimeout", in: kubeProxy, value: &c.TCPEstablishedTimeout, usage: "How long to track an idle TCP connection; 0 leaves the kernel's timeout as it is."},
		{flag: "conntrack-tcp-timeout-close-wait", field: "conntrack.tcpCloseWaitTimeout", in: kubeProxy, value: &c.TCPCloseWaitTimeout, usage: "How long to track a TCP connection that one side has closed; 0 leaves the kernel's timeout as it is."},
		{flag: "conntrack-tcp-be-liberal", field: "conntrack.tcpBeLiberal", in: kubeProxy, value: &c.TCPBeLiberal, usage: "Track TCP packets outside the window instead of dropping them as invalid."},
		{flag: "conntrack-udp-timeout", field: "conntrack.udpTimeout", in: kubeProxy, value: &c.UDPTimeout, usage: "How long to track an unanswered UDP flow; 0 leaves the kernel's timeout as it is."},
		{flag: "conntrack-udp-timeout-stream", field: "conntrack.udpStreamTimeout", in: kubeProxy, value: &c.UDPStreamTimeout, usage: "How long to track an answered UDP flow; 0 leaves the kernel's timeout as it is."},
	}
}

func (s *Settings) process() []setting {
	return []setting{
		{flag: "healthz-bind-address", field: "healthzBindAddress", in: kubeProxy, value: &s.HealthzAddress, zeroIsDefault: true, usage: "Address and port of /healthz, /livez and /readyz; empty means none, and in a file the default."},
		{flag: "metrics-bind-address", field: "metricsBindAddress", in: kubeProxy, value: &s.MetricsAddress, zeroIsDefault: true, usage: "Address and port of /metrics, /proxyMode and /configz; empty means none, and in a file the default."},
		{flag: "service-metrics", field: "serviceMetrics.services", in: fairlead, value: &s.Traffic.Services, usage: "Services of which /metrics tells connections, packets and bytes: namespaces, and Services as namespace/name, with commas between; * for all. What other Services carry is one series. In iptables mode packets are those of clients alone."},
		{flag: "service-metrics-limit", field: "serviceMetrics.limit", in: fairlead, value: &s.Traffic.Limit, usage: "How many ports of Services have such metrics of their own in each family. What is beyond is in the series of the others."},
		{flag: "bind-address-hard-fail", field: "bindAddressHardFail", in: kubeProxy, value: &s.BindHardFail, usage: "Exit when an address cannot be bound, instead of trying again."},
		{flag: "profiling", field: "enableProfiling", in: kubeProxy, value: &s.Profiling, usage: "Serve /debug/pprof and /debug/flags/v beside /metrics."},
		{flag: "oom-score-adj", field: "oomScoreAdj", in: kubeProxy, value: &s.OOMScoreAdj, usage: "How soon the kernel ends the agent when memory runs out, from -1000, never, to 1000. Without the permission it stays as it is."},
		{flag: "feature-gates", field: "featureGates", in: kubeProxy, value: &s.FeatureGates, usage: "kube-proxy's feature gates, name=true or name=false. AllowServiceExternalIPs=false refuses all external IPs; others have no effect."},
		{flag: "v", field: "logging.verbosity", in: kubeProxy, beside: true, value: &s.Verbosity, usage: "How much to log: 0 what an operator must know, 2 a line per sync, 4 details, 6 every rule written."},
		{flag: "vmodule", field: "logging.vmodule", in: kubeProxy, beside: true, value: &s.VModule, usage: "What to log of single files, as pattern=N with commas between; in the format text alone."},
		{flag: "logging-format", field: "logging.format", in: kubeProxy, beside: true, value: &s.LogFormat, zeroIsDefault: true, usage: "Format of log lines: text or json."},
	}
}
