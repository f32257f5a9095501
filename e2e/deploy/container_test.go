// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead/e2e/lab"
)

// image is the unpacked image of "make image".
type image struct {
	rootfs     string
	entrypoint []string
	env        []string
}

// unpack unpacks the image as container runtimes do.
func unpack(t *testing.T) *image {
	t.Helper()
	archive := os.Getenv("FAIRLEAD_IMAGE")
	if archive == "" {
		archive = filepath.Join(root, "bin", "fairlead-image.tar")
	}
	if _, err := os.Stat(archive); err != nil {
		t.Fatalf("%v; \"make image\" makes it", err)
	}
	dir := t.TempDir()
	layout, bundle := filepath.Join(dir, "layout"), filepath.Join(dir, "bundle")
	if err := os.Mkdir(layout, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := run("tar", "-C", layout, "-xf", archive); err != nil {
		t.Fatal(err)
	}
	var index struct {
		Manifests []struct{ Annotations map[string]string }
	}
	readJSON(t, filepath.Join(layout, "index.json"), &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("%s has %d images, want one", archive, len(index.Manifests))
	}
	notes := index.Manifests[0].Annotations
	tag := notes["org.opencontainers.image.ref.name"]
	if name := notes["io.containerd.image.name"]; !strings.HasSuffix(name, ":"+tag) || strings.Count(name, "/") < 2 {
		t.Errorf("containerd would import it as %q, want a full name with the tag %s", name, tag)
	}
	if _, err := run("umoci", "unpack", "--image", layout+":"+tag, bundle); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Process struct{ Args, Env []string }
	}
	readJSON(t, filepath.Join(bundle, "config.json"), &config)
	return &image{rootfs: filepath.Join(bundle, "rootfs"), entrypoint: config.Process.Args, env: config.Process.Env}
}

func readJSON(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// pod runs containers of the DaemonSet on a node of a lab, with runc, which gets what
// the kubelet would have a container runtime give it; seccomp and resources apart.
type pod struct {
	t     *testing.T
	image *image
	spec  *corev1.PodSpec
	node  *lab.Node
	// volumes are directories and files by the name of the volume.
	volumes map[string]string
}

// command returns a command that runs a container. It is killed with this process.
func (p *pod) command(ctx context.Context, c corev1.Container) *exec.Cmd {
	p.t.Helper()
	bundle := p.t.TempDir()
	if _, err := run("runc", "spec", "--bundle", bundle); err != nil {
		p.t.Fatal(err)
	}
	file := filepath.Join(bundle, "config.json")
	var spec map[string]any
	readJSON(p.t, file, &spec)
	p.fill(spec, c)
	text, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	id := fmt.Sprintf("fairlead-test-%d-%s", os.Getpid(), filepath.Base(bundle)+c.Name)
	runcRoot := filepath.Join(bundle, "state")
	cmd := exec.CommandContext(ctx, "runc", "--root", runcRoot, "run", "--bundle", bundle, id)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	p.t.Cleanup(func() { _ = exec.Command("runc", "--root", runcRoot, "delete", "--force", id).Run() })
	return cmd
}

// fill makes runc's default configuration that of a container.
func (p *pod) fill(spec map[string]any, c corev1.Container) {
	sc := c.SecurityContext
	privileged := sc.Privileged != nil && *sc.Privileged
	spec["root"] = map[string]any{"path": p.image.rootfs, "readonly": sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem}
	process := spec["process"].(map[string]any)
	process["terminal"] = false
	process["args"] = append(slices.Clone(p.image.entrypoint), p.args(c)...)
	process["env"] = p.image.env
	process["noNewPrivileges"] = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
	delete(process, "rlimits")
	caps := capabilities(p.t, sc, privileged)
	process["capabilities"] = map[string]any{"bounding": caps, "effective": caps, "permitted": caps}

	mounts := spec["mounts"].([]any)
	if privileged {
		for _, m := range mounts {
			if m := m.(map[string]any); m["destination"] == "/sys" {
				m["options"] = []string{"nosuid", "noexec", "nodev", "rw"}
			}
		}
	}
	for _, m := range c.VolumeMounts {
		options := []string{"rbind", "rw"}
		if m.ReadOnly {
			options[1] = "ro"
		}
		from := p.volumes[m.Name]
		if from == "" {
			p.t.Fatalf("the test has no volume %s", m.Name)
		}
		mounts = append(mounts, map[string]any{"destination": m.MountPath, "source": from, "type": "bind", "options": options})
	}
	spec["mounts"] = mounts

	linux := spec["linux"].(map[string]any)
	if privileged {
		delete(linux, "maskedPaths")
		delete(linux, "readonlyPaths")
	}
	linux["cgroupsPath"] = "/fairlead-test-" + strconv.Itoa(os.Getpid())
	for _, ns := range linux["namespaces"].([]any) {
		if ns := ns.(map[string]any); ns["type"] == "network" {
			ns["path"] = p.node.Path()
		}
	}
}

// args are a container's, with the values of variables in them.
func (p *pod) args(c corev1.Container) []string {
	var out []string
	for _, a := range c.Args {
		out = append(out, strings.ReplaceAll(a, "$(NODE_NAME)", p.node.Label))
	}
	return out
}

// capabilities are those that a container gets, by their names.
func capabilities(t *testing.T, sc *corev1.SecurityContext, privileged bool) []string {
	t.Helper()
	if privileged {
		return ownCapabilities(t)
	}
	if !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Fatalf("keeps more capabilities than it is given: drops %v", sc.Capabilities.Drop)
	}
	var out []string
	for _, c := range sc.Capabilities.Add {
		out = append(out, "CAP_"+string(c))
	}
	return out
}

// ownCapabilities are those that this process could give away.
func ownCapabilities(t *testing.T) []string {
	t.Helper()
	names := strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
		NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE
		SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL
		SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`) // linux/capability.h
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nCapBnd:\t")
	hex, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i, name := range names {
		if set&(1<<i) != 0 {
			out = append(out, "CAP_"+name)
		}
	}
	return out
}
