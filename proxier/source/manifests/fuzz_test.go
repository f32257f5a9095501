// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"bytes"
	"testing"

	"fairlead/proxier/model"
	"fairlead/proxier/source/sourcetest"
)

// FuzzParse feeds any text to the parser, as YAML and as JSON: it may not
// panic, what it finds holds the model's invariants, and what it complains of
// is one printable line about a line that is there.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		docs(svc("web", "10.96.0.1"), slice("web-1", "10.244.0.1", "127.0.0.1"), "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n",
			serviceCIDR("kubernetes", "10.96.0.0/12", "fd00::/112", "x")),
		"apiVersion: v1\nkind: List\nitems:\n- " + `{apiVersion: v1, kind: Service, metadata: {name: "a\nCOMMIT"}, spec: {clusterIP: 1.2.3.4}}`,
		`{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "web"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}]}`,
		"a: &a [*a]\n<<: *a\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: web, <<: {namespace: n}}\nspec: &s {clusterIP: 10.0.0.1, x: *s}\n",
		"\r0", brokenText, "%YAML 1.1\n---\na: !!int 0x1\n...\n---\n", "\xef\xbb\xbf{", "? [a]\n: b\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, name := range []string{"a.yaml", "a.json"} {
			docs, p := (&parser{nodeName: "node-1"}).parse(name, text, nil)
			if p != nil {
				checkProblem(t, p, bytes.Count(text, []byte("\n"))+1)
				continue
			}
			changes := model.Changes{}
			for _, doc := range docs {
				for _, o := range doc.objects {
					put(&changes, o.id, o)
				}
			}
			if err := sourcetest.CheckChanges(changes); err != nil {
				t.Errorf("%s: found what breaks an invariant: %v", name, err)
			}
		}
	})
}

func checkProblem(t *testing.T, p *problem, lines int) {
	t.Helper()
	if p.line < 1 || p.line > lines {
		t.Errorf("problem in line %d of %d: %s", p.line, lines, p.text)
	}
	if p.text == "" || len(p.text) > 1000 {
		t.Errorf("problem's text is %d bytes long", len(p.text))
	}
	for _, c := range p.text {
		if c == '\n' || c == '\r' {
			t.Errorf("problem %q is not one line", p.text)
		}
	}
}
