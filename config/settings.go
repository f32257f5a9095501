// SPDX-License-Identifier: Apache-2.0

// Package config holds what the agent can be told: by flags, which are kube-proxy's
// where it has them, and by a file, of which the first document is kube-proxy's
// KubeProxyConfiguration and the second one, Fairlead's own. One table has it all:
// flags, fields, defaults, and the page of the documentation.
//
// It says what was given and where, not whether it makes sense on this node.
package config

import "time"

// Settings are all that the agent can be told. Default makes them.
type Settings struct {
	// What to do instead of running.
	WriteTo           string
	InitOnly, Cleanup bool

	// File is the configuration file, empty for none.
	File string

	// The API server, or a directory in its place.
	Kubeconfig, Master, Manifests string
	APIContentType                string
	// APIQPS is per second; negative for no bound, as in client-go.
	APIQPS   float64
	APIBurst int
	Hostname string // empty: the host's

	// The agent as a process.
	BindAddress, HealthzAddress, MetricsAddress string
	BindHardFail, Profiling                     bool
	OOMScoreAdj                                 int
	Verbosity                                   int
	VModule                                     VModule
	LogFormat                                   string
	StateFile                                   string
	StartupTaint                                string // key[:effect]
	// FeatureGates are as given: there are none here but AllowServiceExternalIPs.
	FeatureGates map[string]bool

	// Mode is a mode, or several with commas between, in the order of preference.
	Mode string

	// Which traffic is whose.
	DetectLocal, PodBridge, PodPrefix string
	ClusterCIDR                       string // with commas between
	ServiceCIDRs                      []string
	// ExternalIPCIDRs are nil for all, and empty for none.
	ExternalIPCIDRs   []string
	NodePortAddresses []string

	IPTables      IPTables
	IPVS          IPVS
	NFTables      NFTables
	Conntrack     Conntrack
	PodMasquerade PodMasquerade
	HostPorts     HostPorts
	Traffic       Traffic
	CNIConfDir    string

	// given tells where a setting has been given, by flag, or by field where there is
	// no flag.
	given map[string]string
}

// IPTables are the settings of iptables mode; the first two are those of IPVS mode, too.
type IPTables struct {
	MasqueradeAll, LocalhostNodePorts bool
	MasqueradeBit                     int
	MinSyncPeriod, SyncPeriod         time.Duration
	Variant                           string
	Compact                           bool
}

// IPVS are the settings of IPVS mode.
type IPVS struct {
	Scheduler                             string
	StrictARP                             bool
	ExcludeCIDRs                          []string
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration
	MinSyncPeriod, SyncPeriod             time.Duration
	GracePeriod                           time.Duration
}

// NFTables are the settings of nftables mode. Where there is no file, the flags of
// iptables mode say what they are, as with kube-proxy.
type NFTables struct {
	MasqueradeAll             bool
	MasqueradeBit             int
	MinSyncPeriod, SyncPeriod time.Duration
	// LoadBalancing is how endpoints are chosen. It has a flag of its own.
	LoadBalancing string
}

// Conntrack says how connections are to be tracked; 0 leaves the kernel's value.
type Conntrack struct {
	MaxPerCore, Min                                                          int
	TCPEstablishedTimeout, TCPCloseWaitTimeout, UDPTimeout, UDPStreamTimeout time.Duration
	TCPBeLiberal                                                             bool
}

// PodMasquerade says what of what pods send to the outside is masqueraded.
type PodMasquerade struct {
	Mode   string // on, off or auto
	Config string // ip-masq-agent's file
	// NonMasqueradeCIDRs are nil for the usual ones.
	NonMasqueradeCIDRs []string
	RandomFully        bool
}

// HostPorts says what becomes of the host ports of Pods.
type HostPorts struct {
	Mode           string // on, off or auto
	Localhost      bool
	ProtectedPorts []string
}

// Traffic says of which Services metrics tell what they carry.
type Traffic struct {
	Services []string // namespaces, and Services as namespace/name; * for all
	Limit    int      // of ports with series of their own, in each family
}

// VModule is a list of file=verbosity with commas between, as klog has it.
type VModule string

// The log formats.
const (
	LogText = "text"
	LogJSON = "json"
)

// Default returns the defaults, which are kube-proxy's but for the least times between
// two syncs.
func Default() *Settings {
	return &Settings{
		APIContentType: "application/vnd.kubernetes.protobuf", APIQPS: 5, APIBurst: 10,
		BindAddress: "0.0.0.0", HealthzAddress: "0.0.0.0:10256", MetricsAddress: "127.0.0.1:10249",
		OOMScoreAdj: -999, LogFormat: LogText,
		FeatureGates: map[string]bool{}, StateFile: DefaultStateFile,
		Mode: "iptables", DetectLocal: "ClusterCIDR",
		IPTables: IPTables{LocalhostNodePorts: true, MasqueradeBit: 14, SyncPeriod: 30 * time.Second, Variant: "auto"},
		IPVS:     IPVS{Scheduler: "rr", SyncPeriod: 30 * time.Second, GracePeriod: 15 * time.Minute},
		NFTables: NFTables{MasqueradeBit: 14, SyncPeriod: 30 * time.Second, LoadBalancing: "random"},
		Conntrack: Conntrack{
			MaxPerCore: 32 << 10, Min: 128 << 10,
			TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour,
		},
		PodMasquerade: PodMasquerade{Mode: "auto", Config: "/etc/config/ip-masq-agent", RandomFully: true},
		HostPorts:     HostPorts{Mode: "auto", ProtectedPorts: []string{"22/tcp", "6443/tcp", "10250/tcp", "8472/udp"}},
		Traffic:       Traffic{Limit: 100},
		CNIConfDir:    "/etc/cni/net.d",
		given:         map[string]string{},
	}
}

// DefaultStateFile is where others on the node look for what this agent does.
const DefaultStateFile = "/run/fairlead/state.json"

// Given tells whether a setting, named by its flag or else its field, was given, and is
// not the default because nothing was said.
func (s *Settings) Given(name string) bool { return s.given[name] != "" }

// Where returns how to name a setting to a person: its flag, or file, line and field.
func (s *Settings) Where(name string) string {
	if at := s.given[name]; at != "" {
		return at
	}
	return "--" + name
}
