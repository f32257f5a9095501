// SPDX-License-Identifier: Apache-2.0

// Package nodeaddr follows the addresses that this node's interfaces have:
// where node ports answer, and which destinations are the node's own.
package nodeaddr

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// Addrs are the addresses of a node's interfaces.
type Addrs struct {
	Addrs []netip.Addr
	// Links are the networks that they are in, those of single addresses left out,
	// with the bits of the host cleared.
	Links []netip.Prefix
}

// retry is the time between two attempts to follow the addresses.
const retry = time.Second

// Watch calls deliver with the node's addresses, sorted, at once and whenever
// they have changed, until ctx is done, and then returns nil. Link-local IPv6
// addresses are left out: they mean nothing without an interface. So are those of
// the interface of a name, if there is one.
func Watch(ctx context.Context, except string, deliver func(Addrs)) error {
	for {
		err := follow(ctx, except, deliver)
		if ctx.Err() != nil {
			return nil
		}
		klog.FromContext(ctx).Info("Lost sight of the node's addresses, will look again", "reason", err.Error(), "after", retry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// follow subscribes to changes before it lists, so that none is missed.
func follow(ctx context.Context, except string, deliver func(Addrs)) error {
	done := make(chan struct{})
	defer close(done)
	events := make(chan netlink.AddrUpdate, 64)
	failed := make(chan error, 1)
	err := netlink.AddrSubscribeWithOptions(events, done, netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	// The subscription ends by itself only after it has nobody to tell.
	defer func() { go drain(events) }()
	skip := 0 // the index of the interface to leave out, which may have thousands
	for {
		addrs, err := List(except)
		if err != nil {
			return err
		}
		deliver(addrs)
		for changed := false; !changed; {
			select {
			case <-ctx.Done():
				return nil
			case err := <-failed:
				return fmt.Errorf("follow addresses: %w", err)
			case e, ok := <-events:
				if !ok {
					return errors.New("follow addresses: subscription ended")
				}
				if e.LinkIndex != skip {
					skip, err = indexOf(except)
					changed = err != nil || e.LinkIndex != skip
				}
			}
		}
		for len(events) > 0 { // the list to come has them all
			<-events
		}
	}
}

// indexOf returns the index of an interface, 0 where there is none.
func indexOf(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for interface %s: %w", name, err)
	}
	return link.Attrs().Index, nil
}

func drain(events <-chan netlink.AddrUpdate) {
	for range events {
	}
}

// List returns the addresses that the interfaces have now, as Watch does.
func List(except string) (Addrs, error) {
	index, err := indexOf(except)
	if err != nil {
		return Addrs{}, err
	}
	found, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return Addrs{}, fmt.Errorf("list addresses: %w", err)
	}
	var out Addrs
	for _, a := range found {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.Is6() && ip.IsLinkLocalUnicast() || index != 0 && a.LinkIndex == index {
			continue
		}
		out.Addrs = append(out.Addrs, ip)
		bits, _ := a.Mask.Size()
		if link := netip.PrefixFrom(ip, bits).Masked(); link.IsValid() && !link.IsSingleIP() && !ip.IsLoopback() {
			out.Links = append(out.Links, link)
		}
	}
	slices.SortFunc(out.Addrs, netip.Addr.Compare)
	slices.SortFunc(out.Links, netip.Prefix.Compare)
	out.Addrs, out.Links = slices.Compact(out.Addrs), slices.Compact(out.Links)
	return out, nil
}
