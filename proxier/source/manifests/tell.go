// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"

	"k8s.io/klog/v2"
)

// maxKinds bounds how many kinds of other objects the log tells of.
const maxKinds = 100

// conclude takes the content of a file over where it is new, and tells the
// operator what came of reading it.
func (d *directory) conclude(ctx context.Context, f *file, v verdict, before []placed) {
	logger := klog.FromContext(ctx)
	switch v {
	case accepted:
		d.index.replace(f.name, before, f.good)
		d.tellFresh(ctx, f)
	case mended:
		logger.Info("The manifest file is as it was before it broke", "file", f.path)
	case broke:
		message := "Broken manifest file, its last good content stays in use"
		if !f.parsed {
			message = "Broken manifest file, nothing is removed until it is mended or deleted"
		}
		logger.Error(nil, message, "problem", f.lastBroken.in(f.path))
	}
}

// tellFresh logs the warnings about the documents that are new in a file.
func (d *directory) tellFresh(ctx context.Context, f *file) {
	logger := klog.FromContext(ctx)
	for _, doc := range f.good {
		if !doc.fresh {
			continue
		}
		for _, w := range doc.warnings {
			logger.Info("Ignored a part of an object in a manifest file, the rest of it is used",
				"where", place(f.path, doc.line+w.line-1), "warning", w.text)
		}
		for _, i := range doc.ignored {
			if _, told := d.kinds[i.kind]; told || len(d.kinds) == maxKinds {
				continue
			}
			d.kinds[i.kind] = struct{}{}
			logger.Info("Ignored objects of a kind that is not read from manifest files",
				"kind", i.kind, "first", place(f.path, doc.line+i.line-1))
		}
	}
}
