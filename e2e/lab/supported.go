// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/vishvananda/netns"

	"fairlead/proxier/model"
)

// ErrNotSupported is wrapped by the errors that say that this machine cannot
// do what a lab needs, as opposed to failing at it.
var ErrNotSupported = errors.New("not supported here")

// Supported tells why labs cannot be made here; the error wraps
// ErrNotSupported. It does not look for iptables, see VariantSupported.
func Supported(ctx context.Context) error {
	if err := basics(); err != nil {
		return err
	}
	l, err := New(ctx, Config{Pods: 1})
	switch {
	case err == nil:
		return l.Close()
	case ctx.Err() != nil:
		return err
	}
	return fmt.Errorf("make network namespaces: %w (%w)", err, ErrNotSupported)
}

// basics looks for what can be told without making anything.
func basics() error {
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("find command %s: %w (%w)", tool, err, ErrNotSupported)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("make network namespaces: must be root (%w)", ErrNotSupported)
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return fmt.Errorf("use IPv6: kernel does not have it: %w (%w)", err, ErrNotSupported)
	}
	return nil
}

// VariantSupported tells why an iptables variant cannot be used here, for
// either family, with NAT; the error wraps ErrNotSupported.
func VariantSupported(ctx context.Context, v Variant) error {
	err := basics()
	if err != nil {
		return err
	}
	l := &Lab{}
	if l.prefix, err = newPrefix(); err != nil {
		return err
	}
	defer l.Close()
	ns := &NS{Label: "probe", handle: netns.None()}
	if err := l.create(ctx, ns); err != nil {
		return err
	}
	for _, f := range model.Families() {
		for _, suffix := range []string{"", "-save", "-restore"} {
			if _, err := exec.LookPath(v.Tool(f, suffix)); err != nil {
				return fmt.Errorf("find command: %w (%w)", err, ErrNotSupported)
			}
		}
		err := ns.Iptables(ctx, v, f, "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
		if err != nil {
			return fmt.Errorf("use iptables: %w (%w)", err, ErrNotSupported)
		}
	}
	return nil
}
