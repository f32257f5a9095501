// SPDX-License-Identifier: Apache-2.0

// Package source is where Kubernetes objects become Fairlead's model: the
// interface of a source, the selection of the objects that concern a service
// proxy, and their translation and validation. The sources themselves are in
// the packages apiserver and manifests below it.
package source

import (
	"context"

	"fairlead/proxier/model"
)

// Sink takes what a source finds. It is safe for concurrent use, does not
// block on the kernel, and keeps what it is given.
type Sink interface {
	Update(model.Changes)
}

// Source delivers objects and their changes until ctx ends.
type Source interface {
	// Run delivers to sink until ctx is done, and then returns nil. It returns
	// an error only where it can never deliver; what may pass (an API server
	// out of reach, a directory that does not exist yet) it logs and retries.
	Run(ctx context.Context, sink Sink) error
}
