// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestCommandLine: what cannot work ends at once, with a status that is not
// zero and one line that names the thing and the remedy. It needs no root: the
// agent does not get as far as the kernel.
func TestCommandLine(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"unknown flag", []string{"--no-such-flag"}, []string{"--no-such-flag", "--help"}},
		{"unknown command", []string{"clean"}, []string{`"clean"`, "--help"}},
		{"argument of a command", []string{"version", "now"}, []string{`"now"`, "fairlead version --help"}},
		{"unknown mode", []string{"--proxy-mode", "magic"}, []string{"--proxy-mode", "magic", "iptables"}},
		{"unknown among preferences", []string{"--proxy-mode", "ipvs,magic"}, []string{"--proxy-mode", "magic", "iptables, ipvs or nftables"}},
		{"unknown scheduler", []string{"--ipvs-scheduler", "magic"}, []string{"--ipvs-scheduler", "magic", "rr, wrr"}},
		{"flag of another scheduler", []string{"--ipvs-scheduler", "mh,sh-port"}, []string{"--ipvs-scheduler", "sh-port"}},
		{"not a CIDR to exclude", []string{"--ipvs-exclude-cidrs", "x"}, []string{"--ipvs-exclude-cidrs", `"x"`}},
		{"negative timeout", []string{"--ipvs-udp-timeout", "-1s"}, []string{"--ipvs-udp-timeout", "below 0"}},
		{"no IPVS sync period", []string{"--ipvs-sync-period", "0s"}, []string{"--ipvs-sync-period", "above 0"}},
		{"IPVS periods crossed", []string{"--ipvs-min-sync-period", "1m"}, []string{"--ipvs-min-sync-period", "--ipvs-sync-period"}},
		{"unknown variant", []string{"--iptables-variant", "new"}, []string{"--iptables-variant", "new", "auto, nft or legacy"}},
		{"not a CIDR", []string{"--cluster-cidr", "10.244.0.0"}, []string{"--cluster-cidr", "10.244.0.0", "10.244.0.0/16"}},
		{"not a service CIDR", []string{"--service-cidrs", "x"}, []string{"--service-cidrs", `"x"`}},
		{"not an external CIDR", []string{"--external-ip-cidrs", "x"}, []string{"--external-ip-cidrs", `"x"`}},
		{"unknown detection", []string{"--detect-local-mode", "Guess"}, []string{"--detect-local-mode", "Guess", "NodeCIDR"}},
		{"detection without its interface", []string{"--detect-local-mode", "BridgeInterface"}, []string{"BridgeInterface", "--pod-bridge-interface"}},
		{"not an interface", []string{"--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "a b"}, []string{"--pod-bridge-interface", "a b"}},
		{"primary and CIDRs", []string{"--nodeport-addresses", "primary,10.0.0.0/8"}, []string{"--nodeport-addresses", "primary"}},
		{"unknown choice about host ports", []string{"--host-ports", "maybe"}, []string{"--host-ports", "maybe", "auto, on or off"}},
		{"not a port to protect", []string{"--protected-ports", "22"}, []string{"--protected-ports", `"22"`, "22/tcp"}},
		{"a port to protect that is none", []string{"--protected-ports", "65536/tcp"}, []string{"--protected-ports", "65536/tcp"}},
		{"unknown choice about masquerading", []string{"--pod-masquerade", "maybe"}, []string{"--pod-masquerade", "maybe", "auto, on or off"}},
		{"a CIDR with more than its prefix", []string{"--non-masquerade-cidrs", "10.0.0.1/8"}, []string{"--non-masquerade-cidrs", "10.0.0.1/8", "10.0.0.0/8"}},
		{"bit out of range", []string{"--iptables-masquerade-bit", "32"}, []string{"--iptables-masquerade-bit", "32", "0 to 31"}},
		{"no sync period", []string{"--iptables-sync-period", "0s"}, []string{"--iptables-sync-period", "above 0"}},
		{"periods crossed", []string{"--iptables-min-sync-period", "1m"}, []string{"--iptables-min-sync-period", "--iptables-sync-period"}},
		{"not a duration", []string{"--iptables-sync-period", "soon"}, []string{"--iptables-sync-period", "soon"}},
		{"not an address", []string{"--bind-address", "eth0"}, []string{"--bind-address", "eth0", "0.0.0.0"}},
		{"not an address and port", []string{"--metrics-bind-address", "localhost"}, []string{"--metrics-bind-address", "localhost", "0.0.0.0:10249"}},
		{"no kubeconfig", []string{"--kubeconfig", "/nonexistent/kubeconfig"}, []string{"/nonexistent/kubeconfig", "--kubeconfig"}},
		{"empty kubeconfig", []string{"--kubeconfig", empty}, []string{empty, "--kubeconfig"}},
		{"not in a cluster", nil, []string{"--kubeconfig", "--manifests"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(binary, c.args...)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
			checkOneLine(t, cmd, c.want)
		})
	}
}

// checkOneLine runs a command that must fail with one line.
func checkOneLine(t *testing.T, cmd *exec.Cmd, want []string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if status := exitStatus(cmd.Run()); status <= 0 {
		t.Errorf("exit status %d, want above 0", status)
	}
	line := strings.TrimSpace(stderr.String())
	if strings.Contains(line, "\n") || !containsAll(line, want) {
		t.Errorf("got %q, want one line with all of %q", line, want)
	}
}

// TestNoPrivilege: without CAP_NET_ADMIN the agent says what it lacks.
func TestNoPrivilege(t *testing.T) {
	for _, args := range [][]string{{"--manifests", t.TempDir()}, {"cleanup"}} {
		cmd := exec.Command(binary, args...)
		if os.Geteuid() == 0 {
			if err := os.Chmod(filepath.Dir(binary), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		checkOneLine(t, cmd, []string{"CAP_NET_ADMIN", "root"})
	}
}

// TestKernelNoIptables: without iptables commands the agent names what to
// install.
func TestKernelNoIptables(t *testing.T) {
	ctx := testContext(t)
	if err := lab.Supported(ctx); err != nil {
		t.Skip(err)
	}
	node := newLab(t).Nodes[0]
	for _, args := range [][]string{
		{"--manifests", t.TempDir()},
		{"--manifests", t.TempDir(), "--iptables-variant", "legacy"},
	} {
		cmd := node.Command(ctx, binary, args...)
		cmd.Env = []string{"PATH=" + t.TempDir()}
		checkOneLine(t, cmd, []string{"iptables", "install"})
	}
}

// TestKernelBadManifests: a bad file or a bad object is named in one line, and
// everything else works.
func TestKernelBadManifests(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node := l.Nodes[0]
	dir := newDirectory(t)
	bad := service("bad", 40)
	bad.Spec.ClusterIPs, bad.Spec.ClusterIP = []string{"300.1.2.3"}, "300.1.2.3"
	dir.write("bad.yaml", bad)
	dir.write("web.yaml", web(l, node.Pods[0])...)
	a := startAgent(ctx, t, node, oneVariant(), "--manifests", dir.path)
	a.waitSynced(ctx, 0)
	a.waitLog(ctx, 0, 1, "default/bad", "300.1.2.3")
	working := func(when string) {
		t.Helper()
		if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); r.Outcome != lab.Answered {
			t.Errorf("%s: %s", when, r)
		}
	}
	working("beside a Service with an invalid address")

	dir.writeText("web.yaml", "apiVersion: v1\nkind: Service\nmetadata: [\n")
	a.waitLog(ctx, 0, 1, filepath.Join(dir.path, "web.yaml")+":")
	working("after its own file broke")
	from := len(a.log())
	dir.write("more.yaml", service("more", 50))
	a.waitSynced(ctx, from)
	working("after another file changed")
	if got := metric(ctx, t, a, "fairlead_manifest_files_broken"); got != "1" {
		t.Errorf("fairlead_manifest_files_broken is %s, want 1", got)
	}
}

// metric returns the value of a series without labels.
func metric(ctx context.Context, t *testing.T, a *agent, name string) string {
	t.Helper()
	_, body := fetch(ctx, t, a, "http://127.0.0.1:10249/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no metric %s", name)
	return ""
}
