// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const serviceYAML = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports:
  - name: http
    port: 80
`

func parseText(name, text string) ([]placed, *problem) {
	return (&parser{nodeName: "node-1"}).parse(name, []byte(text), nil)
}

// summary returns the objects, warnings and ignored kinds of a file, each with
// its line.
func summary(docs []placed) []string {
	var out []string
	for _, doc := range docs {
		for _, o := range doc.objects {
			out = append(out, fmt.Sprintf("%d: %s %s", doc.line+o.line-1, o.kind, strings.TrimPrefix(o.key.String(), "/")))
		}
		for _, w := range doc.warnings {
			out = append(out, fmt.Sprintf("%d: warning: %s", doc.line+w.line-1, w.text))
		}
		for _, i := range doc.ignored {
			out = append(out, fmt.Sprintf("%d: ignored: %s", doc.line+i.line-1, i.kind))
		}
	}
	return out
}

func TestParseFinds(t *testing.T) {
	for _, tt := range []struct {
		name string
		file string
		text string
		want []string
	}{
		{name: "nothing in an empty file"},
		{name: "nothing in a file of comments", text: "# a\n\n# b\n"},
		{name: "nothing in empty documents", text: "---\n---\n# c\n---\nnull\n---\n~\n"},
		{name: "a Service, in the default namespace", text: serviceYAML, want: []string{"1: Service default/web"}},
		{
			name: "the documents of a file",
			text: "# first\n---\n" + serviceYAML + "---\n# none\n---  # second\n" + strings.Replace(serviceYAML, "web", "api", 1) + "...\n",
			want: []string{"3: Service default/web", "14: Service default/api"},
		},
		{
			name: "documents that end before the next begins",
			text: serviceYAML + "...\n---\n" + strings.Replace(serviceYAML, "web", "api", 1),
			want: []string{"1: Service default/web", "11: Service default/api"},
		},
		{
			name: "a document on the line of its marker",
			text: "--- {apiVersion: v1, kind: Node, metadata: {name: node-1}}\n",
			want: []string{"1: Node node-1"},
		},
		{
			name: "a directive in front of the first document",
			text: "%YAML 1.1\n---\n" + serviceYAML,
			want: []string{"3: Service default/web"},
		},
		{
			name: "lines that end in CR LF, and a byte order mark",
			text: "\xef\xbb\xbf---\r\n" + strings.ReplaceAll(serviceYAML, "\n", "\r\n") + "---\r\n" +
				strings.ReplaceAll(strings.Replace(serviceYAML, "web", "api", 1), "\n", "\r\n"),
			want: []string{"2: Service default/web", "11: Service default/api"},
		},
		{
			name: "dashes that are no marker",
			text: serviceYAML + "# ---\n  \n",
			want: []string{"1: Service default/web"},
		},
		{
			name: "a List",
			text: "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n" +
				"- apiVersion: v1\n  kind: List\n  items:\n  - {apiVersion: v1, kind: Node, metadata: {name: node-1}}\n",
			want: []string{"4: Service default/a", "10: Node node-1"},
		},
		{
			name: "typed lists, whose elements need not say what they are",
			text: "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n" +
				"---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- metadata: {name: b, namespace: n}\n" +
				"---\napiVersion: v1\nkind: NodeList\nitems:\n- metadata: {name: node-1}\n- metadata: {name: node-2}\n" +
				"---\napiVersion: v1\nkind: List\nitems: []\n---\napiVersion: v1\nkind: List\n" +
				"---\napiVersion: networking.k8s.io/v1\nkind: ServiceCIDRList\nitems:\n- metadata: {name: kubernetes}\n",
			want: []string{"4: Service default/a", "9: EndpointSlice n/b", "14: Node node-1", "27: ServiceCIDR kubernetes"},
		},
		{
			name: "other kinds once each, and the same kinds of other groups",
			text: "apiVersion: apps/v1\nkind: Deployment\nspec: [anything\n  ]\n---\napiVersion: v1\nkind: List\nitems:\n" +
				"- {apiVersion: v1, kind: Secret}\n- {apiVersion: v1, kind: Secret}\n- {apiVersion: serving.knative.dev/v1, kind: Service}\n",
			want: []string{"1: ignored: apps/v1 Deployment", "9: ignored: v1 Secret", "11: ignored: serving.knative.dev/v1 Service"},
		},
		{
			name: "pods of this node, or of none, and host ports that are 0",
			text: "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n  spec: {nodeName: node-1}\n" +
				"- metadata: {name: c}\n  spec: {nodeName: node-2}\n" +
				"---\napiVersion: v1\nkind: Pod\nmetadata: {name: d, namespace: n}\nspec:\n  containers:\n  - ports:\n    - {containerPort: 80}\n" +
				"    - {containerPort: 81, hostPort: 0}\n  initContainers: [{ports: [{containerPort: 82, hostPort: 0}]}]\n",
			want: []string{
				"4: Pod default/a", "5: Pod default/b", "10: Pod n/d",
				"18: warning: hostPort 0 is not a port number (1 to 65535), the container has none",
				"17: warning: hostPort 0 is not a port number (1 to 65535), the container has none",
			},
		},
		{
			name: "a pod without an address for its host ports",
			text: "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}\n" +
				"---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}\nstatus: {podIP: 10.0.0.1}\n",
			want: []string{
				"1: Pod default/a", "1: warning: the pod has host ports and no address to lead them to; write it to status.podIPs",
				"6: Pod default/b",
			},
		},
		{
			name: "unknown fields as warnings with their line",
			text: serviceYAML + "    nodeport: 30080\n  Type: NodePort\nstat.us: {}\n---\n" + serviceYAML + "  colour: red\n",
			want: []string{
				"1: Service default/web",
				`9: warning: unknown field "spec.ports[0].nodeport"`,
				`10: warning: unknown field "spec.Type"`,
				`11: warning: unknown field "stat.us"`,
				"13: Service default/web",
				`21: warning: unknown field "spec.colour"`,
			},
		},
		{
			name: "anchors, aliases and merge keys",
			text: "apiVersion: v1\nkind: Service\nmetadata: {name: &n web, labels: {a: *n}}\nspec:\n  clusterIP: 10.96.0.10\n" +
				"  ports:\n  - &p {name: a, port: 80}\n  - <<: *p\n    name: b\n  - {<<: [*p, {port: 1}], name: c}\n",
			want: []string{"1: Service default/web"},
		},
		{
			name: "numbers, booleans and strings in YAML's other spellings",
			text: "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  creationTimestamp: 2026-01-01T00:00:00Z\n  annotations: {1: \"2\", true: 'x'}\n" +
				"spec:\n  publishNotReadyAddresses: True\n  clusterIP: !!str 10.96.0.10\n  ports: [{port: 0x50, name: !!str 8080}, {port: +81, name: b}, {port: 1_000, name: c}]\n",
			want: []string{"1: Service default/web"},
		},
		{
			name: "JSON, several values in a file, with surrogate pairs",
			file: "a.json",
			text: "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n\t\"metadata\": {\"name\": \"web\", \"labels\": {\"a\": \"\\ud83d\\ude00\"}},\n" +
				"\t\"spec\": {\"clusterIP\": \"10.96.0.10\", \"publishNotReadyAddresses\": true, \"ports\": [{\"port\": 80,\n\"protocl\": \"UDP\"}], \"selector\": null}\n}\nnull\n" +
				"{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"node-1\"}}",
			want: []string{"1: Service default/web", "9: Node node-1", `6: warning: unknown field "spec.ports[0].protocl"`},
		},
		{
			name: "JSON in a YAML file, with tabs",
			text: "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\", \"metadata\": {\"name\": \"web\"}}\n",
			want: []string{"1: Service default/web"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.file == "" {
				tt.file = "a.yaml"
			}
			docs, p := parseText(tt.file, tt.text)
			if p != nil {
				t.Fatalf("parse: %s", p.in(tt.file))
			}
			if diff := cmp.Diff(tt.want, summary(docs)); diff != "" {
				t.Errorf("parse (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseSaysWhatIsWrongAndWhere(t *testing.T) {
	// good stands in front, so that lines count within the file.
	good := serviceYAML + "---\n" // 9 lines
	for _, tt := range []struct {
		name string
		file string
		text string
		want string
	}{
		{"bad indentation", "", good + "kind: Service\n  apiVersion: broken\n", "11: not valid YAML: mapping values are not allowed in this context"},
		{"bad indentation further in", "", good + "metadata:\n  name: x\n foo: y\nb: 1\n", "12: not valid YAML: did not find expected key"},
		{"bad indentation in a list", "", "a:\n  b:\n  - c: 1\n    d: 2\n   e: 3\nf: 4\n", "5: not valid YAML: did not find expected key"},
		{"in the first line", "", "a: @b\nc: 1\n", "1: not valid YAML: found character that cannot start any token"},
		{"in the first line of a later document", "", good + "a: @b\nc: 1\n", "10: not valid YAML: found character that cannot start any token"},
		{"a tab", "", good + "a:\n\tb: 1\n", "11: not valid YAML: found character that cannot start any token"},
		{"a quote that is not closed, where it opens", "", good + "a: 1\nb: \"x\nc: 1\nd: 2\n", "11: not valid YAML: found unexpected end of stream"},
		{"a bracket that is not closed, where it opens", "", good + "apiVersion: v1\nkind: Service\nmetadata: [\n", "12: not valid YAML: did not find expected node content"},
		{"a key without a colon", "", good + "a: 1\n\nb\n", "12: not valid YAML: could not find expected ':'"},
		{"an unknown anchor", "", good + "a: 1\nb: *y\n", "11: not valid YAML: unknown anchor 'y' referenced"},
		{"a control character", "", good + "a: 1\nb: \x00\n", "11: not valid YAML: control characters are not allowed"},
		{"not UTF-8", "", good + "a: 1\nb: \xff\xfe\n", "11: not valid YAML: invalid leading UTF-8 octet"},
		{"a scalar", "", good + "hello\n", "10: not an object with apiVersion and kind"},
		{"a list", "", good + "- a\n", "10: not an object with apiVersion and kind"},
		{"no kind, as in half a file", "", good + "apiVersion: v1\n", "10: the object has no kind"},
		{"no apiVersion", "", good + "# c\nkind: Service\n", "11: the object has no apiVersion"},
		{"a kind that is none", "", good + "apiVersion: v1\nkind: [Service]\n", "11: kind is not a string"},
		{"a key twice at the top", "", serviceYAML + "kind: Service\n", `9: key "kind" is there twice`},
		{"a key twice further in", "", good + serviceYAML + "    port: 81\n", `18: key "port" is there twice`},
		{"a key twice among many", "", serviceYAML + "  selector: {" + manyKeys() + ", k3: x}\n", `9: key "k3" is there twice`},
		{"a key twice in other spelling", "", serviceYAML + "    \"port\": 81\n", `9: key "port" is there twice`},
		{"a word for a number", "", good + strings.Replace(serviceYAML, "80", "eighty", 1), "17: spec.ports.port: string where a number is wanted"},
		{"a number that does not fit", "", strings.Replace(serviceYAML, "80", "99999999999", 1), "8: spec.ports.port: number 99999999999 does not fit"},
		{"a number for a word", "", serviceYAML + "    protocol: 6\n", "9: spec.ports.protocol: number where a string is wanted"},
		{"a number for a word in a list", "", serviceYAML + "  clusterIPs:\n  - 10.0.0.1\n  - 5\n", "11: spec.clusterIPs: number where a string is wanted"},
		{"a list for an object", "", "apiVersion: v1\nkind: Service\nspec:\n- a\n", "4: spec: array where an object is wanted"},
		{"an object for a list", "", "apiVersion: v1\nkind: Service\nspec:\n  ports: {}\n", "4: spec.ports: object where a list is wanted"},
		{"a word for a boolean", "", serviceYAML + "  publishNotReadyAddresses: yes please\n", "9: spec.publishNotReadyAddresses: string where a boolean is wanted"},
		{"in a field that decodes itself", "", good + serviceYAML + "    targetPort: {}\n", "18: spec.ports.targetPort: object where a number is wanted"},
		{"a time that is none", "", good + "apiVersion: v1\nkind: Node\nmetadata: {name: node-1, deletionTimestamp: soon}\n", `10: parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006"`},
		{"in an element of a List", "", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  spec:\n    ports: 1\n", "7: spec.ports: number where a list is wanted"},
		{"a List of something else", "", "apiVersion: v1\nkind: List\nitems:\n- hello\n", "4: not an object with apiVersion and kind"},
		{"a List that is none", "", "apiVersion: v1\nkind: List\nitems: {}\n", "3: items is not a list"},
		{"a tag of one's own", "", serviceYAML + "  externalName: !env X\n", `9: tag "!env" is not supported`},
		{"binary", "", serviceYAML + "  externalName: !!binary aGk=\n", `9: tag "!!binary" is not supported`},
		{"infinity", "", strings.Replace(serviceYAML, "80", ".inf", 1), `8: ".inf" is not a number`},
		{"a key that is no string", "", serviceYAML + "  [a]: b\n", "9: a key is not a string"},
		{"a merge of a scalar", "", serviceYAML + "  <<: 1\n", "9: a merge key takes a mapping or a list of mappings"},
		{"JSON cut short", "a.json", "{\n\"kind\":\n", "2: not valid JSON: it ends in the middle of a value"},
		{"JSON without a comma", "a.json", "{\n\"a\": 1\n\"b\": 2}\n", "3: not valid JSON: invalid character '\"' after object key:value pair"},
		{"JSON with a comma too many", "a.json", "{\n\"a\": [1,\n],\n\"b\": 2}\n", "3: not valid JSON: invalid character ']' looking for beginning of value"},
		{"YAML in a JSON file", "a.json", serviceYAML, "1: not valid JSON: invalid character 'a' looking for beginning of value"},
		{"JSON with a key twice", "a.json", "{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\"spec\": {\n\"type\": \"x\",\n\"type\": \"y\"}}", `4: key "type" is there twice`},
		{"JSON with a word for a number", "a.json", "{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\"spec\": {\n\"ports\": [{\"port\":\n\"x\"}]}}", "4: spec.ports.port: string where a number is wanted"},
		{"a name with line breaks", "", "apiVersion: v1\nkind: Service\n\"a\\nb\": 1\n\"a\\nb\": 2\n", `4: key "a\nb" is there twice`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.file == "" {
				tt.file = "a.yaml"
			}
			docs, p := parseText(tt.file, tt.text)
			if p == nil {
				t.Fatalf("parse finds %q, want an error", summary(docs))
			}
			if got := fmt.Sprintf("%d: %s", p.line, p.text); got != tt.want {
				t.Errorf("parse = %s\nwant    %s", got, tt.want)
			}
		})
	}
}

func manyKeys() string {
	var keys []string
	for i := range 2 * fewKeys {
		keys = append(keys, fmt.Sprintf("k%d: v", i))
	}
	return strings.Join(keys, ", ")
}

// Files that expand to far more than they are, or nest without end, are refused
// quickly.
func TestParseIsBounded(t *testing.T) {
	var laughs strings.Builder
	laughs.WriteString("apiVersion: v1\nkind: Service\nx0: &x0 [lol,lol,lol,lol,lol,lol,lol,lol,lol,lol]\n")
	for i := 1; i < 30; i++ {
		fmt.Fprintf(&laughs, "x%d: &x%d [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*x%d,", i-1), 10))
	}
	long := strings.Repeat("x", 1<<20)
	mergedKeys := make([]string, 10000)
	for i := range mergedKeys {
		mergedKeys[i] = fmt.Sprintf("k%d: v", i)
	}
	for _, tt := range []struct{ name, file, text, want string }{
		{"aliases of aliases", "a.yaml", laughs.String(), "aliases expand to more than 8 MiB"},
		{"an anchor that holds itself", "a.yaml", serviceYAML + "  x: &a [*a, *a]\n", "nested deeper than 100 levels"},
		{"a mapping that merges itself", "a.yaml", serviceYAML + "  x: &a {b: 1, <<: *a}\n", "a merged mapping with a merge key of its own is not supported"},
		{"a list that merges itself", "a.yaml", serviceYAML + "  <<: &a [*a]\n", "a merge key takes a mapping or a list of mappings"},
		{"aliases of a long text", "a.yaml", serviceYAML + "  x: &a " + long + "\n  y: [" + strings.Repeat("*a,", 100) + "]\n", "aliases expand to more than 8 MiB"},
		{"merging the same over and over", "a.yaml", serviceYAML + "  x: &a {" + strings.Join(mergedKeys, ", ") + "}\n  y: {<<: [" + strings.Repeat("*a,", 10000) + "]}\n", "aliases expand to more than 8 MiB"},
		{"aliases as elements of a List", "a.yaml", "apiVersion: v1\nkind: List\nx: &a {apiVersion: v1, kind: Service}\nitems: [" + strings.Repeat("*a,", 1000) + "]\n", "an element of a list is an alias, which is not supported"},
		{"brackets", "a.yaml", strings.Repeat("[", 100000), "not valid YAML: exceeded max depth of 10000"},
		{"brackets in an object", "a.yaml", serviceYAML + "  x: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "\n", "nested deeper than 100 levels"},
		{"brackets in JSON", "a.json", strings.Repeat("[", 1<<20), "not valid JSON: nested too deep"},
		{"lists of lists", "a.yaml", strings.Repeat("{apiVersion: v1, kind: List, items: [", 10) + strings.Repeat("]}", 10), "lists are nested deeper than 4 levels"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			docs, p := parseText(tt.file, tt.text)
			if p == nil {
				t.Fatalf("parse finds %q, want an error", summary(docs))
			}
			if p.text != tt.want {
				t.Errorf("parse = %.200s, want %s", p.text, tt.want)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("parse took %v", took)
			}
		})
	}
}

func TestParseKeepsWhatHasNotChanged(t *testing.T) {
	p := &parser{nodeName: "node-1"}
	api := strings.Replace(serviceYAML, "web", "api", 1)
	before, problem := p.parse("a.yaml", []byte(serviceYAML+"---\n"+api), nil)
	if problem != nil {
		t.Fatal(problem.in("a.yaml"))
	}
	after, problem := p.parse("a.yaml", []byte(serviceYAML+"# one more line\n---\n"+api), before)
	if problem != nil {
		t.Fatal(problem.in("a.yaml"))
	}
	if after[1].document != before[1].document || after[1].fresh {
		t.Error("a document was parsed again although it is the same")
	}
	if after[0].document == before[0].document || !after[0].fresh {
		t.Error("a document was not parsed again although it is another")
	}
	if got, want := after[1].line, 10; got != want {
		t.Errorf("the document moved to line %d, want %d", got, want)
	}
}
