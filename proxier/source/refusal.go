// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"fairlead/proxier/model"
)

// The kinds of objects that sources read, as the Kubernetes API spells them.
const (
	KindService       = "Service"
	KindEndpointSlice = "EndpointSlice"
	KindServiceCIDR   = "ServiceCIDR"
	KindPod           = "Pod"
	KindNode          = "Node"
)

// Bounds of what a Refusal keeps of an object that may be hostile, in bytes.
const (
	maxRefusalName  = 253
	maxRefusalValue = 80
)

// maxRefusals bounds how many refusals are told of one object. What is wrong
// beyond is left out all the same.
const maxRefusals = 100

// Refusal tells of one value in an object that cannot be programmed safely and
// was therefore left out: the value alone where the rest of the object makes
// sense without it, otherwise the whole object.
type Refusal struct {
	// Kind is one of the kinds above.
	Kind string
	// Key names the object. Its parts are bounded but may hold any byte, as
	// they may be what is refused. Namespace is empty for a Node or ServiceCIDR.
	Key model.ObjectKey
	// Field is the path of the value in the object, like "spec.ports[0].port".
	Field string
	// Value is the offending value, bounded, with any byte in it.
	Value string
	// Reason says what is wrong with the value, in a few words of our own.
	Reason string
}

// String returns the refusal as one line of printable ASCII, whatever the
// object holds.
func (r Refusal) String() string {
	name := r.Key.Name
	if r.Key.Namespace != "" {
		name = r.Key.String()
	}
	return fmt.Sprintf("%s %s: %s %s: %s",
		r.Kind, strconv.QuoteToASCII(name), r.Field, strconv.QuoteToASCII(r.Value), r.Reason)
}

// refusals collects what is refused of one object.
type refusals struct {
	kind string
	key  model.ObjectKey
	list []Refusal
}

func newRefusals(kind, namespace, name string) *refusals {
	return &refusals{kind: kind, key: model.ObjectKey{
		Namespace: clip(namespace, maxRefusalName),
		Name:      clip(name, maxRefusalName),
	}}
}

func (r *refusals) add(field, value, reason string) {
	if len(r.list) == maxRefusals {
		return
	}
	r.list = append(r.list, Refusal{
		Kind: r.kind, Key: r.key, Field: field, Value: clip(value, maxRefusalValue), Reason: reason,
	})
}

// clip returns a copy of s of at most limit bytes; where it leaves something
// out, it ends in "...".
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const dots = "..."
	end := limit - len(dots)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.Clone(s[:end]) + dots
}
