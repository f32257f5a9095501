// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"fairlead/proxier/model"
)

// maxLoggedRefusals bounds the log lines about one version of one object.
const maxLoggedRefusals = 5

// Reporter tells the operator what was refused: a log line for each refusal,
// once per version of an object however often the object is read, and a count
// in Metrics. Every source has its own. It is safe for concurrent use.
type Reporter struct {
	metrics *Metrics

	mu sync.Mutex
	// reported holds what was reported last of each object that has
	// refusals; it is as large as the trouble is.
	reported map[objectID]report
}

type objectID struct {
	kind string
	key  model.ObjectKey
}

type report struct {
	version string
	// since is the first of the versions with these very refusals.
	since string
	count int
	first []Refusal // at most maxLoggedRefusals
}

// Outcome is what came of translating one version of one object.
type Outcome struct {
	Kind string
	Key  model.ObjectKey
	// Version tells versions of the object apart, like its resourceVersion.
	Version string
	// Where is the place that the object was read from, like "web.yaml:12",
	// empty where that goes without saying.
	Where string
	// Used is false where the object as a whole is refused or not selected.
	Used    bool
	Refused []Refusal
}

// NewReporter returns a Reporter that counts in metrics, which may be nil.
func NewReporter(metrics *Metrics) *Reporter {
	return &Reporter{metrics: metrics, reported: map[objectID]report{}}
}

// Report tells of an outcome, unless it has told of that version before. A new
// version whose refusals are the same as before counts, but is not logged
// again.
//
// It returns whether there is something to tell of the version that it has not
// told before, and the first of the versions in a row with the same refusals.
func (r *Reporter) Report(ctx context.Context, o Outcome) (fresh bool, since string) {
	id := objectID{o.Kind, o.Key}
	now := report{
		version: o.Version,
		since:   o.Version,
		count:   len(o.Refused),
		first:   o.Refused[:min(len(o.Refused), maxLoggedRefusals)],
	}
	r.mu.Lock()
	last := r.reported[id]
	known := last.count > 0
	same := known && last.count == now.count && slices.Equal(last.first, now.first)
	if same {
		now.since = last.since
	}
	if now.count == 0 {
		delete(r.reported, id)
	} else {
		now.first = slices.Clone(now.first)
		r.reported[id] = now
	}
	r.mu.Unlock()

	if now.count == 0 || known && last.version == now.version {
		return false, ""
	}
	r.metrics.countRefused(o.Kind)
	if !same {
		logRefusals(ctx, o)
	}
	return true, now.since
}

// Forget drops what is known of an object, because it is gone.
func (r *Reporter) Forget(kind string, key model.ObjectKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.reported, objectID{kind, key})
}

func logRefusals(ctx context.Context, o Outcome) {
	logger := klog.FromContext(ctx)
	if o.Where != "" {
		logger = logger.WithValues("where", o.Where)
	}
	message := "Refused an object"
	if o.Used {
		message = "Refused a part of an object, the rest of it is used"
	}
	for i, refusal := range o.Refused {
		if i == maxLoggedRefusals {
			logger.Error(nil, "Refused more of the same object", "refusals", len(o.Refused)-i)
			return
		}
		logger.Error(nil, message, "refusal", refusal.String())
	}
}
