// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real API server, with the etcd it needs and nothing
// else: no controllers, no scheduler, no kubelet. Tests write the objects that
// those would write.
//
// The two programs come from e2e/tools. They need no privileges, listen on one
// TCP port between them, keep everything in one directory, and cannot outlive
// the process that started them.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Config says how a Cluster is run. Its zero value is good for a test on
// loopback.
type Config struct {
	// BinDir holds etcd and kube-apiserver. If empty, it is the directory that
	// the environment variable FAIRLEAD_TOOLS_BIN names, else .cache/bin at the
	// top of the module around the working directory.
	BinDir string
	// Dir receives data, credentials and logs, and stays after Stop. If empty, a
	// temporary directory is made and removed. Its name must leave room for that
	// of a Unix socket, 108 bytes in all.
	Dir string
	// Address is what the API server binds and advertises and what the
	// kubeconfig names; 127.0.0.1 if unset. Unless it is a loopback address, the
	// endpoint of the Service default/kubernetes is kept up to date with it.
	Address netip.Addr
	// AlsoReachableAt are further addresses that clients use, see
	// WriteKubeconfig. If there are any, the API server binds all addresses.
	AlsoReachableAt []netip.Addr
	// Port is the API server's. If 0, it is one that is free in this process's
	// network namespace, and reserved there until Stop.
	Port uint16
	// ServiceCIDRs are one range or one of each family, that of Address's family
	// first. If empty, they are 10.96.0.0/16 and fd00:10:96::/112.
	ServiceCIDRs []netip.Prefix
	// Prefix is put before the command line of each program, such as
	// nsenter --net=/var/run/netns/NAME. It must exec the program in its place.
	Prefix []string
	// Dial connects to the API server, if this process has no route to Address.
	// It is not part of the kubeconfig.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// ServiceAccounts is set where a controller manager makes service accounts: then pods
	// get their tokens. Without one, the API server would refuse all Pods.
	ServiceAccounts bool
	// EtcdFlags and APIServerFlags are added to the programs' flags, and win
	// over those of the same name.
	EtcdFlags, APIServerFlags []string
	// ReadyTimeout bounds how long each program may take to become ready; 2
	// minutes if 0. Usual are 3 seconds.
	ReadyTimeout time.Duration
}

// Cluster is a running API server and etcd. Its methods may be called from
// several goroutines.
type Cluster struct {
	cfg       Config
	dir       string
	bin       binaries
	creds     credentials
	port      reservedPort
	rest      *rest.Config
	clientset *kubernetes.Clientset

	mu   sync.Mutex
	etcd *process
	api  *process // nil while StopAPIServer is in effect
	more []*process
}

// Start runs etcd and an API server and returns once that serves, has its
// namespace default, and hands out cluster IPs. ctx and cfg.ReadyTimeout bound
// the start; ctx has no influence later. If it returns an error, which tells the
// last log lines, then nothing runs.
//
// The programs start in the network namespace of the process, even if the
// calling thread has entered another one.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	c, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// prepare makes everything that exists before the first process.
func prepare(cfg Config) (c *Cluster, err error) {
	cfg = cfg.withDefaults()
	c = &Cluster{cfg: cfg}
	if c.bin, err = findBinaries(cfg.BinDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	if c.dir, err = makeDir(cfg.Dir); err != nil {
		return c, err
	}
	if c.port, err = reservePort(cfg.Port); err != nil {
		return c, err
	}
	if c.creds, err = newCredentials(c.dir, cfg); err != nil {
		return c, err
	}
	if err := c.WriteKubeconfig(c.Kubeconfig(), cfg.Address); err != nil {
		return c, err
	}
	c.rest = c.creds.restConfig(c.url(cfg.Address), cfg.Dial)
	if c.clientset, err = kubernetes.NewForConfig(c.rest); err != nil {
		return c, fmt.Errorf("make client of %s: %w", c.rest.Host, err)
	}
	return c, nil
}

func (cfg Config) withDefaults() Config {
	if !cfg.Address.IsValid() {
		cfg.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if len(cfg.ServiceCIDRs) == 0 {
		v4, v6 := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")
		cfg.ServiceCIDRs = []netip.Prefix{v4, v6}
		if !cfg.Address.Is4() {
			cfg.ServiceCIDRs = []netip.Prefix{v6, v4}
		}
	}
	if cfg.ReadyTimeout == 0 {
		cfg.ReadyTimeout = 2 * time.Minute
	}
	return cfg
}

// makeDir makes dir, or a temporary directory if dir is empty, and returns its
// absolute name.
func makeDir(dir string) (string, error) {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "fairlead-cluster-")
		if err != nil {
			return "", fmt.Errorf("make directory of the cluster: %w", err)
		}
		return tmp, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("make directory of the cluster: %w", err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return "", fmt.Errorf("make directory of the cluster: %w", err)
	}
	return abs, nil
}

func (c *Cluster) start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.startEtcdLocked(ctx); err != nil {
		return err
	}
	return c.startAPIServerLocked(ctx)
}

// Stop kills both programs, waits until they are gone, and removes what Start
// made. Its error tells, among others, that a program had ended by itself. A
// second call does nothing.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := errors.Join(c.stopMoreLocked(), c.api.kill(), c.etcd.kill(), c.port.release())
	c.api, c.etcd = nil, nil
	if c.cfg.Dir == "" && c.dir != "" {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	return err
}

// Dir returns the directory of data, credentials and logs.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig returns the name of a kubeconfig file for a member of
// system:masters.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// RESTConfig returns a copy of the clientset's configuration, which limits
// neither the rate nor the burst of requests.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.rest) }

// Clientset returns a client that may do everything.
func (c *Cluster) Clientset() *kubernetes.Clientset { return c.clientset }

// URL returns the API server's address for clients.
func (c *Cluster) URL() string { return c.rest.Host }

// url returns the API server's URL at addr.
func (c *Cluster) url(addr netip.Addr) string {
	return "https://" + netip.AddrPortFrom(addr, c.port.number).String()
}
