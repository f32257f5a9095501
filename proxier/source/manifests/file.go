// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"crypto/sha256"
	"errors"
	"time"
)

const (
	// settleTime is how long a file must stay the same before it is believed
	// to be broken, or to have lost objects without having been replaced.
	settleTime = 40 * time.Millisecond
	// patience bounds how long a file that keeps changing, or that is open for
	// writing, is given before it is taken as it is.
	patience = 2 * time.Second
)

// file is what is known of one file.
type file struct {
	name string
	path string
	// target is the directory of the file that a symbolic link leads to, empty
	// where the file is none.
	target string

	// seen is the file as it was read last; settled tells that a change since
	// would show in it.
	seen    identity
	settled bool

	// good is the last content that made sense; parsed tells that there was
	// one.
	good       []placed
	goodSum    digest
	goodInode  uint64
	parsed     bool
	lastBroken *problem // what is wrong now, as it was told; nil if nothing is

	doubt doubt
	// goneAt is when the file was found gone, zero while it is there.
	goneAt time.Time
}

// doubt is about a content that may be in the middle of being written.
type doubt struct {
	sum     digest
	first   time.Time // when the doubts began, zero where there are none
	changed time.Time // when this content was first seen
	retry   time.Time // when to look again
}

// verdict is what comes of reading a file.
type verdict int

const (
	// unchanged: the content is as it was, or is not known yet.
	unchanged verdict = iota
	// accepted: there is a new good content.
	accepted
	// broke: the file is broken in a way that was not told yet.
	broke
	// mended: the file is as it was before it broke.
	mended
	// gone: there is no such file.
	gone
)

// read reads the file again. Before is the content that was good until then.
func (f *file) read(p *parser, now time.Time) (v verdict, before []placed) {
	f.target = targetOf(f.path)
	c, err := readFile(f.path, f.doubt.isOver(now))
	switch {
	case errors.Is(err, errNoFile):
		return gone, nil
	case errors.Is(err, errBusy):
		f.doubt.raise(digest{}, now)
		return unchanged, nil
	case err != nil:
		return f.fail(sha256.Sum256([]byte(err.Error())), &problem{text: err.Error()}, now), nil
	}
	f.seen, f.settled = c.identity, c.identity.settled(now)
	sum := sha256.Sum256(c.text)
	if f.parsed && sum == f.goodSum {
		f.goodInode = c.identity.inode
		return f.mend(), nil
	}
	docs, problem := p.parse(f.name, c.text, f.good)
	if problem != nil {
		return f.fail(sum, problem, now), nil
	}
	replaced := f.goodInode != c.identity.inode
	if f.parsed && !replaced && loses(f.good, docs) && !f.doubt.settles(sum, now) {
		return unchanged, nil
	}
	before = f.good
	f.good, f.goodSum, f.goodInode, f.parsed = docs, sum, c.identity.inode, true
	f.mend()
	return accepted, before
}

// fail takes note of what is wrong, once the content is no more in doubt.
func (f *file) fail(sum digest, p *problem, now time.Time) verdict {
	if !f.doubt.settles(sum, now) {
		return unchanged
	}
	f.doubt = doubt{}
	if f.lastBroken != nil && *f.lastBroken == *p {
		return unchanged
	}
	f.lastBroken = p
	return broke
}

// mend takes note that the content is good.
func (f *file) mend() verdict {
	f.doubt = doubt{}
	if f.lastBroken == nil {
		return unchanged
	}
	f.lastBroken = nil
	return mended
}

// raise puts the content in doubt and sets the time to look again.
func (d *doubt) raise(sum digest, now time.Time) {
	if d.first.IsZero() {
		d.first = now
	}
	if d.changed.IsZero() || sum != d.sum {
		d.sum, d.changed = sum, now
	}
	d.retry = now.Add(settleTime)
}

// settles reports whether the content has been the same for long enough to be
// believed; otherwise it puts it in doubt.
func (d *doubt) settles(sum digest, now time.Time) bool {
	if d.isOver(now) || !d.changed.IsZero() && sum == d.sum && now.Sub(d.changed) >= settleTime {
		return true
	}
	d.raise(sum, now)
	return false
}

// isOver reports whether there has been doubt for so long that the file must be
// taken as it is.
func (d *doubt) isOver(now time.Time) bool {
	return !d.first.IsZero() && now.Sub(d.first) >= patience
}

// loses reports whether an object of the one content is not in the other.
func loses(before, after []placed) bool {
	has := map[id]struct{}{}
	for _, doc := range after {
		for _, o := range doc.objects {
			has[o.id] = struct{}{}
		}
	}
	for _, doc := range before {
		for _, o := range doc.objects {
			if _, ok := has[o.id]; !ok {
				return true
			}
		}
	}
	return false
}
