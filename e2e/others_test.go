// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/iptables/ruleset"
	"fairlead/proxier/model"
)

// otherRules are chains and rules as Docker, a CNI plugin and an admin make
// them, by family-neutral matches.
func otherRules() []foreignRule {
	return []foreignRule{
		{"nat", "DOCKER", "-i docker0 -j RETURN"},
		{"nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j DOCKER"},
		{"filter", "DOCKER-USER", "-j RETURN"},
		{"filter", "FORWARD", "-j DOCKER-USER"},
		{"filter", "FORWARD", "-o docker0 -j ACCEPT"},
		{"nat", "CNI-HOSTPORT-MASQ", "-m mark --mark 0x2000/0x2000 -j MASQUERADE"},
		{"nat", "POSTROUTING", "-m comment --comment portmap -j CNI-HOSTPORT-MASQ"},
		{"filter", "INPUT", "-p tcp -m tcp --dport 22 -j ACCEPT"},
		{"mangle", "KUBE-KUBELET-CANARY", ""},
		{"filter", "KUBE-FIREWALL", "-m mark --mark 0x8000/0x8000 -j DROP"},
		{"filter", "INPUT", "-j KUBE-FIREWALL"},
		{"filter", "OUTPUT", "-j KUBE-FIREWALL"},
	}
}

// foreignRule is a rule that is not ours; without text it is only its chain.
type foreignRule struct{ table, chain, text string }

// add makes the rules one by one, as their owners do.
func addForeign(t *testing.T, n *lab.Node, v lab.Variant, rules ...foreignRule) {
	t.Helper()
	for _, f := range families() {
		err := n.Do(func() error {
			ipt, err := iptables.New(iptables.Path(v.Tool(f, "")), iptables.IPFamily(protocol(f)), iptables.Timeout(5))
			if err != nil {
				return err
			}
			for _, r := range rules {
				if err := addOne(ipt, r); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func addOne(ipt *iptables.IPTables, r foreignRule) error {
	exists, err := ipt.ChainExists(r.table, r.chain)
	if err != nil {
		return err
	}
	if !exists {
		if err := ipt.NewChain(r.table, r.chain); err != nil {
			return err
		}
	}
	if r.text == "" {
		return nil
	}
	return ipt.Append(r.table, r.chain, strings.Fields(r.text)...)
}

func protocol(f model.Family) iptables.Protocol {
	if f == model.IPv6 {
		return iptables.ProtocolIPv6
	}
	return iptables.ProtocolIPv4
}

// TestKernelOthersRulesStay: rules of others stay as they are, before, while
// and after the agent runs, and cleanup leaves what was there without it.
func TestKernelOthersRulesStay(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		early, late := otherRules(), []foreignRule{
			{"nat", "CNI-DN-0123456789abcdef01234", "-p tcp -m tcp --dport 8080 -j RETURN"},
			{"nat", "PREROUTING", "-m addrtype --dst-type LOCAL -j CNI-DN-0123456789abcdef01234"},
			{"filter", "FORWARD", "-m comment --comment admin -j ACCEPT"},
		}
		addForeign(t, node, v, early...)
		want := foreign(ctx, t, node, v)
		if v == lab.Legacy && len(want) < 10 {
			t.Fatalf("the fixtures are not there: %q", want)
		}

		dir := newDirectory(t)
		dir.write("web.yaml", web(l, node.Pods[0])...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path)
		a.waitSynced(ctx, 0)
		if diff := cmp.Diff(want, foreign(ctx, t, node, v)); diff != "" {
			t.Errorf("after the first sync (-before +after):\n%s", diff)
		}
		addForeign(t, node, v, late...)
		want = foreign(ctx, t, node, v)
		from := len(a.log())
		dir.write("web.yaml", web(l, node.Pods[1])...)
		a.waitSynced(ctx, from)
		if diff := cmp.Diff(want, foreign(ctx, t, node, v)); diff != "" {
			t.Errorf("after a change (-before +after):\n%s", diff)
		}
		a.stop()
		cleanUp(ctx, t, node)
		if diff := cmp.Diff(want, everything(ctx, t, node, v)); diff != "" {
			t.Errorf("after cleanup (-want +got):\n%s", diff)
		}
	})
}

// everything returns the node's rules, without tables that hold only empty
// built-in chains.
func everything(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) []string {
	t.Helper()
	var out []string
	eachChain(ctx, t, n, v, func(table string, c ruleset.DumpChain) {
		if c.Policy == "-" {
			out = append(out, table+" :"+c.Name)
		}
		for _, r := range c.Rules {
			out = append(out, table+" -A "+c.Name+" "+string(r))
		}
	})
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(key(a), key(b)) })
	return out
}

// eachChain visits the chains of the node's rules, with the family and name of their table.
func eachChain(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant, visit func(table string, c ruleset.DumpChain)) {
	t.Helper()
	for _, f := range families() {
		text, err := n.Save(ctx, v, f)
		if err != nil {
			t.Fatal(err)
		}
		d, err := ruleset.Parse(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range d {
			for _, c := range table.Chains {
				visit(f.String()+" "+string(table.Name), c)
			}
		}
	}
}

// key groups lines by family, table and chain; their order within a chain
// counts.
func key(line string) string {
	parts := strings.Fields(line)
	if strings.HasPrefix(parts[2], ":") {
		return strings.Join([]string{parts[0], parts[1], parts[2][1:], "0"}, " ")
	}
	return strings.Join([]string{parts[0], parts[1], parts[3], "1"}, " ")
}

// foreign returns what of everything is not the agent's.
func foreign(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) []string {
	t.Helper()
	return slices.DeleteFunc(everything(ctx, t, n, v), func(line string) bool {
		ours := false
		for _, word := range strings.Fields(line) {
			name := strings.TrimPrefix(word, ":")
			ours = ours || strings.HasPrefix(name, "KUBE-") && name != "KUBE-FIREWALL" && name != "KUBE-KUBELET-CANARY"
		}
		return ours || strings.Contains(line, "block incoming localnet connections")
	})
}

// TestKernelOthersCommitOften: a CNI plugin that changes rules of its own each second
// takes the agent less than a hundredth of a core, with thousands of rules in place.
func TestKernelOthersCommitOften(t *testing.T) {
	const commits = 100
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		var objs []runtime.Object
		for i := range 200 {
			name := fmt.Sprintf("svc-%d", i)
			objs = append(objs, service(name, byte(i+1)))
			for _, s := range endpointSlices(name, l, l.Nodes[0].Pods...) {
				objs = append(objs, s)
			}
		}
		dir.write("many.yaml", objs...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--iptables-sync-period", "1h")
		a.waitLog(ctx, 0, 1, "Synced", `ipFamily="IPv4"`, "servicePorts=600")
		a.waitLog(ctx, 0, 1, "Synced", `ipFamily="IPv6"`, "servicePorts=600")
		addForeign(t, node, v, foreignRule{"nat", "CNI", ""}, foreignRule{"filter", "CNI", ""})

		from, before := len(a.log()), a.cpu()
		for i := range commits {
			op := []string{"-A", "-D"}[i%2]
			if err := node.Iptables(ctx, v, model.IPv4, "-t", "nat", op, "CNI", "-j", "RETURN"); err != nil {
				t.Fatal(err)
			}
		}
		// What is ours is looked after all the same, and whatever the commits have led
		// to has been done when this is.
		if err := node.Iptables(ctx, v, model.IPv4, "-t", "filter", "-F", "KUBE-FORWARD"); err != nil {
			t.Fatal(err)
		}
		a.waitLog(ctx, from, 1, "Repaired", "KUBE-FORWARD")
		used := a.cpu() - before
		t.Logf("%s of CPU time for %d commits of others", used, commits)
		if most := commits * 10 * time.Millisecond; used > most {
			t.Errorf("%d commits of others took %s of CPU time, want %s at most", commits, used, most)
		}
	})
}

// TestKernelForeignChangesHeal: what others change of our rules is repaired as
// soon as it is noticed, long before a periodic check.
func TestKernelForeignChangesHeal(t *testing.T) {
	forVariants(t, func(t *testing.T, l *lab.Lab, v lab.Variant) {
		ctx := testContext(t)
		node := l.Nodes[0]
		dir := newDirectory(t)
		dir.write("web.yaml", append(web(l, node.Pods[0]), podObject("web", node.Pods[0], publish(hostPort)))...)
		a := startAgent(ctx, t, node, v, "--manifests", dir.path, "--iptables-sync-period", "1h")
		a.waitSynced(ctx, 0)
		want := save(ctx, t, node, v)

		changes := [][]string{
			{"-t", "nat", "-F"},
			{"-t", "filter", "-F", "KUBE-FORWARD"},
			{"-t", "nat", "-D", "PREROUTING", "1"},
		}
		if *proxyMode == "nftables" { // where a first word that is no flag is nft's
			changes = [][]string{
				{"flush", "chain", "fairlead", "translate"},
				{"flush", "map", "fairlead", "host-ports"},
				{"delete", "table", "fairlead"},
				{"-t", "filter", "-F", "KUBE-FORWARD"},
			}
		}
		for _, args := range changes {
			from := len(a.log())
			for _, f := range families() {
				if err := changeRules(ctx, node, v, f, args); err != nil {
					t.Fatal(err)
				}
			}
			a.waitLog(ctx, from, 2, "Repaired")
			if diff := cmp.Diff(want, save(ctx, t, node, v)); diff != "" {
				t.Errorf("after iptables %v (-before +after repair):\n%s", args, diff)
			}
		}
	})
}

// changeRules runs iptables, or nft if the first word is no flag: the third word is then
// the table, and the family comes before it.
func changeRules(ctx context.Context, n *lab.Node, v lab.Variant, f model.Family, args []string) error {
	if strings.HasPrefix(args[0], "-") {
		return n.Iptables(ctx, v, f, args...)
	}
	family := "ip"
	if f == model.IPv6 {
		family = "ip6"
	}
	_, err := n.Run(ctx, "nft", slices.Concat(args[:2], []string{family}, args[2:])...)
	return err
}
