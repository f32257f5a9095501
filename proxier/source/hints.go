// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"fairlead/proxier/model"
)

// hints returns the hints of the i-th endpoint of a slice. A name that is
// refused is no hint; the endpoint works.
func hints(in *discoveryv1.EndpointHints, i int, r *refusals) model.Hints {
	if in == nil {
		return model.Hints{}
	}
	forZones := hintList{refused: r, endpoint: i, field: "forZones", isValid: isLabelValue, reason: reasonLabelValue}
	for j, zone := range in.ForZones[:forZones.limit(len(in.ForZones))] {
		forZones.add(j, zone.Name)
	}
	forNodes := hintList{refused: r, endpoint: i, field: "forNodes", isValid: isSubdomain, reason: reasonSubdomain}
	for j, node := range in.ForNodes[:forNodes.limit(len(in.ForNodes))] {
		forNodes.add(j, node.Name)
	}
	return model.NewHints(forZones.names, forNodes.names)
}

// hintList collects one list of hints of an endpoint, without duplicates.
type hintList struct {
	refused  *refusals
	endpoint int
	field    string
	isValid  func(string) bool
	reason   string

	names []string
}

func (l *hintList) path() string { return fmt.Sprintf("endpoints[%d].hints.%s", l.endpoint, l.field) }

// limit returns how many of n names are read.
func (l *hintList) limit(n int) int {
	if n <= maxHints {
		return n
	}
	l.refused.addTooMany(l.path(), n, maxHints, "")
	return maxHints
}

// add takes the j-th name.
func (l *hintList) add(j int, name string) {
	if !l.isValid(name) {
		l.refused.add(fmt.Sprintf("%s[%d].name", l.path(), j), name, l.reason)
		return
	}
	if !slices.Contains(l.names, name) {
		l.names = append(l.names, name)
	}
}
