// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The sockets of etcd, relative to the working directory of both programs. etcd
// wants its addresses to look as if they had a port.
const (
	etcdSocket     = "etcd.sock:0"
	etcdPeerSocket = "peer.sock:0"
)

// maxSocketName is the longest name of a Unix socket, without the final NUL.
const maxSocketName = 107

// pollInterval is the pause between two questions whether a program is ready.
const pollInterval = 50 * time.Millisecond

// errStopped tells of a call that needs a running API server.
var errStopped = errors.New("it is not running")

// startEtcdLocked starts etcd and waits for it; c.mu must be held.
func (c *Cluster) startEtcdLocked(ctx context.Context) error {
	socket := filepath.Join(c.dir, etcdSocket)
	if len(socket) > maxSocketName {
		return fmt.Errorf("start etcd: %s is too long for the name of a socket", socket)
	}
	client, peer := "unix://"+etcdSocket, "unix://"+etcdPeerSocket
	argv := append([]string{
		c.bin.etcd,
		"--name=e2e",
		"--data-dir=etcd",
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=e2e=" + peer,
		"--unsafe-no-fsync",
		"--log-level=warn",
	}, c.cfg.EtcdFlags...)
	http := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	ready := func(ctx context.Context) error { return get(ctx, http, "http://etcd/readyz") }
	var err error
	c.etcd, err = c.launch(ctx, argv, ready)
	return err
}

// get fails unless url is answered with 200.
func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, resp.Status)
	}
	return nil
}

// startAPIServerLocked starts the API server and waits for it; c.mu must be
// held.
func (c *Cluster) startAPIServerLocked(ctx context.Context) error {
	var err error
	c.api, err = c.launch(ctx, append([]string{c.bin.apiServer}, c.apiServerFlags()...), c.ready)
	return err
}

func (c *Cluster) apiServerFlags() []string {
	var cidrs []string
	for _, p := range c.cfg.ServiceCIDRs {
		cidrs = append(cidrs, p.String())
	}
	flags := []string{
		"--etcd-servers=unix://" + etcdSocket,
		"--bind-address=" + c.bindAddress(),
		"--advertise-address=" + c.cfg.Address.String(),
		"--secure-port=" + strconv.Itoa(int(c.port.number)),
		"--permit-port-sharing=true", // see reservedPort
		"--tls-cert-file=" + serverCertFile,
		"--tls-private-key-file=" + serverKeyFile,
		"--token-auth-file=" + tokenFile,
		"--service-account-key-file=" + serviceAccountKeyFile,
		"--service-account-signing-key-file=" + serviceAccountKeyFile,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-cluster-ip-range=" + strings.Join(cidrs, ","),
		"--authorization-mode=RBAC",
		"--allow-privileged=true",
	}
	if !c.cfg.ServiceAccounts {
		flags = append(flags, "--disable-admission-plugins=ServiceAccount")
	}
	if c.cfg.Address.IsLoopback() {
		// No EndpointSlice may have a loopback address.
		flags = append(flags, "--endpoint-reconciler-type=none")
	}
	return append(flags, c.cfg.APIServerFlags...)
}

// bindAddress returns the address that the API server binds.
func (c *Cluster) bindAddress() string {
	if len(c.cfg.AlsoReachableAt) == 0 {
		return c.cfg.Address.String()
	}
	for _, a := range slices.Concat(c.cfg.AlsoReachableAt, []netip.Addr{c.cfg.Address}) {
		if !a.Is4() {
			return "::" // 0.0.0.0, too
		}
	}
	return "0.0.0.0"
}

// ready fails unless the API server can be worked with. Some of that is made
// only after /readyz says yes.
func (c *Cluster) ready(ctx context.Context) error {
	if err := c.clientset.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
		return fmt.Errorf("get /readyz: %w", err)
	}
	if _, err := c.clientset.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{}); err != nil {
		return fmt.Errorf("get namespace: %w", err)
	}
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}},
	}
	_, err := c.clientset.CoreV1().Services(metav1.NamespaceDefault).
		Create(ctx, svc, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return fmt.Errorf("try to create service: %w", err)
	}
	return nil
}

// launch starts a program and waits until it is ready. If it returns an error,
// the program does not run.
func (c *Cluster) launch(ctx context.Context, argv []string, ready func(context.Context) error) (*process, error) {
	p, err := startProcess(c.dir, argv, c.cfg.Prefix)
	if err != nil {
		return nil, err
	}
	if err := c.await(ctx, p, ready); err != nil {
		if p.running() {
			err = errors.Join(err, p.kill())
		}
		return nil, err
	}
	return p, nil
}

// await asks until p is ready, has ended, or ran out of time. In the latter
// cases the error tells the last answer and p's last log lines.
func (c *Cluster) await(ctx context.Context, p *process, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ReadyTimeout)
	defer cancel()
	for {
		err := askOnce(ctx, ready)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pollInterval):
			continue
		case <-p.exited:
		case <-ctx.Done():
		}
		return p.failure(fmt.Errorf("wait for %s: %w", p.name, err))
	}
}

// askOnce bounds one question, which may hang on a program that does not accept
// connections yet.
func askOnce(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return ready(ctx)
}

// StopAPIServer kills the API server and keeps etcd: connections break, and new
// ones are refused, until StartAPIServer.
func (c *Cluster) StopAPIServer() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api == nil {
		return fmt.Errorf("stop API server: %w", errStopped)
	}
	err := c.api.kill()
	c.api = nil
	return err
}

// StartAPIServer starts the API server again after StopAPIServer, with the same
// address, port, credentials and objects, and waits for it as Start does.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.etcd == nil {
		return fmt.Errorf("start API server without etcd: %w", errStopped)
	}
	if c.api != nil {
		return errors.New("start API server: it is running")
	}
	return c.startAPIServerLocked(ctx)
}

// PauseAPIServer makes the API server hang: connections stay and are accepted,
// and nothing answers, until ResumeAPIServer.
func (c *Cluster) PauseAPIServer() error { return c.signalAPIServer(syscall.SIGSTOP) }

// ResumeAPIServer lets the API server go on after PauseAPIServer.
func (c *Cluster) ResumeAPIServer() error { return c.signalAPIServer(syscall.SIGCONT) }

func (c *Cluster) signalAPIServer(s syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api == nil {
		return fmt.Errorf("send %v to API server: %w", s, errStopped)
	}
	return c.api.signal(s)
}
