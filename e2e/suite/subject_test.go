// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"fairlead/e2e/lab"
)

// subject is a proxy and a mode of it.
type subject interface {
	// name is that of the subtest.
	name() string
	// supported tells why this machine cannot run it; the error then wraps
	// lab.ErrNotSupported.
	supported(ctx context.Context) error
	// feed makes what its proxies get their objects from.
	feed(ctx context.Context, topo *topology) (feed, error)
	// asked tells whether it is asked a scenario; the tracer asks all.
	asked(sc scenario) bool
	// command is the proxy for a node, which gets its objects from f.
	command(ctx context.Context, node *lab.Node, f feed) *exec.Cmd
}

// subjects are what has to behave as the reference does.
func subjects() []subject {
	return []subject{
		fairlead{mode: "iptables", variant: lab.NFT},
		fairlead{mode: "iptables", variant: lab.Legacy},
		fairlead{mode: "iptables", variant: lab.NFT, form: "compact"},
		fairlead{mode: "iptables", variant: lab.Legacy, form: "compact"},
		// The kernel that has IPVS has no NAT for the nft variant.
		fairlead{mode: "ipvs", variant: lab.Legacy},
		fairlead{mode: "nftables", variant: lab.NFT},
	}
}

// fairlead is the agent of this tree.
type fairlead struct {
	mode    string
	variant lab.Variant
	// form is that of the rules, empty for the ordinary one.
	form string
}

var _ subject = fairlead{}

func (s fairlead) name() string {
	return strings.TrimSuffix(s.mode+"-"+string(s.variant)+"-"+s.form, "-")
}

// asked leaves to the tracer what the form of the rules has nothing to do with:
// each subject takes minutes.
func (s fairlead) asked(sc scenario) bool {
	return s.form == "" || strings.HasPrefix(sc.name, "hairpin-")
}

func (s fairlead) supported(ctx context.Context) error {
	if _, err := os.Stat("/proc/net/ip_vs"); s.mode == "ipvs" && err != nil {
		return fmt.Errorf("no IPVS in this kernel: %w", lab.ErrNotSupported)
	}
	return lab.VariantSupported(ctx, s.variant)
}

func (s fairlead) feed(context.Context, *topology) (feed, error) { return newDirectory() }

func (s fairlead) command(ctx context.Context, node *lab.Node, f feed) *exec.Cmd {
	cidrs := serviceCIDRs
	if s.mode == "nftables" { // where nobody is refused by a mark that has gone
		cidrs = "10.96.0.0/27,fd00:10:96::/122"
	}
	flags := []string{
		"-v=2",
		"--proxy-mode", s.mode, "--iptables-variant", string(s.variant),
		"--hostname-override", node.Label, "--cluster-cidr", clusterCIDR,
		"--service-cidrs", cidrs, "--manifests", string(f.(directory)),
		"--pod-masquerade", "off", "--state-file", "", // kube-proxy does not masquerade pods
	}
	if s.mode == "ipvs" { // what one scenario leaves is not for the next to meet
		flags = append(flags, "--ipvs-graceful-period", "0s", "--ipvs-udp-timeout", "2s")
	}
	if s.form != "" {
		flags = append(flags, "--iptables-"+s.form)
	}
	return node.Command(ctx, binary, flags...)
}

// kubeProxy is the reference. It takes the variant of iptables that it finds
// first.
type kubeProxy struct {
	binary  string
	variant lab.Variant
	// tools is a directory with that variant's commands under their plain names.
	tools string
}

var _ subject = kubeProxy{}

// newKubeProxy makes dir the directory of commands.
func newKubeProxy(binary, dir string, v lab.Variant) (kubeProxy, error) {
	return kubeProxy{binary: binary, variant: v, tools: dir}, v.Link(dir)
}

func (s kubeProxy) name() string { return string(s.variant) }

func (s kubeProxy) asked(scenario) bool { return true }

func (s kubeProxy) supported(ctx context.Context) error { return lab.VariantSupported(ctx, s.variant) }

func (s kubeProxy) feed(ctx context.Context, topo *topology) (feed, error) {
	return newAPIServer(ctx, topo.lab)
}

func (s kubeProxy) command(ctx context.Context, node *lab.Node, f feed) *exec.Cmd {
	cmd := node.Command(ctx, s.binary, "-v=2",
		"--proxy-mode=iptables", "--hostname-override="+node.Label, "--cluster-cidr="+clusterCIDR,
		"--kubeconfig="+f.(*apiServer).Kubeconfig(),
		"--iptables-min-sync-period=50ms",
		// Limits of the machine's kernel are not for a lab to change.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--oom-score-adj=0")
	cmd.Env = append(os.Environ(), "PATH="+s.tools+":"+os.Getenv("PATH"))
	return cmd
}

// process is a proxy that runs.
type process struct {
	label string
	cmd   *exec.Cmd
	// log is what it printed; only once done is closed.
	log  bytes.Buffer
	done chan struct{}
}

// start starts a proxy from a thread that lives as long as it does: the kernel
// kills it when the thread that started it ends.
func start(label string, cmd *exec.Cmd) (*process, error) {
	p := &process{label: label, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // cmd.ProcessState says how it ended
			close(p.done)
		}
	}()
	return p, <-started
}

// stop ends a proxy, which it may not have done by itself before.
func (p *process) stop() error {
	select {
	case <-p.done:
		return fmt.Errorf("the proxy on %s ended by itself (%s)", p.label, p.cmd.ProcessState)
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(10 * time.Second):
		err := p.cmd.Process.Kill()
		<-p.done
		return errors.Join(fmt.Errorf("the proxy on %s did not end within 10 s of SIGTERM", p.label), err)
	}
}
