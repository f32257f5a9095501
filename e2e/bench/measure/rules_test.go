// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"strings"
	"testing"

	"fairlead/e2e/load/workload"
)

func TestReadOrder(t *testing.T) {
	plan := workload.DefaultPlan()
	plan.Services = 3 // 10.96.1.0 to 10.96.1.2
	for _, c := range []struct {
		name, rules, want string
	}{
		{"a list", `*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.1.2/32 -p tcp -m comment --comment "load/svc-000002 cluster IP" -m tcp --dport 80 -j KUBE-SVC-CCCCCCCCCCCCCCCC
-A KUBE-SERVICES -d 10.96.1.0/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-KKKKKKKKKKKKKKKK
-A KUBE-SERVICES -d 10.96.1.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-BBBBBBBBBBBBBBBB
-A KUBE-SVC-AAAAAAAAAAAAAAAA ! -s 10.128.0.0/9 -d 10.96.1.0/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
COMMIT
`, "10.96.1.2:80 10.96.1.0:80 10.96.1.1:80"},
		{"a tree", `-A KUBE-SERVICES -d 10.96.1.0/24 -j KUBE-SVC-10.96.1.0/24
-A KUBE-SVC-10.96.1.0/24 -d 10.96.1.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-BBBBBBBBBBBBBBBB
-A KUBE-SVC-10.96.1.0/24 -d 10.96.1.0/32 -p tcp -m tcp --dport 80 -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-SVC-10.96.1.0/24 -d 10.96.1.1/32 -p tcp -m tcp --dport 81 -j KUBE-SVC-DDDDDDDDDDDDDDDD
`, "10.96.1.1:80 10.96.1.0:80"},
		{"others' rules", "-A DOCKER -d 10.96.1.1/32 -j KUBE-SVC-BBBBBBBBBBBBBBBB\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			order, err := readOrder(strings.NewReader(c.rules), plan)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range order {
				got = append(got, a.String())
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
}
