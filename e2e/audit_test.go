// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"

	"fairlead/e2e/cluster"
)

// checkUse checks that the agent was refused nothing, and has done all that a role
// allows.
func checkUse(t *testing.T, log cluster.AuditLog, role *rbacv1.ClusterRole) {
	t.Helper()
	requests, err := log.Requests()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, r := range requests {
		if r.User != agentUser {
			continue
		}
		if r.Refused() {
			t.Errorf("the agent was refused: %s", r)
		}
		used[strings.Join([]string{r.Verb, r.Group, r.Resource}, " ")] = true
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
