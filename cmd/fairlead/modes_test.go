// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"fairlead/config"
)

// TestPeriods: each mode syncs as often as its own settings say.
func TestPeriods(t *testing.T) {
	s := config.Default()
	s.IPTables.MinSyncPeriod, s.IPTables.SyncPeriod = 1*time.Second, 11*time.Second
	s.IPVS.MinSyncPeriod, s.IPVS.SyncPeriod = 2*time.Second, 12*time.Second
	s.NFTables.MinSyncPeriod, s.NFTables.SyncPeriod = 3*time.Second, 13*time.Second
	cfg, err := check(s)
	if err != nil {
		t.Fatal(err)
	}
	for i, mode := range []backend{&iptablesBackend{cfg: cfg}, &ipvsBackend{cfg: cfg}, &nftablesBackend{cfg: cfg}} {
		least, most := mode.periods()
		if least != time.Duration(1+i)*time.Second || most != time.Duration(11+i)*time.Second {
			t.Errorf("%T: %v and %v", mode, least, most)
		}
	}
}
