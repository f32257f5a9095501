// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

// clocked is a directory that is read when a test says so, at a time of its own.
type clocked struct {
	*directory
	folder *folder
	ctx    context.Context
	now    time.Time
}

func newClocked(t testing.TB) *clocked {
	f := newFolder(t).made()
	return &clocked{
		directory: newDirectory(Config{Dir: f.path, NodeName: "node-1"}),
		folder:    f,
		ctx:       klog.NewContext(t.Context(), sourcetest.NewLog(t).Logger()),
		now:       time.Now().Add(time.Hour),
	}
}

// all reads what has changed; later, after some time has passed.
func (c *clocked) all() model.Changes {
	c.readAll(c.ctx, c.now)
	out, _ := c.step(c.ctx)
	return out
}

// later lets time pass, reads the named files and those that are due.
func (c *clocked) later(d time.Duration, names ...string) model.Changes {
	c.now = c.now.Add(d)
	todo, _ := c.retries(c.now)
	for _, name := range names {
		todo[name] = struct{}{}
	}
	c.readSome(c.ctx, todo, c.now)
	out, _ := c.step(c.ctx)
	return out
}

// deleted returns how many Services a step deletes.
func deleted(c model.Changes) int {
	n := 0
	for _, s := range c.Services {
		if s == nil {
			n++
		}
	}
	return n
}

// Where the kernel does not tell whether a file is being written, time does: a
// file that has lost objects without having been replaced is looked at twice.
func TestObjectsLostInPlaceAreLookedForAgain(t *testing.T) {
	c := newClocked(t)
	both := docs(svc("web", "10.96.0.1"), svc("api", "10.96.0.2"))
	c.folder.write("a.yaml", both)
	if got := c.all(); len(got.Services) != 2 {
		t.Fatalf("first step %+v", got)
	}
	for _, half := range []string{"", svc("web", "10.96.0.9"), svc("api", "10.96.0.2")} {
		c.folder.write("a.yaml", half)
		if got := c.later(time.Millisecond, "a.yaml"); len(got.Services) != 0 {
			t.Errorf("half a file is believed at once: %+v", got)
		}
		if next := c.nextRetry(); next.Sub(c.now) != settleTime {
			t.Errorf("looked at again in %v, want %v", next.Sub(c.now), settleTime)
		}
	}
	c.folder.write("a.yaml", both)
	if got := c.later(settleTime); len(got.Services) != 0 || !c.nextRetry().IsZero() {
		t.Errorf("as it was, but %+v, next look %v", got, c.nextRetry())
	}
	c.folder.write("a.yaml", svc("web", "10.96.0.1"))
	c.later(time.Millisecond, "a.yaml")
	if got := c.later(settleTime); deleted(got) != 1 {
		t.Errorf("a file that stays shorter: %+v", got)
	}
	c.folder.replace("a.yaml", "")
	if got := c.later(time.Millisecond, "a.yaml"); deleted(got) != 1 {
		t.Errorf("a shorter file that was put in its place is whole: %+v", got)
	}
}

func TestFileThatNeverRestsIsTakenAsItIs(t *testing.T) {
	c := newClocked(t)
	c.folder.write("a.yaml", docs(svc("web", "10.96.0.1"), svc("api", "10.96.0.2")))
	c.all()
	began := c.now
	for i := 0; ; i++ {
		c.folder.write("a.yaml", svc("web", fmt.Sprintf("10.96.1.%d", i%250+1)))
		if deleted(c.later(settleTime/2, "a.yaml")) == 1 {
			break
		}
		if c.now.Sub(began) > 2*patience {
			t.Fatal("a file that keeps changing is never read")
		}
	}
	if took := c.now.Sub(began); took < patience {
		t.Errorf("taken as it is after %v, want %v", took, patience)
	}
}

func TestFileThatStaysOpenForWritingIsTakenAsItIs(t *testing.T) {
	c := newClocked(t)
	c.folder.write("a.yaml", svc("web", "10.96.0.1"))
	w, err := os.OpenFile(c.folder.file("a.yaml"), os.O_WRONLY, 0)
	c.folder.check(err)
	defer w.Close()
	r, err := os.Open(c.folder.file("a.yaml"))
	c.folder.check(err)
	defer r.Close()
	if !isBeingWritten(r) {
		t.Skip("no leases on this file system")
	}
	if got := c.all(); got.Status == nil || *got.Status != (model.SourceStatus{Listed: true}) {
		t.Errorf("status %+v, want not complete", got.Status)
	}
	if got := c.later(patience); len(got.Services) != 1 || got.Status == nil || !got.Status.Complete {
		t.Errorf("after %v: %+v", patience, got)
	}
}

// Who removes a directory removes its files first.
func TestFilesThatGoWithTheirDirectoryStay(t *testing.T) {
	c := newClocked(t)
	for i := range 10 {
		c.folder.write(fmt.Sprintf("%d.yaml", i), svc(fmt.Sprintf("web-%d", i), "10.96.0.1"))
	}
	c.all()
	for i := range 10 {
		name := fmt.Sprintf("%d.yaml", i)
		c.folder.remove(name)
		if got := c.later(settleTime/2, name); len(got.Services) != 0 {
			t.Fatalf("deleted while more files go: %+v", got)
		}
	}
	c.folder.check(os.Remove(c.folder.path))
	if got := c.later(settleTime); len(got.Services) != 0 || got.Status == nil || got.Status.Complete {
		t.Errorf("after the directory went: %+v", got)
	}
	if got := c.later(time.Hour); len(got.Services) != 0 {
		t.Errorf("an hour after the directory went: %+v", got)
	}
	// A new directory is given a moment to be filled.
	c.folder.made()
	if got := c.all(); len(got.Services) != 0 {
		t.Errorf("an empty directory is believed at once: %+v", got)
	}
	c.folder.write("0.yaml", svc("web-0", "10.96.0.1"))
	c.now = c.now.Add(returnTime)
	if _, all := c.retries(c.now); !all {
		t.Errorf("nothing to look at %v after the directory came back", returnTime)
	}
	if got := c.all(); deleted(got) != 9 || got.Status == nil || !got.Status.Complete {
		t.Errorf("%d Services deleted with status %+v, want 9 and complete", deleted(got), got.Status)
	}
}

func TestFilesGoneForGoodAreOneStep(t *testing.T) {
	c := newClocked(t)
	for _, name := range []string{"a", "b", "c"} {
		c.folder.write(name+".yaml", svc(name, "10.96.0.1"))
	}
	c.all()
	c.folder.remove("a.yaml")
	c.later(time.Millisecond, "a.yaml")
	c.folder.remove("b.yaml")
	c.folder.replace("c.yaml", svc("c", "10.96.0.2"))
	c.later(time.Millisecond, "b.yaml")
	if got := c.later(settleTime, "c.yaml"); len(got.Services) != 3 || deleted(got) != 2 {
		t.Errorf("step %+v, want both deletions and the change", got.Services)
	}
}

// BenchmarkChange measures one changed Service among many documents of a file.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newClocked(b)
			var texts []string
			for i := range n {
				name := fmt.Sprintf("web-%d", i)
				texts = append(texts, svc(name, "10.96.0.1"), slice(name, "10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5",
					"10.244.0.6", "10.244.0.7", "10.244.0.8", "10.244.0.9", "10.244.0.10"))
			}
			c.folder.write("a.yaml", docs(texts...))
			begin := time.Now()
			c.all()
			first := time.Since(begin)
			text := docs(texts[1:]...)
			b.ResetTimer()
			b.ReportMetric(float64(first.Milliseconds()), "first-ms")
			for i := range b.N {
				b.StopTimer()
				c.folder.write("a.yaml", svc("web-0", fmt.Sprintf("10.97.%d.1", i%250))+"---\n"+text)
				b.StartTimer()
				if got := c.later(time.Millisecond, "a.yaml"); len(got.Services) != 1 {
					b.Fatalf("%d Services changed: %s", len(got.Services), strings.Join(texts[:1], ""))
				}
			}
		})
	}
}
