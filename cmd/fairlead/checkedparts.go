// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"fairlead/config"
	"fairlead/nat/egress"
	"fairlead/portmap"
	"fairlead/proxier/model"
	"fairlead/proxier/source"
	"fairlead/proxier/traffic"
)

// checkNumbers checks that numbers and durations are in their bounds.
func (c *agentConfig) checkNumbers() error {
	if bit := c.IPTables.MasqueradeBit; bit < 0 || bit > 31 {
		return fmt.Errorf("%s %d is not a bit of a mark; use 0 to 31", c.Where("iptables-masquerade-bit"), bit)
	}
	if bit := c.NFTables.MasqueradeBit; bit < 0 || bit > 31 {
		return fmt.Errorf("%s %d is not a bit of a mark; use 0 to 31", c.Where("nftables.masqueradeBit"), bit)
	}
	if n := c.OOMScoreAdj; n < -1000 || n > 1000 {
		return fmt.Errorf("%s %d is out of range; use -1000 to 1000", c.Where("oom-score-adj"), n)
	}
	for _, p := range []struct {
		min, sync             string
		minPeriod, syncPeriod time.Duration
	}{
		{"iptables-min-sync-period", "iptables-sync-period", c.IPTables.MinSyncPeriod, c.IPTables.SyncPeriod},
		{"ipvs-min-sync-period", "ipvs-sync-period", c.IPVS.MinSyncPeriod, c.IPVS.SyncPeriod},
		{"nftables.minSyncPeriod", "nftables.syncPeriod", c.NFTables.MinSyncPeriod, c.NFTables.SyncPeriod},
	} {
		switch {
		case p.syncPeriod <= 0:
			return fmt.Errorf("%s %s must be above 0", c.Where(p.sync), p.syncPeriod)
		case p.minPeriod < 0:
			return fmt.Errorf("%s %s must not be below 0", c.Where(p.min), p.minPeriod)
		case p.minPeriod > p.syncPeriod:
			return fmt.Errorf("%s %s must not be above %s %s", c.Where(p.min), p.minPeriod, c.Where(p.sync), p.syncPeriod)
		}
	}
	return c.checkNotNegative()
}

func (c *agentConfig) checkNotNegative() error {
	for _, n := range []struct {
		flag  string
		value int64
		shown any
	}{
		number("conntrack-max-per-core", c.Conntrack.MaxPerCore), number("conntrack-min", c.Conntrack.Min),
		number("kube-api-burst", c.APIBurst), number("v", c.Verbosity),
		number("conntrack-tcp-timeout-established", c.Conntrack.TCPEstablishedTimeout),
		number("conntrack-tcp-timeout-close-wait", c.Conntrack.TCPCloseWaitTimeout),
		number("conntrack-udp-timeout", c.Conntrack.UDPTimeout), number("conntrack-udp-timeout-stream", c.Conntrack.UDPStreamTimeout),
		number("ipvs-tcp-timeout", c.IPVS.TCPTimeout), number("ipvs-tcpfin-timeout", c.IPVS.TCPFinTimeout),
		number("service-metrics-limit", c.Traffic.Limit), number("ipvs-udp-timeout", c.IPVS.UDPTimeout), number("ipvs-graceful-period", c.IPVS.GracePeriod),
	} {
		if n.value < 0 {
			return fmt.Errorf("%s %v must not be below 0", c.Where(n.flag), n.shown)
		}
	}
	return nil
}

// number is a row of checkNotNegative.
func number[T int | time.Duration](flag string, n T) struct {
	flag  string
	value int64
	shown any
} {
	return struct {
		flag  string
		value int64
		shown any
	}{flag, int64(n), n}
}

// checkChoices checks settings that are one of a few words.
func (c *agentConfig) checkChoices() error {
	onOff := []string{string(switchAuto), string(switchOn), string(switchOff)}
	for _, w := range []struct {
		flag, value string
		words       []string
	}{
		{"logging-format", c.LogFormat, []string{config.LogText, config.LogJSON}},
		{"kube-api-content-type", c.APIContentType, []string{"application/vnd.kubernetes.protobuf", "application/json"}},
		{"host-ports", c.HostPorts.Mode, onOff},
		{"pod-masquerade", c.PodMasquerade.Mode, onOff},
	} {
		if !slices.Contains(w.words, w.value) {
			last := len(w.words) - 1
			return fmt.Errorf("%s %q is unknown; use %s or %s", c.Where(w.flag), w.value, strings.Join(w.words[:last], ", "), w.words[last])
		}
	}
	return nil
}

// setIPVS reads the settings of IPVS mode that have a form of their own.
func (c *agentConfig) setIPVS() error {
	var err error
	if c.scheduler, err = source.ParseScheduler(c.IPVS.Scheduler); err != nil {
		return fmt.Errorf("%s %q %w", c.Where("ipvs-scheduler"), c.IPVS.Scheduler, err)
	}
	cidrs, err := parseCIDRs(c.Where("ipvs-exclude-cidrs"), c.IPVS.ExcludeCIDRs)
	c.excludeCIDRs = both(cidrs)
	return err
}

// setEgress reads what not to masquerade where no file says otherwise.
func (c *agentConfig) setEgress() error {
	c.egress = egress.Defaults()
	if c.PodMasquerade.NonMasqueradeCIDRs == nil {
		return nil
	}
	var err error
	if c.egress.NonMasquerade, err = egress.ParseCIDRs(c.PodMasquerade.NonMasqueradeCIDRs); err != nil {
		return fmt.Errorf("%s: %w", c.Where("non-masquerade-cidrs"), err)
	}
	return nil
}

// setTraffic reads of which Services metrics tell what they carry.
func (c *agentConfig) setTraffic() (err error) {
	if c.counted, err = traffic.ParseSelection(c.Traffic.Services); err != nil {
		return fmt.Errorf("%s %w", c.Where("service-metrics"), err)
	}
	return nil
}

// setProtected reads the ports of the node that no pod gets, those of the agent's own
// servers among them.
func (c *agentConfig) setProtected() error {
	c.protected = map[portmap.Port]string{}
	for _, text := range c.HostPorts.ProtectedPorts {
		number, proto, _ := strings.Cut(strings.TrimSpace(text), "/")
		n, err := strconv.ParseUint(number, 10, 16)
		p := model.Protocol(strings.ToUpper(proto))
		if err != nil || n == 0 || !slices.Contains([]model.Protocol{model.TCP, model.UDP, model.SCTP}, p) {
			return fmt.Errorf("%s %q is not a port; write it like 22/tcp", c.Where("protected-ports"), text)
		}
		c.protected[portmap.Port{Protocol: p, Number: uint16(n)}] = "among --protected-ports"
	}
	for _, addr := range []string{c.healthz, c.metrics} {
		if ap, err := netip.ParseAddrPort(addr); err == nil {
			c.protected[portmap.Port{Protocol: model.TCP, Number: ap.Port()}] = "the agent's own"
		}
	}
	return nil
}

// switchFlag is a setting that is on, off, or what auto finds out.
type switchFlag string

// The values of a switchFlag.
const (
	switchAuto switchFlag = "auto"
	switchOn   switchFlag = "on"
	switchOff  switchFlag = "off"
)
