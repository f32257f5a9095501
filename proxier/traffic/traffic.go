// SPDX-License-Identifier: Apache-2.0

// Package traffic has as metrics what Services carry. The kernel's counters begin anew
// when what they belong to is written anew, and there may be a hundred thousand of them;
// the metrics only grow, and are of a bounded number of Services.
//
// Nothing is read but when somebody asks for the metrics, and then a fiftieth of the time
// at most.
package traffic

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"fairlead/proxier/model"
)

// Counts are what has passed.
type Counts struct{ Connections, PacketsIn, PacketsOut, BytesIn, BytesOut uint64 }

// Sample is what one of the kernel's counters says.
type Sample struct {
	// ID tells the counter apart from the others of its source. One that is made anew
	// may have the ID of the one before.
	ID   uint64
	Port model.ServicePortName
	Counts
	// Wraps is set where connections and packets are the lower 32 bits of their number.
	Wraps bool
}

// Source reads the kernel's counters of one family.
type Source interface {
	// Read calls yield for each counter of a port that there is, in no order.
	Read(ctx context.Context, yield func(Sample)) error
}

// Selection says which Services have series of their own.
type Selection struct {
	all      bool
	spaces   map[string]bool
	services map[model.ObjectKey]bool
}

// ParseSelection reads a list of namespaces and of Services as namespace/name; "*" is all.
func ParseSelection(items []string) (Selection, error) {
	out := Selection{spaces: map[string]bool{}, services: map[model.ObjectKey]bool{}}
	for _, item := range items {
		item = strings.TrimSpace(item)
		space, name, isService := strings.Cut(item, "/")
		switch {
		case item == "*":
			out.all = true
		case space == "" || isService && name == "" || strings.ContainsAny(item, "* \t\n") || strings.Contains(name, "/"):
			return Selection{}, fmt.Errorf("%q %w", item, errSelection)
		case isService:
			out.services[model.ObjectKey{Namespace: space, Name: name}] = true
		default:
			out.spaces[space] = true
		}
	}
	return out, nil
}

var errSelection = errors.New("is neither a namespace nor a Service; write it like shop, shop/web, or * for all")

// Empty tells whether nothing is selected.
func (s Selection) Empty() bool { return !s.all && len(s.spaces)+len(s.services) == 0 }

// Has tells whether a Service is selected.
func (s Selection) Has(k model.ObjectKey) bool {
	return s.all || s.spaces[k.Namespace] || s.services[k]
}

// since returns how much has been added to a counter since it said before. One that is
// less than it was has begun anew.
func since(before Counts, now Sample) Counts {
	if now.Wraps {
		// Bytes have room for 64 bits, so that they tell whether the others have begun
		// anew or have come around.
		if now.BytesIn < before.BytesIn || now.BytesOut < before.BytesOut {
			return now.Counts
		}
		round := func(before, now uint64) uint64 { return uint64(uint32(now) - uint32(before)) }
		return Counts{
			Connections: round(before.Connections, now.Connections),
			PacketsIn:   round(before.PacketsIn, now.PacketsIn), PacketsOut: round(before.PacketsOut, now.PacketsOut),
			BytesIn: now.BytesIn - before.BytesIn, BytesOut: now.BytesOut - before.BytesOut,
		}
	}
	if now.Connections < before.Connections || now.PacketsIn < before.PacketsIn || now.PacketsOut < before.PacketsOut ||
		now.BytesIn < before.BytesIn || now.BytesOut < before.BytesOut {
		return now.Counts
	}
	return Counts{
		Connections: now.Connections - before.Connections,
		PacketsIn:   now.PacketsIn - before.PacketsIn, PacketsOut: now.PacketsOut - before.PacketsOut,
		BytesIn: now.BytesIn - before.BytesIn, BytesOut: now.BytesOut - before.BytesOut,
	}
}

// add adds to counts.
func (c *Counts) add(o Counts) {
	c.Connections += o.Connections
	c.PacketsIn, c.PacketsOut = c.PacketsIn+o.PacketsIn, c.PacketsOut+o.PacketsOut
	c.BytesIn, c.BytesOut = c.BytesIn+o.BytesIn, c.BytesOut+o.BytesOut
}
