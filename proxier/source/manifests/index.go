// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// claim is an object in its place. Of several claims to one id the first wins,
// by the file's name and then by the order in the file.
type claim struct {
	file string
	seq  int
	line int
	*object
}

func (c claim) compare(other claim) int {
	return cmp.Or(strings.Compare(c.file, other.file), cmp.Compare(c.seq, other.seq))
}

// index knows which files have which objects, and what was delivered of them.
type index struct {
	reporter *source.Reporter
	// path returns the path of a file of the given name.
	path func(name string) string
	// leaving reports whether a file is gone and its claims are about to be
	// dropped: a file that was renamed is not a duplicate of itself.
	leaving func(name string) bool

	claims map[id][]claim
	// winners holds the first claim's object, as it was delivered last.
	winners map[id]*object
	// touched are the ids whose claims have changed since the last step.
	touched map[id]struct{}
	// duplicates is the number of claims that do not win.
	duplicates int
	// told holds the files of the duplicates that the log tells of.
	told map[id]string
}

func newIndex(reporter *source.Reporter, path func(string) string, leaving func(string) bool) *index {
	return &index{
		reporter: reporter,
		path:     path,
		leaving:  leaving,
		claims:   map[id][]claim{},
		winners:  map[id]*object{},
		touched:  map[id]struct{}{},
		told:     map[id]string{},
	}
}

// replace makes the documents the content of the file; none where it is gone.
func (x *index) replace(file string, before, after []placed) {
	for _, doc := range before {
		for _, o := range doc.objects {
			x.drop(file, o.id)
		}
	}
	seq := 0
	for _, doc := range after {
		for _, o := range doc.objects {
			x.add(claim{file: file, seq: seq, line: doc.line + o.line - 1, object: o})
			seq++
		}
	}
}

// touch makes the next step look at the objects again.
func (x *index) touch(docs []placed) {
	for _, doc := range docs {
		for _, o := range doc.objects {
			x.touched[o.id] = struct{}{}
		}
	}
}

// drop removes every claim of the file to the id.
func (x *index) drop(file string, id id) {
	old := x.claims[id]
	left := slices.DeleteFunc(slices.Clone(old), func(c claim) bool { return c.file == file })
	x.duplicates += max(len(left)-1, 0) - max(len(old)-1, 0)
	if len(left) == 0 {
		delete(x.claims, id)
	} else {
		x.claims[id] = left
	}
	x.touched[id] = struct{}{}
}

func (x *index) add(c claim) {
	old := x.claims[c.id]
	at, _ := slices.BinarySearchFunc(old, c, claim.compare)
	x.claims[c.id] = slices.Insert(slices.Clone(old), at, c)
	if len(old) > 0 {
		x.duplicates++
	}
	x.touched[c.id] = struct{}{}
}

// changes returns what has changed since it was called last, and tells the
// operator of refusals and duplicates among it.
func (x *index) changes(ctx context.Context) model.Changes {
	var out model.Changes
	for id := range x.touched {
		claims := x.claims[id]
		x.tellDuplicates(ctx, id, claims)
		before := x.winners[id]
		if len(claims) == 0 {
			x.reporter.Forget(id.kind, id.key)
			if !same(before, nil) {
				put(&out, id, nil)
			}
			delete(x.winners, id)
			continue
		}
		winner := claims[0]
		if before == winner.object {
			continue
		}
		x.reporter.Report(ctx, source.Outcome{
			Kind: id.kind, Key: id.key, Version: winner.version,
			Where: place(x.path(winner.file), winner.line), Used: winner.used, Refused: winner.refused,
		})
		x.winners[id] = winner.object
		if !same(before, winner.object) {
			put(&out, id, winner.object)
		}
	}
	clear(x.touched)
	return out
}

// tellDuplicates logs which claims to an id are ignored, unless it has.
func (x *index) tellDuplicates(ctx context.Context, id id, claims []claim) {
	if len(claims) > 1 {
		claims = slices.DeleteFunc(slices.Clone(claims), func(c claim) bool { return x.leaving(c.file) })
	}
	if len(claims) < 2 {
		delete(x.told, id)
		return
	}
	var files strings.Builder
	for _, c := range claims {
		files.WriteString(c.file)
		files.WriteByte('/')
	}
	if x.told[id] == files.String() {
		return
	}
	x.told[id] = files.String()
	for _, c := range claims[1:] {
		klog.FromContext(ctx).Error(nil, "Ignored a duplicate object, the first one is used",
			"kind", id.kind, "object", clip(id.key.String()),
			"used", place(x.path(claims[0].file), claims[0].line), "ignored", place(x.path(c.file), c.line))
	}
}
