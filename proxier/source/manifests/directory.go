// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source"
)

// returnTime is how long a directory must have been there before it is read
// again: who makes one fills it next.
const returnTime = 40 * time.Millisecond

// directory is the state of the directory and of the files in it. It is used by
// one goroutine.
type directory struct {
	path    string
	parser  *parser
	metrics *Metrics

	files map[string]*file
	// doubtful are the files that are to be read again soon.
	doubtful map[string]*file
	index    *index
	// kinds are the kinds of other objects that the log tells of.
	kinds map[string]struct{}

	// listed is set once the directory was read.
	listed bool
	// status is the status that was delivered last, nil before.
	status *model.SourceStatus
	// missing is why the directory cannot be read, empty while it can.
	missing string
	// returned is when the directory was first seen after it could not be
	// read.
	returned time.Time
	// lastGone is when a file was last found gone that was there before.
	lastGone time.Time
}

func newDirectory(config Config) *directory {
	d := &directory{
		path:     config.Dir,
		parser:   &parser{nodeName: config.NodeName, policy: config.Policy},
		metrics:  config.FileMetrics,
		files:    map[string]*file{},
		doubtful: map[string]*file{},
		kinds:    map[string]struct{}{},
	}
	d.index = newIndex(source.NewReporter(config.Metrics), d.file, d.isLeaving)
	return d
}

// file returns the path of the file of that name.
func (d *directory) file(name string) string { return filepath.Join(d.path, name) }

// readAll reads every file that has changed since it was read, or may have.
func (d *directory) readAll(ctx context.Context, now time.Time) {
	names, err := d.list()
	if err != nil {
		d.cannotList(ctx, err)
		return
	}
	if d.missing != "" && !d.isBack(ctx, now) {
		return
	}
	present := make(map[string]struct{}, len(names))
	for _, name := range names {
		present[name] = struct{}{}
		if f := d.files[name]; f != nil && f.settled && f.doubt == (doubt{}) && f.goneAt.IsZero() {
			if info, err := os.Stat(f.path); err == nil && identityOf(info) == f.seen {
				continue
			}
		}
		d.read(ctx, name, now)
	}
	for name := range d.files {
		if _, ok := present[name]; !ok {
			d.read(ctx, name, now)
		}
	}
	if !d.listed {
		klog.FromContext(ctx).Info("Read the manifests", "dir", d.path, "files", len(d.files), "objects", len(d.index.claims))
	}
	d.listed = true
}

// list returns the names of the manifests in the directory.
func (d *directory) list() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, cause(err)
	}
	var names []string
	for _, e := range entries {
		if isManifest(e.Name()) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// cannotList takes note that the directory cannot be read. What was read from
// it stays.
func (d *directory) cannotList(ctx context.Context, err error) {
	d.returned = time.Time{}
	if d.missing == err.Error() {
		return
	}
	d.missing = err.Error()
	message := "Cannot read the directory of manifests, nothing is programmed or removed until it is there; create it, or name another with --manifests"
	if d.listed {
		message = "Cannot read the directory of manifests any more, its objects stay as they are until it is back"
	}
	klog.FromContext(ctx).Error(nil, message, "dir", d.path, "reason", d.missing)
}

// isBack reports whether the directory has been there again for long enough to
// be read.
func (d *directory) isBack(ctx context.Context, now time.Time) bool {
	if d.returned.IsZero() {
		d.returned = now
	}
	if now.Sub(d.returned) < returnTime {
		return false
	}
	klog.FromContext(ctx).Info("The directory of manifests can be read", "dir", d.path)
	d.missing, d.returned = "", time.Time{}
	return true
}

// readSome reads the files of the given names.
func (d *directory) readSome(ctx context.Context, names map[string]struct{}, now time.Time) {
	if d.missing != "" {
		return
	}
	for name := range names {
		d.read(ctx, name, now)
	}
}

// read reads one file, whether it has changed or not, and whether it is there
// or not.
func (d *directory) read(ctx context.Context, name string, now time.Time) {
	f := d.files[name]
	if f == nil {
		f = &file{name: name, path: d.file(name)}
	}
	v, before := f.read(d.parser, now)
	if v == gone {
		if d.files[name] != nil {
			d.gone(ctx, f, now)
		}
	} else {
		d.files[name] = f
		d.there(ctx, f, v, before)
	}
	delete(d.doubtful, name)
	if d.files[name] != nil && !f.doubt.retry.IsZero() {
		d.doubtful[name] = f
	}
}

// there takes note of what a file is now.
func (d *directory) there(ctx context.Context, f *file, v verdict, before []placed) {
	if !f.goneAt.IsZero() {
		f.goneAt = time.Time{}
		d.index.touch(before)
		d.index.touch(f.good)
	}
	d.conclude(ctx, f, v, before)
}

// gone takes note that a file is not there any more. Where that is because the
// directory goes, it stays as it is; so it must have been a while since the
// last file went.
func (d *directory) gone(ctx context.Context, f *file, now time.Time) {
	if _, err := os.Stat(d.path); err != nil {
		d.cannotList(ctx, cause(err))
		return
	}
	if f.goneAt.IsZero() {
		f.goneAt, d.lastGone = now, now
	}
	if now.Sub(d.lastGone) < settleTime && now.Sub(f.goneAt) < patience {
		f.doubt.retry = d.lastGone.Add(settleTime)
		return
	}
	delete(d.files, f.name)
	d.index.replace(f.name, f.good, nil)
}

// isLeaving reports whether a file is gone but not yet taken for that.
func (d *directory) isLeaving(name string) bool {
	f := d.files[name]
	return f != nil && !f.goneAt.IsZero()
}

// step returns what has changed since the last step; ok is false where nothing
// has.
func (d *directory) step(ctx context.Context) (c model.Changes, ok bool) {
	c = d.index.changes(ctx)
	complete, broken := d.missing == "", 0
	for _, f := range d.files {
		if !f.parsed {
			complete = false
		}
		if f.lastBroken != nil {
			broken++
		}
	}
	d.metrics.set(broken, d.index.duplicates)
	status := model.SourceStatus{Listed: d.listed, Complete: d.listed && complete}
	if d.status == nil || *d.status != status {
		d.status, c.Status = &status, &status
	}
	return c, c.Services != nil || c.EndpointSlices != nil || c.ServiceCIDRs != nil || c.Pods != nil || c.Node != nil || c.Status != nil
}

// targets returns the directories that symbolic links among the files lead to.
func (d *directory) targets() map[string]struct{} {
	targets := map[string]struct{}{}
	for _, f := range d.files {
		if f.target != "" {
			targets[f.target] = struct{}{}
		}
	}
	return targets
}

// retries returns the files that are to be read again by now though nothing may
// have changed; all tells that the whole directory is.
func (d *directory) retries(now time.Time) (names map[string]struct{}, all bool) {
	names = map[string]struct{}{}
	if d.missing != "" {
		return names, !d.returned.IsZero() && !now.Before(d.returned.Add(returnTime))
	}
	for name, f := range d.doubtful {
		if !now.Before(f.doubt.retry) {
			names[name] = struct{}{}
		}
	}
	return names, false
}

// nextRetry returns when retries has something to return, zero where it has
// not.
func (d *directory) nextRetry() time.Time {
	if d.missing != "" {
		if d.returned.IsZero() {
			return time.Time{}
		}
		return d.returned.Add(returnTime)
	}
	var next time.Time
	for _, f := range d.doubtful {
		next = earlier(next, f.doubt.retry)
	}
	return next
}
