// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
)

// load loads what args say.
func load(t *testing.T, args ...string) (*Settings, []string, error) {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	line := Register(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return line.Load()
}

// write writes a file, and returns its name.
func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// differ returns how settings differ, wherever they come from.
func differ(want, got *Settings) string {
	type plain Settings // without Equal, which says no more than that
	return cmp.Diff((*plain)(want), (*plain)(got), cmpopts.IgnoreUnexported(plain{}), cmpopts.IgnoreFields(plain{}, "File"))
}

// TestOthersSettings: what others start kube-proxy with means what it does there, but for
// the least time between two syncs.
func TestOthersSettings(t *testing.T) {
	for _, c := range []struct {
		name     string
		args     []string
		set      func(s *Settings)
		warnings int
	}{
		{
			name: "kube-proxy itself",
			args: []string{"--config=testdata/kube-proxy.yaml"},
			set: func(s *Settings) {
				s.IPTables.MinSyncPeriod = time.Second
			},
		},
		{
			name: "kubeadm",
			args: []string{"--config=testdata/kubeadm.yaml", "--hostname-override=node-1"},
			set: func(s *Settings) {
				s.Kubeconfig, s.ClusterCIDR, s.Hostname = "/var/lib/kube-proxy/kubeconfig.conf", "10.244.0.0/16", "node-1"
			},
		},
		{
			name: "kind",
			args: []string{"--config=testdata/kind.yaml", "--hostname-override=kind-worker"},
			set: func(s *Settings) {
				s.Kubeconfig, s.ClusterCIDR, s.Hostname = "/var/lib/kube-proxy/kubeconfig.conf", "10.244.0.0/16,fd00:10:244::/56", "kind-worker"
				s.Conntrack = Conntrack{Min: 131072}
				s.IPTables.MinSyncPeriod = time.Second
			},
		},
		{
			name: "k3s",
			args: []string{
				"--cluster-cidr=10.42.0.0/16", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-close-wait=0s",
				"--conntrack-tcp-timeout-established=0s", "--healthz-bind-address=127.0.0.1", "--hostname-override=node-1",
				"--kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig", "--proxy-mode=iptables",
			},
			set: func(s *Settings) {
				s.Kubeconfig, s.ClusterCIDR, s.Hostname = "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig", "10.42.0.0/16", "node-1"
				s.Conntrack = Conntrack{Min: 131072}
				s.HealthzAddress = "127.0.0.1"
			},
		},
		{
			name: "kops",
			args: []string{
				"--cluster-cidr=100.96.0.0/11", "--conntrack-max-per-core=131072", "--hostname-override=i-0123456789",
				"--kubeconfig=/var/lib/kube-proxy/kubeconfig", "--master=https://api.internal.example.com", "--oom-score-adj=-998", "--v=2",
			},
			set: func(s *Settings) {
				s.Kubeconfig, s.ClusterCIDR, s.Hostname = "/var/lib/kube-proxy/kubeconfig", "100.96.0.0/11", "i-0123456789"
				s.Master, s.OOMScoreAdj, s.Verbosity, s.Conntrack.MaxPerCore = "https://api.internal.example.com", -998, 2, 131072
			},
		},
		{
			name: "kops of earlier",
			args: []string{
				"--alsologtostderr", "--log_file=/var/log/kube-proxy.log", "--logtostderr=false", "--resource-container=",
				"--feature-gates=EndpointSliceProxying=true", "--cleanup-ipvs", "--master=https://127.0.0.1",
			},
			set: func(s *Settings) {
				s.Master, s.FeatureGates = "https://127.0.0.1", map[string]bool{"EndpointSliceProxying": true}
			},
			warnings: 6,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, warnings, err := load(t, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			c.set(want)
			if got.File == "" {
				want.feedNFTables()
			}
			if diff := differ(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if len(warnings) != c.warnings {
				t.Errorf("got the warnings %q, want %d", warnings, c.warnings)
			}
		})
	}
}

// TestEveryField: a file can say everything but what is the command line's alone.
func TestEveryField(t *testing.T) {
	got, warnings, err := load(t, "--config=testdata/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"testdata/all.yaml:19: featureGates: feature gate SomethingOfLater=true does not exist here; it has no effect"}; !slices.Equal(warnings, want) {
		t.Errorf("got the warnings %q, want %q", warnings, want)
	}
	defaults := Default().all()
	for i, row := range got.all() {
		if row.in != commandLine && row.equal(&defaults[i]) {
			t.Errorf("%s has the default", row.name())
		}
		if row.in != commandLine && !got.Given(row.name()) {
			t.Errorf("%s is not said to be given", row.name())
		}
	}
	if where := got.Where("ipvs-scheduler"); where != "testdata/all.yaml:26: ipvs.scheduler" {
		t.Errorf("the scheduler is said to be at %q", where)
	}
}

// TestTable: names are used once, and each row can be written and read.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range Default().all() {
		for _, name := range []string{"--" + row.flag, string(rune('0'+row.in)) + row.field} {
			if len(name) > 2 && seen[name] {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
		if (row.in == commandLine) != (row.field == "") {
			t.Errorf("%s: the document and the field do not go together", row.name())
		}
		if row.usage == "" || !strings.HasSuffix(row.usage, ".") {
			t.Errorf("%s: usage %q is no sentence", row.name(), row.usage)
		}
	}
}

// TestRoundTrip: what is written is read as what it was, whatever is not the default.
func TestRoundTrip(t *testing.T) {
	check := func(t *testing.T, s *Settings) {
		t.Helper()
		text, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		back := Default()
		warnings, err := decode("file", text, back)
		if err != nil || len(warnings) > 0 {
			t.Fatalf("%v, %q in\n%s", err, warnings, text)
		}
		if diff := differ(s, back); diff != "" {
			t.Errorf("-written +read:\n%s", diff)
		}
	}
	check(t, Default())
	all := Default()
	text, err := os.ReadFile("testdata/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decode("all", text, all); err != nil {
		t.Fatal(err)
	}
	check(t, all)
	from := all.all()
	for i := range from {
		one := Default()
		if row := one.all()[i]; row.in != commandLine {
			row.take(&from[i])
			check(t, one)
		}
	}
}

// TestWriteRefuses: what a file cannot say is not written as something else.
func TestWriteRefuses(t *testing.T) {
	s, _, err := load(t, "--healthz-bind-address=")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "--healthz-bind-address is empty") {
		t.Errorf("got %v", err)
	}
}

const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

// TestErrors: what makes no sense is refused, with file and line.
func TestErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", ": it has no document; begin with apiVersion"},
		{"not YAML", head + "mode: [\n", ": line 3: did not find expected node content"},
		{"not a mapping", "- a\n", ":1: it is a list, not a mapping"},
		{"no kind", "mode: ipvs\n", `:1: apiVersion "" and kind "" are not known; use kubeproxy.config.k8s.io/v1alpha1 and KubeProxyConfiguration`},
		{"another version", "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n", `:1: apiVersion "kubeproxy.config.k8s.io/v1"`},
		{"twice", head + "---\n" + head, ":4: a second KubeProxyConfiguration; the first one is at line 1"},
		{"text for a number", head + "iptables:\n  masqueradeBit: many\n", `:4: iptables.masqueradeBit wants a whole number, not "many"`},
		{"number for text", head + "hostnameOverride: 12\n", `:3: hostnameOverride wants text, not "12"; put it in quotes`},
		{"number for a duration", head + "iptables: {syncPeriod: 30}\n", `:3: iptables.syncPeriod wants a duration like 30s or 1h30m, not "30"`},
		{"not a duration", head + "configSyncPeriod: 0s\niptables:\n  syncPeriod: soon\n", `:5: iptables.syncPeriod wants a duration like 30s or 1h30m, not "soon"`},
		{"text for a list", head + "nodePortAddresses: primary\n", `:3: nodePortAddresses wants a list, not "primary"`},
		{"mapping in a list", head + "nodePortAddresses:\n- {}\n", ":4: nodePortAddresses wants text, not a mapping"},
		{"text for a switch", head + "enableProfiling: maybe\n", `:3: enableProfiling wants true or false, not "maybe"`},
		{"text for a section", head + "conntrack: none\n", `:3: conntrack wants fields, not "none"`},
		{"gates", head + "featureGates: {A: maybe}\n", ":3: featureGates wants a mapping of names to true or false, not a mapping"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := write(t, c.text)
			_, _, err := load(t, "--config", file)
			if err == nil || !strings.HasPrefix(err.Error(), file+c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %s…", err, file+c.want)
			}
		})
	}
	if _, _, err := load(t, "--config", "/nonexistent/config"); err == nil || !strings.Contains(err.Error(), "--config: open /nonexistent/config") {
		t.Errorf("got %v", err)
	}
}

// TestWarnings: what is unknown, there twice or without a meaning is told of, with file
// and line, and all else holds.
func TestWarnings(t *testing.T) {
	file := write(t, head+`mode: iptables
Mode: ipvs
mode: ipvs
portRange: 1-2
winkernel: {networkName: x}
iptables: {masqueradBit: 3, masqueradeBit: 4}
---
apiVersion: fairlead.io/v1alpha1
kind: FairleadConfiguration
portRange: ""
`)
	s, got, err := load(t, "--config", file, "--cluster-cidr=10.0.0.0/8", "--config-sync-period=1m")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		file + ":4: unknown field Mode; it has no effect",
		file + ":5: field mode is there twice; the last one counts",
		file + ":6: field portRange has no effect: it was for the userspace mode",
		file + ":7: field winkernel has no effect: it is for Windows",
		file + ":8: unknown field iptables.masqueradBit; it has no effect",
		file + ":12: unknown field portRange; it has no effect",
		"--cluster-cidr has no effect beside --config; put clusterCIDR into " + file,
		"--config-sync-period has no effect: a watch tells all changes, and nothing is delivered again",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if s.Mode != "ipvs" || s.IPTables.MasqueradeBit != 4 || s.ClusterCIDR != "" {
		t.Errorf("got mode %q, bit %d and CIDR %q", s.Mode, s.IPTables.MasqueradeBit, s.ClusterCIDR)
	}
}

// TestBesideAFile: of kube-proxy's flags those count that count there; ours do.
func TestBesideAFile(t *testing.T) {
	file := write(t, head+`hostnameOverride: a
logging: {verbosity: 1, format: json}
iptables: {masqueradeBit: 4}
---
apiVersion: fairlead.io/v1alpha1
kind: FairleadConfiguration
iptables: {compact: true, variant: nft}
`)
	s, _, err := load(t, "--config", file, "--hostname-override=b", "-v=3", "--master=https://c", "--iptables-masquerade-bit=5",
		"--masquerade-all", "--iptables-variant=legacy", "--external-ip-cidrs=", "--mode=ipvs")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Hostname, want.Verbosity, want.LogFormat, want.Master = "b", 3, LogJSON, "https://c"
	want.IPTables.MasqueradeBit, want.IPTables.Compact, want.IPTables.Variant = 4, true, "legacy"
	want.ExternalIPCIDRs = []string{}
	if diff := differ(want, s); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got, want := s.Where("iptables-masquerade-bit"), file+":5: iptables.masqueradeBit"; got != want {
		t.Errorf("the bit is said to be at %q, want %q", got, want)
	}
	if got := s.Where("iptables-variant"); got != "--iptables-variant" {
		t.Errorf("the variant is said to be at %q", got)
	}
}

// TestFlags: flags that feed more than one setting, or only some of it.
func TestFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		set  func(s *Settings)
	}{
		{"nftables", []string{"--masquerade-all", "--iptables-sync-period=1m", "--iptables-masquerade-bit=7"}, func(s *Settings) {
			s.IPTables.MasqueradeAll, s.IPTables.SyncPeriod, s.IPTables.MasqueradeBit = true, time.Minute, 7
		}},
		{"IPv6", []string{"--bind-address=::"}, func(s *Settings) {
			s.BindAddress, s.HealthzAddress, s.MetricsAddress = "::", "[::]:10256", "[::1]:10249"
		}},
		{"IPv6 and addresses", []string{"--bind-address=fd00::1", "--healthz-bind-address=", "--metrics-bind-address=0.0.0.0"}, func(s *Settings) {
			s.BindAddress, s.HealthzAddress, s.MetricsAddress = "fd00::1", "", "0.0.0.0"
		}},
		{"ports", []string{"--healthz-port=1", "--metrics-port=0"}, func(s *Settings) { s.HealthzAddress, s.MetricsAddress = "0.0.0.0:1", "" }},
		{"port beside an address", []string{"--healthz-port=1", "--healthz-bind-address=127.0.0.1:2"}, func(s *Settings) { s.HealthzAddress = "127.0.0.1:2" }},
		{"lists", []string{"--nodeport-addresses=10.0.0.0/8, fd00::/8", "--nodeport-addresses=11.0.0.0/8", "--protected-ports=1/tcp"}, func(s *Settings) {
			s.NodePortAddresses, s.HostPorts.ProtectedPorts = []string{"10.0.0.0/8", "fd00::/8", "11.0.0.0/8"}, []string{"1/tcp"}
		}},
		{"gates", []string{"--feature-gates=A=true, B=false", "--feature-gates=A=false"}, func(s *Settings) {
			s.FeatureGates = map[string]bool{"A": false, "B": false}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, _, err := load(t, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			c.set(want)
			want.feedNFTables()
			if diff := differ(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestExternalIPsAllowed(t *testing.T) {
	for gates, want := range map[string]bool{"": true, "AllowServiceExternalIPs=true": true, "AllowServiceExternalIPs=false": false} {
		s, warnings, err := load(t, "--feature-gates="+gates)
		if err != nil || len(warnings) > 0 || s.ExternalIPsAllowed() != want {
			t.Errorf("%q: got %t, %q, %v, want %t and no warnings", gates, s.ExternalIPsAllowed(), warnings, err, want)
		}
	}
}

// TestLoadAgain: a file is read anew each time, and what says the same is equal wherever
// it says it.
func TestLoadAgain(t *testing.T) {
	file := write(t, head+"mode: ipvs\n")
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	line := Register(fs)
	if err := fs.Parse([]string{"--config", file, "--iptables-compact"}); err != nil {
		t.Fatal(err)
	}
	var all []*Settings
	for _, text := range []string{"mode: ipvs\n", "# new\n\nmode: ipvs\n", "mode: iptables\n"} {
		if err := os.WriteFile(file, []byte(head+text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, _, err := line.Load()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if !all[0].Equal(all[1]) || all[0].Equal(all[2]) || !all[2].IPTables.Compact {
		t.Errorf("got %t, %t, %t", all[0].Equal(all[1]), all[0].Equal(all[2]), all[2].IPTables.Compact)
	}
}

// FuzzDecode: whatever a file has, there is no panic, and an error is one line.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"kubeadm", "kind", "all"} {
		text, err := os.ReadFile("testdata/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add(head + "iptables: &a {syncPeriod: 1s}\nipvs: *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := Default()
		warnings, err := decode("file", []byte(text), s)
		if err != nil {
			warnings = append(warnings, err.Error())
		}
		for _, w := range warnings {
			if strings.Contains(w, "\n") || !strings.HasPrefix(w, "file:") {
				t.Errorf("got %q", w)
			}
		}
		if err == nil && reflect.ValueOf(s).IsNil() {
			t.Error("no settings")
		}
	})
}

// TestKubeProxyFlags: every flag that kube-proxy has is accepted.
func TestKubeProxyFlags(t *testing.T) {
	text, err := os.ReadFile("testdata/kube-proxy-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	Register(fs)
	others := map[string]bool{"help": true, "version": true} // every command has them
	for name := range strings.Lines(string(text)) {
		name = strings.TrimSpace(name)
		if !strings.HasPrefix(name, "#") && !others[name] && fs.Lookup(name) == nil {
			t.Errorf("--%s is not known", name)
		}
	}
}
