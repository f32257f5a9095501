// SPDX-License-Identifier: Apache-2.0

package model

import (
	"strings"
	"unique"
)

// Hints say for whose clients an endpoint is: those in some zones, and those on
// some nodes. The same few recur in every slice, so equal ones share their
// memory; == compares them. The zero value has none.
type Hints struct{ names unique.Handle[hintNames] }

type hintNames struct{ zones, nodes string }

// NewHints returns hints for these zones and nodes, whose names have no commas.
func NewHints(zones, nodes []string) Hints {
	if len(zones)+len(nodes) == 0 {
		return Hints{}
	}
	return Hints{unique.Make(hintNames{strings.Join(zones, ","), strings.Join(nodes, ",")})}
}

// Zones returns the names of the zones with commas between them, empty where
// there are none.
func (h Hints) Zones() string { return h.value().zones }

// Nodes returns the names of the nodes in the same way.
func (h Hints) Nodes() string { return h.value().nodes }

// String returns all names, like "zones=a,b nodes=c".
func (h Hints) String() string { return "zones=" + h.Zones() + " nodes=" + h.Nodes() }

// Equal tells what == does.
func (h Hints) Equal(o Hints) bool { return h == o }

func (h Hints) value() hintNames {
	if h == (Hints{}) {
		return hintNames{}
	}
	return h.names.Value()
}
