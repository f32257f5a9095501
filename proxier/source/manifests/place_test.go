// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"os"
	"path/filepath"
	"testing"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

func TestDirectoryThatIsMadeLater(t *testing.T) {
	for _, tt := range []struct{ name, below string }{
		{"beside others", ""},
		{"with those above it", "a/b/c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &folder{t, filepath.Join(t.TempDir(), tt.below, "manifests")}
			r := start(t, f)
			r.logs.WaitFor("Cannot read the directory of manifests", "--manifests", `dir="`+f.path+`"`, "no such file or directory")
			r.WaitFor("the status", func(s *sourcetest.State) bool { return s.Steps == 1 })
			if got := r.Steps()[0].Status; got == nil || *got != (model.SourceStatus{}) {
				t.Errorf("status %+v, want not listed", got)
			}
			f.made().write("a.yaml", svc("web", "10.96.0.1"))
			r.WaitFor("web", is(true, true, map[string]string{"web": "10.96.0.1"}))
			r.logs.WaitFor("The directory of manifests can be read")
			if got := r.logs.Matching("Cannot read"); len(got) != 1 {
				t.Errorf("told %q, want once", got)
			}
		})
	}
}

func TestDirectoryThatGoesAndComesBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		goes func(f *folder)
	}{
		{"removed", func(f *folder) { f.check(os.RemoveAll(f.path)) }},
		{"renamed", func(f *folder) { f.check(os.Rename(f.path, f.path+".old")) }},
		{"replaced by a file", func(f *folder) {
			f.check(os.RemoveAll(f.path))
			f.check(os.WriteFile(f.path, nil, 0o644))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFolder(t).made()
			f.write("a.yaml", svc("web", "10.96.0.1"))
			f.write("b.yaml", svc("api", "10.96.0.2"))
			r := start(t, f)
			r.WaitFor("both", is(true, true, map[string]string{"web": "10.96.0.1", "api": "10.96.0.2"}))

			tt.goes(f)
			r.WaitFor("incompleteness", is(true, false, map[string]string{"web": "10.96.0.1", "api": "10.96.0.2"}))
			r.logs.WaitFor("Cannot read the directory of manifests any more, its objects stay as they are until it is back")

			f.check(os.RemoveAll(f.path))
			f.made().write("a.yaml", svc("web", "10.96.0.3"))
			r.WaitFor("what is there now", is(true, true, map[string]string{"web": "10.96.0.3"}))

			// It is watched again.
			f.replace("a.yaml", svc("web", "10.96.0.4"))
			r.WaitFor("a change", is(true, true, map[string]string{"web": "10.96.0.4"}))
			for i, step := range r.Steps() {
				if s, told := step.Services[key("web")]; told && s == nil {
					t.Errorf("step %d removes what was there all the time", i)
				}
			}
		})
	}
}

// mount lays out files as the kubelet does for a ConfigMap: links to
// "..data/name", which itself is a link to the version.
func mount(f *folder, version string, files map[string]string) {
	f.t.Helper()
	f.check(os.MkdirAll(f.file(version), 0o755))
	for name, text := range files {
		f.write(filepath.Join(version, name), text)
		if _, err := os.Lstat(f.file(name)); err != nil {
			f.check(os.Symlink(filepath.Join("..data", name), f.file(name)))
		}
	}
	f.check(os.Symlink(version, f.file("..data_tmp")))
	f.check(os.Rename(f.file("..data_tmp"), f.file("..data")))
}

func TestConfigMap(t *testing.T) {
	f := newFolder(t).made()
	mount(f, "..2026_01", map[string]string{"a.yaml": svc("web", "10.96.0.1"), "b.yaml": svc("api", "10.96.0.2")})
	r := start(t, f)
	r.WaitFor("the first version", is(true, true, map[string]string{"web": "10.96.0.1", "api": "10.96.0.2"}))

	mount(f, "..2026_02", map[string]string{"a.yaml": svc("web", "10.96.0.3"), "b.yaml": brokenText})
	f.remove("..2026_01")
	r.WaitFor("the second version", is(true, true, map[string]string{"web": "10.96.0.3", "api": "10.96.0.2"}))
	r.logs.WaitFor("Broken manifest file, its last good content stays in use", f.file("b.yaml")+":2: ")

	mount(f, "..2026_03", map[string]string{"a.yaml": svc("web", "10.96.0.4")})
	f.remove("b.yaml")
	f.remove("..2026_02")
	r.WaitFor("the third version", is(true, true, map[string]string{"web": "10.96.0.4"}))
}

func TestLinkToAFileElsewhere(t *testing.T) {
	f, elsewhere := newFolder(t).made(), newFolder(t).made()
	elsewhere.write("x", svc("web", "10.96.0.1"))
	f.check(os.Symlink(elsewhere.file("x"), f.file("a.yaml")))
	r := start(t, f)
	r.WaitFor("web", has(map[string]string{"web": "10.96.0.1"}))
	elsewhere.replace("x", svc("web", "10.96.0.2"))
	r.WaitFor("the file replaced", has(map[string]string{"web": "10.96.0.2"}))
	elsewhere.write("x", svc("web", "10.96.0.3"))
	r.WaitFor("the file written", has(map[string]string{"web": "10.96.0.3"}))
	f.check(os.Symlink(f.file("nowhere"), f.file("b.yaml")))
	r.WaitFor("a link that leads nowhere yet", is(true, false, map[string]string{"web": "10.96.0.3"}))
	f.remove("b.yaml")
	r.WaitFor("its end", is(true, true, map[string]string{"web": "10.96.0.3"}))
}

func TestDirectoryThatIsALink(t *testing.T) {
	old, next := newFolder(t).made(), newFolder(t).made()
	old.write("a.yaml", svc("web", "10.96.0.1"))
	next.write("a.yaml", svc("web", "10.96.0.2"))
	f := newFolder(t)
	f.check(os.Symlink(old.path, f.path))
	r := start(t, f)
	r.WaitFor("web", has(map[string]string{"web": "10.96.0.1"}))
	old.replace("a.yaml", svc("web", "10.96.0.3"))
	r.WaitFor("a change", has(map[string]string{"web": "10.96.0.3"}))
	f.check(os.Symlink(next.path, f.path+".new"))
	f.check(os.Rename(f.path+".new", f.path))
	r.WaitFor("the other directory", has(map[string]string{"web": "10.96.0.2"}))
	next.replace("a.yaml", svc("web", "10.96.0.4"))
	r.WaitFor("a change there", has(map[string]string{"web": "10.96.0.4"}))
}
