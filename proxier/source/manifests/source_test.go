// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

func TestFirstReadIsOneStep(t *testing.T) {
	f := newFolder(t).made()
	f.write("a.yaml", docs(svc("web", "10.96.0.1"), slice("web-1", "10.244.0.1")))
	f.write("b.yml", svc("api", "10.96.0.2"))
	f.write("c.json", `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "json"}, "spec": {"clusterIP": "10.96.0.3", "ports": [{"port": 1}]}}`)
	f.write("d.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node-2}\n")
	r := start(t, f)
	r.WaitFor("the objects", is(true, true, map[string]string{"web": "10.96.0.1", "api": "10.96.0.2", "json": "10.96.0.3"}))
	steps := r.Steps()
	if len(steps) != 1 {
		t.Fatalf("%d steps, want 1", len(steps))
	}
	if got := steps[0].EndpointSlices[key("web-1")]; got == nil || got.Service != key("web") || len(got.Endpoints) != 1 {
		t.Errorf("slice %+v", got)
	}
	if diff := cmp.Diff(&model.NodeChange{Node: &model.Node{Name: "node-1"}}, steps[0].Node); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
	if got := steps[0].Services[key("web")].Ports; !slices.Equal(got, []model.Port{{Protocol: model.TCP, Number: 80}}) {
		t.Errorf("ports %v", got)
	}
}

func TestFilesThatAreNotRead(t *testing.T) {
	f := newFolder(t).made()
	f.write(".hidden.yaml", svc("hidden", "10.96.0.1"))
	f.write("notes.txt", svc("notes", "10.96.0.2"))
	f.write("yaml", svc("bare", "10.96.0.3"))
	f.check(os.MkdirAll(f.file("sub.yaml"), 0o755))
	f.write("sub.yaml/a.yaml", svc("sub", "10.96.0.4"))
	r := start(t, f)
	r.WaitFor("nothing", is(true, true, nil))
	if r.broken() != 0 {
		t.Errorf("%v files are broken", r.broken())
	}
}

func TestChangesArriveInTime(t *testing.T) {
	f := newFolder(t).made()
	f.write("a.yaml", svc("web", "10.96.0.1"))
	r := start(t, f)
	r.WaitFor("web", has(map[string]string{"web": "10.96.0.1"}))
	var took []time.Duration
	for i := range 20 {
		ip := "10.96.1." + string(rune('1'+i%9))
		begin := time.Now()
		if i%2 == 0 {
			f.replace("a.yaml", svc("web", ip))
		} else {
			f.write("a.yaml", svc("web", ip))
		}
		r.WaitFor("the change", has(map[string]string{"web": ip}))
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > 100*time.Millisecond {
		t.Errorf("half of the changes took more than %v, want 100ms: %v", median, took)
	}
}

func TestRenamedFileChangesNothing(t *testing.T) {
	f := newFolder(t).made()
	f.write("a.yaml", svc("web", "10.96.0.1"))
	r := start(t, f)
	r.WaitFor("web", has(map[string]string{"web": "10.96.0.1"}))
	f.check(os.Rename(f.file("a.yaml"), f.file("b.yaml")))
	r.barrier(f)
	for i, step := range r.Steps()[1:] {
		if _, told := step.Services[key("web")]; told {
			t.Errorf("step %d is about the renamed file: %+v", i+1, step)
		}
	}
	if got := r.logs.Matching("duplicate"); len(got) > 0 {
		t.Errorf("the renamed file is a duplicate: %q", got)
	}
}

// A file that is being written stays what it was, however long that takes, and
// nobody cries.
func TestPartialWriteIsNotRead(t *testing.T) {
	f := newFolder(t).made()
	whole := docs(svc("web", "10.96.0.1"), svc("api", "10.96.0.2"))
	f.write("a.yaml", whole)
	r := start(t, f)
	r.WaitFor("both", has(map[string]string{"web": "10.96.0.1", "api": "10.96.0.2"}))

	next := docs(svc("web", "10.96.0.11"), svc("api", "10.96.0.12"))
	w, err := os.OpenFile(f.file("a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	f.check(err)
	defer w.Close()
	for _, cut := range []int{10, len(svc("web", "10.96.0.11")) - 5} {
		_, err = w.WriteAt([]byte(next[:cut]), 0)
		f.check(err)
		r.barrier(f)
	}
	_, err = w.WriteAt([]byte(next), 0)
	f.check(err)
	f.check(w.Close())
	r.WaitFor("the new content", has(map[string]string{"web": "10.96.0.11", "api": "10.96.0.12"}))
	for _, step := range r.Steps() {
		for _, name := range []string{"web", "api"} {
			if s, told := step.Services[key(name)]; told && s == nil {
				t.Errorf("%s was gone for a while", name)
			}
		}
	}
	if got := r.logs.Matching("Broken manifest"); len(got) > 0 {
		t.Errorf("logged %q", got)
	}
}

func TestBrokenFileKeepsItsLastGoodContent(t *testing.T) {
	for _, how := range []struct {
		name  string
		write func(f *folder, name, text string)
	}{{"replaced", (*folder).replace}, {"written in place", (*folder).write}} {
		t.Run(how.name, func(t *testing.T) {
			f := newFolder(t).made()
			f.write("a.yaml", svc("web", "10.96.0.1"))
			f.write("b.yaml", svc("api", "10.96.0.2"))
			r := start(t, f)
			r.WaitFor("both", is(true, true, map[string]string{"web": "10.96.0.1", "api": "10.96.0.2"}))

			how.write(f, "a.yaml", "# broken\n"+brokenText)
			r.logs.WaitFor("Broken manifest file, its last good content stays in use",
				f.file("a.yaml")+":3: not valid YAML: mapping values are not allowed in this context")
			how.write(f, "b.yaml", svc("api", "10.96.0.3"))
			r.WaitFor("the other file", is(true, true, map[string]string{"web": "10.96.0.1", "api": "10.96.0.3"}))
			if got := r.broken(); got != 1 {
				t.Errorf("%v files are broken, want 1", got)
			}

			how.write(f, "a.yaml", svc("web", "10.96.0.4"))
			r.WaitFor("the mended file", is(true, true, map[string]string{"web": "10.96.0.4", "api": "10.96.0.3"}))
			if got := r.broken(); got != 0 {
				t.Errorf("%v files are broken, want 0", got)
			}
			if got := r.logs.Matching("Broken manifest"); len(got) != 1 {
				t.Errorf("told %d times: %q", len(got), got)
			}
		})
	}
}

func TestBrokenFileThatIsRestored(t *testing.T) {
	f := newFolder(t).made()
	f.write("a.yaml", svc("web", "10.96.0.1"))
	r := start(t, f)
	r.WaitFor("web", has(map[string]string{"web": "10.96.0.1"}))
	f.replace("a.yaml", brokenText)
	r.logs.WaitFor("Broken manifest")
	f.replace("a.yaml", svc("web", "10.96.0.1"))
	r.logs.WaitFor("as it was before it broke", f.file("a.yaml"))
	r.barrier(f)
	if got := r.broken(); got != 0 {
		t.Errorf("%v files are broken, want 0", got)
	}
}

func TestFileThatNeverMadeSenseLeavesTheStatusIncomplete(t *testing.T) {
	for _, tt := range []struct {
		name   string
		mend   func(f *folder)
		listed map[string]string
	}{
		{"until it is mended", func(f *folder) { f.write("a.yaml", svc("web", "10.96.0.1")) }, map[string]string{"web": "10.96.0.1", "api": "10.96.0.2"}},
		{"until it is deleted", func(f *folder) { f.remove("a.yaml") }, map[string]string{"api": "10.96.0.2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFolder(t).made()
			f.write("a.yaml", brokenText)
			f.write("b.yaml", svc("api", "10.96.0.2"))
			r := start(t, f)
			r.WaitFor("the other file", is(true, false, map[string]string{"api": "10.96.0.2"}))
			r.logs.WaitFor("Broken manifest file, nothing is removed until it is mended or deleted", f.file("a.yaml")+":2: ")
			r.barrier(f)
			if got := r.broken(); got != 1 {
				t.Errorf("%v files are broken, want 1", got)
			}
			tt.mend(f)
			r.WaitFor("the status", is(true, true, tt.listed))
			if got := r.broken(); got != 0 {
				t.Errorf("%v files are broken, want 0", got)
			}
		})
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, f *folder)
		want string
	}{
		{"a link to nothing", func(t *testing.T, f *folder) { f.check(os.Symlink("nowhere", f.file("a.yaml"))) }, "a symbolic link to a file that does not exist"},
		{"a pipe", func(t *testing.T, f *folder) { f.check(syscall.Mkfifo(f.file("a.yaml"), 0o600)) }, "not a regular file"},
		{"too large", func(t *testing.T, f *folder) {
			f.write("a.yaml", svc("web", "10.96.0.1"))
			f.check(os.Truncate(f.file("a.yaml"), maxFileSize+(2<<20)))
		}, "66 MiB is larger than the limit of 64 MiB"},
		// Stands for every error of open: the test may run as root, who is not
		// refused by permissions.
		{"a link to itself", func(t *testing.T, f *folder) {
			f.check(os.Symlink("a.yaml", f.file("a.yaml")))
		}, "too many levels of symbolic links"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFolder(t).made()
			tt.make(t, f)
			f.write("b.yaml", svc("api", "10.96.0.2"))
			r := start(t, f)
			r.logs.WaitFor("Broken manifest file", f.file("a.yaml")+": "+tt.want)
			r.WaitFor("the other file", is(true, false, map[string]string{"api": "10.96.0.2"}))
			f.remove("a.yaml")
			r.WaitFor("completeness", is(true, true, map[string]string{"api": "10.96.0.2"}))
		})
	}
}

func TestDuplicatesTheFirstWins(t *testing.T) {
	f := newFolder(t).made()
	f.write("b.yaml", docs(svc("other", "10.96.0.9"), svc("web", "10.96.0.2"), svc("web", "10.96.0.3")))
	f.write("c.yaml", svc("web", "10.96.0.4"))
	r := start(t, f)
	r.WaitFor("the first", has(map[string]string{"other": "10.96.0.9", "web": "10.96.0.2"}))
	r.logs.WaitFor("Ignored a duplicate object", `kind="Service"`, `object="default/web"`,
		`used="`+f.file("b.yaml")+`:6"`, `ignored="`+f.file("c.yaml")+`:1"`)
	if got := r.logs.Matching("Ignored a duplicate object"); len(got) != 2 {
		t.Errorf("told %q, want both that are ignored", got)
	}
	if got := r.duplicates(); got != 2 {
		t.Errorf("%v duplicates, want 2", got)
	}
	f.replace("a.yaml", svc("web", "10.96.0.1"))
	r.WaitFor("an earlier file", has(map[string]string{"other": "10.96.0.9", "web": "10.96.0.1"}))
	f.remove("a.yaml")
	r.WaitFor("the next file", has(map[string]string{"other": "10.96.0.9", "web": "10.96.0.2"}))
	f.remove("b.yaml")
	r.WaitFor("the last file", has(map[string]string{"web": "10.96.0.4"}))
	r.barrier(f)
	if got := r.duplicates(); got != 0 {
		t.Errorf("%v duplicates, want 0", got)
	}
}

func TestRefusalsNameTheirPlace(t *testing.T) {
	f := newFolder(t).made()
	f.write("a.yaml", docs(svc("web", "10.96.0.1"), svc("bad", "300.1.2.3"), slice("web-1", "10.244.0.1", "127.0.0.1")))
	r := start(t, f)
	r.WaitFor("the rest", func(s *sourcetest.State) bool {
		return has(map[string]string{"web": "10.96.0.1"})(s) && len(s.EndpointSlices[key("web-1")].Endpoints) == 1
	})
	r.logs.WaitFor("Refused an object", f.file("a.yaml")+":6", "default/bad", "300.1.2.3")
	r.logs.WaitFor("Refused a part of an object", f.file("a.yaml")+":11", "default/web-1", "127.0.0.1")

	// A change elsewhere in the file is no new version of what is refused.
	f.replace("a.yaml", docs("# more\n"+svc("web", "10.96.0.2"), svc("bad", "300.1.2.3"), slice("web-1", "10.244.0.1", "127.0.0.1")))
	r.WaitFor("the change", has(map[string]string{"web": "10.96.0.2"}))
	if got := r.logs.Matching("Refused"); len(got) != 2 {
		t.Errorf("told %q, want each once", got)
	}
	want := `
# HELP fairlead_objects_refused_total Versions of objects that were refused, as a whole or in part, because they hold values that cannot be programmed safely.
# TYPE fairlead_objects_refused_total counter
fairlead_objects_refused_total{kind="EndpointSlice"} 1
fairlead_objects_refused_total{kind="Node"} 0
fairlead_objects_refused_total{kind="Pod"} 0
fairlead_objects_refused_total{kind="Service"} 1
fairlead_objects_refused_total{kind="ServiceCIDR"} 0
`
	if err := testutil.GatherAndCompare(r.reg, strings.NewReader(want), "fairlead_objects_refused_total"); err != nil {
		t.Error(err)
	}
}

func TestOtherKindsAndUnknownFieldsAreToldOnce(t *testing.T) {
	f := newFolder(t).made()
	pod := "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n"
	f.write("a.yaml", docs(pod, svc("web", "10.96.0.1")+"colour: red\n", pod))
	r := start(t, f)
	r.WaitFor("web", has(map[string]string{"web": "10.96.0.1"}))
	f.replace("b.yaml", docs(pod, svc("api", "10.96.0.2")))
	f.replace("a.yaml", docs(pod, svc("web", "10.96.0.1")+"colour: red\n", pod, svc("more", "10.96.0.3")))
	r.WaitFor("the others", has(map[string]string{"web": "10.96.0.1", "api": "10.96.0.2", "more": "10.96.0.3"}))
	if got := r.logs.Matching("Ignored objects of a kind", `kind="v1 Secret"`, `first="`+f.file("a.yaml")+`:1"`); len(got) != 1 {
		t.Errorf("the kind is told %d times: %q", len(got), r.logs.Lines())
	}
	if got := r.logs.Matching("Ignored a part of an object", f.file("a.yaml")+":9", `unknown field \"colour\"`); len(got) != 1 {
		t.Errorf("the field is told %d times: %q", len(got), r.logs.Lines())
	}
}

func TestNodeManifest(t *testing.T) {
	f := newFolder(t).made()
	f.write("a.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: other}\n")
	r := start(t, f)
	r.WaitFor("the list", is(true, true, nil))
	if got := r.Steps(); len(got) != 1 || got[0].Node != nil {
		t.Errorf("without a Node of its name: %+v", got)
	}
	node := "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nspec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\n"
	f.replace("b.yaml", node)
	r.WaitFor("the Node", func(s *sourcetest.State) bool {
		return s.Node != nil && cmp.Equal(s.Node.Node, &model.Node{Name: "node-1", ToBeDeleted: true})
	})
	f.remove("b.yaml")
	r.WaitFor("a Node of which nothing is known", func(s *sourcetest.State) bool {
		return s.Node != nil && cmp.Equal(s.Node.Node, &model.Node{Name: "node-1"})
	})
}

func TestServiceCIDRManifest(t *testing.T) {
	f := newFolder(t).made()
	f.write("a.yaml", serviceCIDR("kubernetes", "10.96.0.0/16", "nonsense", "fd00::/112"))
	r := start(t, f)
	r.WaitFor("its ranges, with the list", func(s *sourcetest.State) bool {
		c := s.ServiceCIDRs[model.ObjectKey{Name: "kubernetes"}]
		return s.Steps == 1 && s.Status.Listed && c != nil && len(c.CIDRs) == 2 && c.Contains(netip.MustParseAddr("10.96.9.9"))
	})
	r.logs.WaitFor("Refused a part of an object", f.file("a.yaml")+":1", `ServiceCIDR \"kubernetes\"`, "nonsense")
	f.replace("a.yaml", serviceCIDR("kubernetes", "10.97.0.0/16"))
	r.WaitFor("its new range", func(s *sourcetest.State) bool {
		return s.ServiceCIDRs[model.ObjectKey{Name: "kubernetes"}].Contains(netip.MustParseAddr("10.97.9.9"))
	})
	f.remove("a.yaml")
	r.WaitFor("no ServiceCIDR", func(s *sourcetest.State) bool { return len(s.ServiceCIDRs) == 0 })
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	if _, err := New(Config{NodeName: "n"}); err == nil || err.Error() != "make manifests source: no directory" {
		t.Errorf("New = %v", err)
	}
	if _, err := New(Config{Dir: t.TempDir()}); err == nil || err.Error() != "make manifests source: no node name" {
		t.Errorf("New = %v", err)
	}
	s, err := New(Config{Dir: "some/dir/", NodeName: "n"})
	if err != nil || !filepath.IsAbs(s.config.Dir) || !strings.HasSuffix(s.config.Dir, "some/dir") {
		t.Errorf("New = %+v, %v, want an absolute directory", s, err)
	}
}
