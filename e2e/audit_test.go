// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
)

// auditLog is what an API server writes of all requests.
type auditLog struct{ policy, log string }

func newAuditLog(t *testing.T) auditLog {
	t.Helper()
	dir := t.TempDir()
	a := auditLog{policy: filepath.Join(dir, "policy.yaml"), log: filepath.Join(dir, "audit.log")}
	const policy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata", "omitStages": ["RequestReceived"]}]}`
	if err := os.WriteFile(a.policy, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// flags are those of the API server.
func (a auditLog) flags() []string {
	return []string{"--audit-policy-file=" + a.policy, "--audit-log-path=" + a.log, "--audit-log-mode=blocking-strict"}
}

// checkUse checks that the agent was refused nothing, and has done all that a role
// allows.
func (a auditLog) checkUse(t *testing.T, role *rbacv1.ClusterRole) {
	t.Helper()
	text, err := os.ReadFile(a.log)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		var e struct {
			Verb             string
			ImpersonatedUser struct{ Username string }
			ObjectRef        struct{ APIGroup, Resource string }
			ResponseStatus   struct{ Code int }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.ImpersonatedUser.Username != agentUser {
			continue
		}
		if e.ResponseStatus.Code == 401 || e.ResponseStatus.Code == 403 {
			t.Errorf("the agent was refused: %s", line)
		}
		used[strings.Join([]string{e.Verb, e.ObjectRef.APIGroup, e.ObjectRef.Resource}, " ")] = true
	}
	allowed := map[string]bool{}
	for _, r := range role.Rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					allowed[strings.Join([]string{verb, group, resource}, " ")] = true
				}
			}
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(allowed)), slices.Sorted(maps.Keys(used))); diff != "" {
		t.Errorf("what the role allows and what the agent does differ (-allowed +done):\n%s", diff)
	}
}
