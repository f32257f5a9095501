// SPDX-License-Identifier: Apache-2.0

// Package deploy tests what is in deploy/: with helm, kustomize and Prometheus' parser,
// a real API server, and the agent that is told what the DaemonSet tells it.
package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// root is the top of the repository.
var root = filepath.Join("..", "..")

// inDeploy returns the name of a file of deploy/.
func inDeploy(elem ...string) string {
	return filepath.Join(append([]string{root, "deploy"}, elem...)...)
}

// tool returns the name of a program that e2e/tools builds.
func tool(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("FAIRLEAD_TOOLS_BIN")
	if dir == "" {
		dir = filepath.Join(root, ".cache", "bin")
	}
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%v; \"make tools\" builds it", err)
	}
	return file
}

// run runs a program and returns its standard output, or an error with all it has said.
func run(name string, args ...string) ([]byte, error) {
	var stderr strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s%s", filepath.Base(name), err, out, &stderr)
	}
	return out, nil
}

// helmTemplate renders the chart with values as --set has them.
func helmTemplate(t *testing.T, values ...string) ([]*unstructured.Unstructured, error) {
	t.Helper()
	args := []string{"template", "fairlead", inDeploy("chart"), "--namespace", "kube-system", "--kube-version", "v1.36.3"}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	out, err := run(tool(t, "helm"), args...)
	if err != nil {
		return nil, err
	}
	return decode(t, out), nil
}

// chart is helmTemplate where it must succeed.
func chart(t *testing.T, values ...string) []*unstructured.Unstructured {
	t.Helper()
	objs, err := helmTemplate(t, values...)
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

// base is what the Kustomize base makes.
func base(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	out, err := run(tool(t, "kustomize"), "build", inDeploy("base"))
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, out)
}

func decode(t *testing.T, text []byte) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var o unstructured.Unstructured
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) > 0 {
			out = append(out, &o)
		}
	}
}

// byName returns objects by kind and name.
func byName(objs []*unstructured.Unstructured) map[string]map[string]any {
	out := map[string]map[string]any{}
	for _, o := range objs {
		out[o.GetKind()+" "+o.GetName()] = o.Object
	}
	return out
}
