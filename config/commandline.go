// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// CommandLine is the flags, and what they say.
type CommandLine struct {
	flags    *pflag.FlagSet
	settings *Settings
	// healthzPort and metricsPort are what kube-proxy once had in the place of
	// addresses.
	healthzPort, metricsPort int
}

// Register defines all flags. Flags that are dead or deprecated are not in the help.
func Register(fs *pflag.FlagSet) *CommandLine {
	c := &CommandLine{flags: fs, settings: Default()}
	fs.SetNormalizeFunc(normalize)
	all := c.settings.all()
	for i := range all {
		if all[i].flag != "" {
			all[i].register(fs)
		}
	}
	fs.IntVar(&c.healthzPort, "healthz-port", 10256, "Port of --healthz-bind-address.")
	fs.IntVar(&c.metricsPort, "metrics-port", 10249, "Port of --metrics-bind-address.")
	hidden := []string{"healthz-port", "metrics-port"}
	for _, d := range deads() {
		for _, name := range d.flags {
			hidden = append(hidden, name)
			fs.String(name, "", "No effect: "+d.why+".")
			if d.bool {
				fs.Lookup(name).NoOptDefVal = "true"
			}
		}
	}
	for _, name := range hidden {
		fs.Lookup(name).Hidden = true
	}
	return c
}

// Flags returns the value of each flag, given or not, but of those that are dead.
func (c *CommandLine) Flags() map[string]string {
	out := map[string]string{}
	c.flags.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			out[f.Name] = f.Value.String()
		}
	})
	return out
}

// normalize has names with underscores, as old flags of logs have, and --mode for
// --proxy-mode.
func normalize(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name = strings.ReplaceAll(name, "_", "-"); name == "mode" {
		name = "proxy-mode"
	}
	return pflag.NormalizedName(name)
}

// Load returns what flags and file say, after the flags have been parsed. It reads the
// file anew each time. Warnings are about what is accepted without an effect; errors
// name the file with the line, or the flag.
func (c *CommandLine) Load() (*Settings, []string, error) {
	s := Default()
	var warnings []string
	if file := c.settings.File; file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, fmt.Errorf("--config: %w", err)
		}
		if warnings, err = decode(file, text, s); err != nil {
			return nil, nil, err
		}
	}
	warnings = append(warnings, c.overlay(s)...)
	if s.File == "" {
		s.feedNFTables()
		c.ports(s)
	}
	s.moveToIPv6()
	warnings = append(warnings, s.unknownGates()...)
	return s, warnings, nil
}

// overlay puts the flags that were given on top of a file, as far as they count.
func (c *CommandLine) overlay(s *Settings) (warnings []string) {
	from, to := c.settings.all(), s.all()
	for i := range from {
		row := &from[i]
		if row.flag == "" || !c.flags.Changed(row.flag) {
			continue
		}
		if c.settings.File != "" && row.in == kubeProxy && !row.beside {
			warnings = append(warnings, fmt.Sprintf("--%s has no effect beside --config; put %s into %s", row.flag, row.field, c.settings.File))
			continue
		}
		if row.beside && row.zeroIsDefault && row.isZero() && c.settings.File != "" {
			continue // --hostname-override= is as if it were not there
		}
		to[i].take(row)
		s.given[row.flag] = "--" + row.flag
	}
	for _, d := range deads() {
		for _, name := range d.flags {
			if c.flags.Changed(name) {
				warnings = append(warnings, fmt.Sprintf("--%s has no effect: %s", name, d.why))
			}
		}
	}
	return warnings
}

// feedNFTables makes the settings of nftables mode what the flags say of iptables mode.
func (s *Settings) feedNFTables() {
	s.NFTables = NFTables{
		MasqueradeAll: s.IPTables.MasqueradeAll, MasqueradeBit: s.IPTables.MasqueradeBit,
		MinSyncPeriod: s.IPTables.MinSyncPeriod, SyncPeriod: s.IPTables.SyncPeriod, LoadBalancing: s.NFTables.LoadBalancing,
	}
}

// ports takes over the flags for ports alone, where no address is given.
func (c *CommandLine) ports(s *Settings) {
	for _, p := range []struct {
		flag, address string
		port          int
		into          *string
	}{
		{"healthz-port", "healthz-bind-address", c.healthzPort, &s.HealthzAddress},
		{"metrics-port", "metrics-bind-address", c.metricsPort, &s.MetricsAddress},
	} {
		switch {
		case !c.flags.Changed(p.flag) || s.Given(p.address):
		case p.port == 0:
			*p.into, s.given[p.address] = "", "--"+p.flag
		default:
			host, _, _ := strings.Cut(*p.into, ":")
			*p.into, s.given[p.address] = host+":"+strconv.Itoa(p.port), "--"+p.flag
		}
	}
}

// moveToIPv6 moves the defaults of addresses to the family of the node's own.
func (s *Settings) moveToIPv6() {
	if !strings.Contains(s.BindAddress, ":") {
		return
	}
	if !s.Given("healthz-bind-address") {
		s.HealthzAddress = "[::]:10256"
	}
	if !s.Given("metrics-bind-address") {
		s.MetricsAddress = "[::1]:10249"
	}
}

// externalIPsGate is the one feature gate of kube-proxy's that means something here.
const externalIPsGate = "AllowServiceExternalIPs"

// ExternalIPsAllowed tells whether kube-proxy's feature gate lets Services have external
// IPs.
func (s *Settings) ExternalIPsAllowed() bool {
	allowed, given := s.FeatureGates[externalIPsGate]
	return allowed || !given
}

func (s *Settings) unknownGates() (warnings []string) {
	for part := range strings.SplitSeq((*gates)(&s.FeatureGates).String(), ",") {
		if name, _, _ := strings.Cut(part, "="); name != "" && name != externalIPsGate {
			warnings = append(warnings, fmt.Sprintf("%s: feature gate %s does not exist here; it has no effect", s.Where("feature-gates"), part))
		}
	}
	return warnings
}

// Equal tells whether two Settings say the same, wherever they say it.
func (s *Settings) Equal(o *Settings) bool {
	a, b := s.all(), o.all()
	for i := range a {
		if !a[i].equal(&b[i]) {
			return false
		}
	}
	return true
}
