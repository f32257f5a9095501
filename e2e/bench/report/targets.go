// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// target is what must hold of a figure: it is at most the limit.
type target struct {
	size    Size
	subject string
	variant string // empty is each of iptables
	key     string // of the row
	// limit is NaN where there is nothing to compare with.
	limit func(Group, *Run) float64
}

// The sizes that have targets.
var (
	small = Size{Services: 1000, Endpoints: 10}
	large = Size{Services: 10000, Endpoints: 10}
	wide  = Size{Services: 5000, Endpoints: 100}
	// one change in IPVS mode must cost about the same at these two, and in nftables mode
	// at few and large.
	few, many = Size{Services: 100, Endpoints: 10}, Size{Services: 5000, Endpoints: 10}
)

const compact = "fairlead-compact"

// targets are all that must hold.
func targets() []target {
	return []target{
		{small, Product, "", keyFirstSync, constant(1.3)},
		{small, Product, "", keyAdded, floorPlus(15)},

		{large, Product, "nft", keyFirstSync, least(constant(12), floorTimes(1.3))},
		{large, Product, "legacy", keyFirstSync, least(constant(6), floorTimes(1.3))},
		{large, Product, "", keyAdded, floorPlus(15)},
		// Where taking away rules is a deletion. The legacy variant writes its
		// whole table.
		{large, Product, "nft", keyRemoved, constant(60)},
		{large, Product, "", keyLast, func(_ Group, r *Run) float64 {
			return of(r.Connect, func(c *Connect) float64 { return c.NoRulesUS.P50 + 8 })
		}},
		{large, Product, "", keySynced, constant(150)},
		{large, Product, "", keyChanged, constant(150)},
		{large, Product, "nft", keyCPU, ofReference(1, keyCPU)},
		{large, Product, "legacy", keyCPU, ofReference(0.5, keyCPU)},
		{large, Product, "", keyReady, func(_ Group, r *Run) float64 {
			return of(r.Restart, func(s *Restart) float64 { return 1.8*s.SaveS + 1 })
		}},
		{large, Product, "", keyWritten, constant(0)},
		{large, compact, "nft", keyFirstSync, constant(5)},
		{large, compact, "legacy", keyFirstSync, constant(2.5)},
		{large, compact, "", keyAdded, floorPlus(15)},

		{wide, Product, "", keySynced, constant(500)},

		// kube-proxy's virtual servers answer long before its rules and sets are there.
		{small, Product, IPVS, keyDone, ofReference(0.2, keyDone)},
		{small, Product, IPVS, keyAdded, ofReference(0.2, keyAdded)},
		{small, Product, IPVS, keyRemoved, ofReference(0.2, keyRemoved)},
		{small, Product, IPVS, keySynced, ofReference(1, keySynced)},
		{small, Product, IPVS, keyChanged, ofReference(1, keyChanged)},
		{small, Product, IPVS, keyReady, ofReference(1, keyReady)},
		// Until it works, most of the time is the API server's, and of all else in the
		// guest, which has one processor.
		{many, Product, IPVS, keyAdded, overFloorOfSize(few, 1.5)},
		{many, Product, IPVS, keyChange, ofSize(few, 1.5, keyChange)},

		{large, Product, NFTables, keyFirstSync, least(constant(3), ofReference(0.25, keyFirstSync))},
		{large, Product, NFTables, keyAdded, constant(15)},
		{large, Product, NFTables, keyRemoved, constant(30)},
		{large, Product, NFTables, keyChange, ofSize(few, 1.5, keyChange)},
		{large, Product, NFTables, keyLast, func(_ Group, r *Run) float64 {
			return of(r.Connect, func(c *Connect) float64 { return c.NoRulesUS.P50 + 4 })
		}},
		{large, Product, NFTables, keySynced, constant(120)},
		{large, Product, NFTables, keyChanged, constant(120)},
	}
}

func constant(v float64) func(Group, *Run) float64 {
	return func(Group, *Run) float64 { return v }
}

// least is the strictest of some limits that there are.
func least(limits ...func(Group, *Run) float64) func(Group, *Run) float64 {
	return func(g Group, r *Run) float64 {
		v := math.NaN()
		for _, limit := range limits {
			if l := limit(g, r); math.IsNaN(v) || l < v {
				v = l
			}
		}
		return v
	}
}

// floorTimes is a multiple of the floor of a first sync.
func floorTimes(n float64) func(Group, *Run) float64 {
	return func(_ Group, r *Run) float64 {
		return of(r.Floor, func(f *Floor) float64 { return n * f.FirstSyncS })
	}
}

// floorPlus is the floor of an added endpoint and some milliseconds.
func floorPlus(ms float64) func(Group, *Run) float64 {
	return func(_ Group, r *Run) float64 {
		return of(r.Floor, func(f *Floor) float64 { return f.AddedMS.at(50) + ms })
	}
}

// ofReference is a multiple of the reference's figure in a row.
func ofReference(n float64, key string) func(Group, *Run) float64 {
	return func(g Group, _ *Run) float64 { return n * of(g.find(Reference), figure(key)) }
}

// ofSize is a multiple of the subject's figure in a row, at another size.
func ofSize(s Size, n float64, key string) func(Group, *Run) float64 {
	return func(g Group, r *Run) float64 { return n * of(g.all.Find(r.Subject, r.Variant, s), figure(key)) }
}

// overFloorOfSize is the floor of an added endpoint, and a multiple of what the subject
// takes over it at another size.
func overFloorOfSize(s Size, n float64) func(Group, *Run) float64 {
	return func(g Group, r *Run) float64 {
		over := func(r *Run) float64 {
			return of(r, func(r *Run) float64 {
				return r.AddedMS.at(50) - of(r.Floor, func(f *Floor) float64 { return f.AddedMS.at(50) })
			})
		}
		return of(r.Floor, func(f *Floor) float64 { return f.AddedMS.at(50) }) + n*over(g.all.Find(r.Subject, r.Variant, s))
	}
}

// figure returns what the row with a key shows of a run.
func figure(key string) func(*Run) float64 {
	at := slices.IndexFunc(rows(), func(r row) bool { return r.key == key })
	return rows()[at].value
}

// applies tells whether a target is for a run.
func (t target) applies(r *Run) bool {
	return t.size == r.Size && t.subject == r.Subject && (t.variant == r.Variant || t.variant == "" && r.Variant != IPVS && r.Variant != NFTables)
}

// verdict is what becomes of a target: "≤ 12.00 ok". Empty is for one that
// cannot be judged, as what it compares with was not measured.
func (t target) verdict(g Group, r *Run, row row) string {
	limit, value := t.limit(g, r), row.value(r)
	switch {
	case math.IsNaN(limit), math.IsNaN(value) && !r.CutOff:
		return ""
	case value <= limit:
		return fmt.Sprintf("≤ "+row.format+" ok", limit)
	default: // also for what was cut off
		return fmt.Sprintf("≤ "+row.format+" FAIL", limit)
	}
}

// verdicts are those of a row, and of which subject unless it is the product.
func (g Group) verdicts(row row) string {
	var out []string
	for _, t := range targets() {
		r := g.find(t.subject)
		if t.key != row.key || r == nil || !t.applies(r) {
			continue
		}
		v := t.verdict(g, r, row)
		if v != "" && t.subject != Product {
			v = strings.TrimPrefix(t.subject, Product+"-") + " " + v
		}
		if v != "" {
			out = append(out, v)
		}
	}
	return strings.Join(out, ", ")
}

// Failed is how many targets do not hold.
func (r *Results) Failed() int {
	n := 0
	for _, g := range r.Groups() {
		for _, row := range rows() {
			n += strings.Count(g.verdicts(row), "FAIL")
		}
	}
	return n
}
