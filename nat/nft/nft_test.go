// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelDelete: a table goes from its family, and no other one does.
func TestKernelDelete(t *testing.T) {
	if err := lab.VariantSupported(t.Context(), lab.NFT); errors.Is(err, lab.ErrNotSupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	err = l.Client.Do(func() error {
		deletes(t)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// deletes runs in a namespace.
func deletes(t *testing.T) {
	remove := func(when string, f model.Family, want bool) {
		t.Helper()
		if got, err := Delete(f, KubeProxy); got != want || err != nil {
			t.Errorf("%s: Delete(%s) = %t, %v, want %t", when, f, got, err, want)
		}
	}
	left := func(when string, f model.Family, table string, want bool) {
		t.Helper()
		if got, err := has(f, table); got != want || err != nil {
			t.Errorf("%s: there is a table %s of %s: %t, %v, want %t", when, table, f, got, err, want)
		}
	}
	remove("before there is any", model.IPv4, false)
	for _, f := range model.Families() {
		for _, table := range []string{KubeProxy, "others"} {
			if err := change(request(f, unix.NFT_MSG_NEWTABLE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, table)); err != nil {
				t.Fatalf("make table %s of %s: %v", table, f, err)
			}
		}
	}
	err := change(request(model.IPv4, unix.NFT_MSG_NEWTABLE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, KubeProxy))
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("make a table that is there: %v, want %v", err, unix.EEXIST)
	}
	remove("one of two", model.IPv4, true)
	left("one of two", model.IPv4, KubeProxy, false)
	left("one of two", model.IPv6, KubeProxy, true)
	remove("again", model.IPv4, false)
	remove("the other", model.IPv6, true)
	for _, f := range model.Families() {
		left("in the end", f, KubeProxy, false)
		left("in the end", f, "others", true)
	}
}
