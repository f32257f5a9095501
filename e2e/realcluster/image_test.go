// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The images of pods, which the nodes import.
const (
	// podImage holds pods' namespaces, and looks up names in the tests' own pods.
	podImage = "fairlead.test/pod:v1"
	// webImage is agnhost, which Kubernetes' own tests ask.
	webImage = "fairlead.test/agnhost:v1"
	dnsImage = "fairlead.test/coredns:v1"
)

// podArchive makes the archive of the image of e2e/realcluster/pod.
func podArchive(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "pod")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./pod")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	run(t, cmd)
	return archive(t, podImage, program)
}

// archive makes an OCI archive of an image that has one program and nothing else.
func archive(t *testing.T, image, program string) string {
	t.Helper()
	dir, name := t.TempDir(), filepath.Base(program)
	layout, layer, file := filepath.Join(dir, "layout"), filepath.Join(dir, "layer.tar"), filepath.Join(dir, name+".tar")
	run(t, exec.Command("tar", "-C", filepath.Dir(program), "-cf", layer, name))
	run(t, exec.Command("umoci", "init", "--layout", layout))
	run(t, exec.Command("umoci", "new", "--image", layout+":v1"))
	run(t, exec.Command("umoci", "raw", "add-layer", "--image", layout+":v1", layer))
	run(t, exec.Command("umoci", "config", "--image", layout+":v1", "--config.entrypoint", "/"+name))
	index := filepath.Join(layout, "index.json")
	text, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	const ref = `"org.opencontainers.image.ref.name":"v1"`
	named := bytes.Replace(text, []byte(ref), []byte(ref+`,"io.containerd.image.name":"`+image+`"`), 1)
	if err := os.WriteFile(index, named, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command("tar", "-C", layout, "-cf", file, "."))
	return file
}

// fairleadArchive is the archive that "make image" has made.
func fairleadArchive(t *testing.T) string {
	t.Helper()
	name, err := filepath.Abs(filepath.Join("..", "..", "bin", "fairlead-image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// imageTag is the tag of that image.
func imageTag(t *testing.T) string {
	t.Helper()
	index := run(t, exec.Command("tar", "-xOf", fairleadArchive(t), "index.json"))
	_, rest, found := strings.Cut(string(index), `"io.containerd.image.name":"docker.io/library/fairlead:`)
	tag, _, _ := strings.Cut(rest, `"`)
	if !found || tag == "" {
		t.Fatalf("the image has no name: %s", index)
	}
	return tag
}
