// SPDX-License-Identifier: Apache-2.0

// Package sysctl brings the kernel's settings to what Services need, and says
// what it means for the node where that is refused: containers often may read
// settings and not write them. A setting that is right is not written.
package sysctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/klog/v2"

	"fairlead/proxier/model"
)

// Settings are the settings of a kernel.
type Settings struct {
	root string
	// write writes to a file that there is.
	write func(path, value string) error
}

// New returns the settings below root, a directory with proc and sys in it; an
// empty one is this machine's. Those of networks are of the network namespace
// of the thread that uses them.
func New(root string) *Settings {
	if root == "" {
		root = "/"
	}
	return &Settings{root: root, write: write}
}

// Problem is a setting that is not as the node needs it. Nothing else depends
// on it: the agent can go on.
type Problem struct {
	// Setting is its name, as sysctl(8) has it if it is a sysctl.
	Setting string
	// Effect is what that means for the node, Remedy what to do about it.
	Effect, Remedy string
	// Err tells why it could not be read or set. It is nil where that was not
	// tried.
	Err error
}

// Error says it all in one line.
func (p *Problem) Error() string {
	if p.Err != nil {
		return fmt.Sprintf("%s: %v: %s; %s", p.Setting, p.Err, p.Effect, p.Remedy)
	}
	return fmt.Sprintf("%s: %s; %s", p.Setting, p.Effect, p.Remedy)
}

// Unwrap returns why the setting could not be read or set.
func (p *Problem) Unwrap() error { return p.Err }

// Warn logs a line for each problem.
func Warn(ctx context.Context, problems []*Problem) {
	for _, p := range problems {
		kv := []any{"setting", p.Setting, "effect", p.Effect, "remedy", p.Remedy}
		if p.Err != nil {
			kv = append(kv, "reason", p.Err.Error())
		}
		klog.FromContext(ctx).Info("Warning: a kernel setting is not as this node needs it", kv...)
	}
}

// Forwarding tells of the families that the node does not forward packets of.
// It changes nothing: whether a host is a router is for its owner to say.
func (s *Settings) Forwarding(families ...model.Family) (problems []*Problem) {
	for _, f := range families {
		file, remedy := sysctlFile("net/ipv4/ip_forward"), "run sysctl -w net.ipv4.ip_forward=1, and put it into /etc/sysctl.d"
		if f == model.IPv6 {
			file, remedy = sysctlFile("net/ipv6/conf/all/forwarding"), "run sysctl -w net.ipv6.conf.all.forwarding=1, and put it into /etc/sysctl.d; "+
				"interfaces that take their addresses from router advertisements need accept_ra=2 then"
		}
		value, err := s.read(file)
		if err == nil && value == "1" {
			continue
		}
		problems = append(problems, &Problem{
			Setting: name(file), Err: err, Remedy: remedy,
			Effect: fmt.Sprintf("this node does not forward %s, so its pods reach nothing outside, nor does anybody reach them", f),
		})
	}
	return problems
}

// BridgeNetfilter makes packets of a family between two ports of one bridge
// pass the iptables rules, and tells whether they do. Where they do not, the
// answer from one pod to another bypasses the translation that the request went
// through. There is no such setting without the module br_netfilter; that is
// not a problem by itself.
func (s *Settings) BridgeNetfilter(ctx context.Context, f model.Family) (passes bool, problems []*Problem) {
	file := sysctlFile("net/bridge/bridge-nf-call-iptables")
	if f == model.IPv6 {
		file = sysctlFile("net/bridge/bridge-nf-call-ip6tables")
	}
	err := s.set(ctx, file, "1")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, []*Problem{{
			Setting: name(file), Err: err,
			Effect: "packets between pods on one bridge bypass the rules, so a connection to a Service whose endpoint is on the client's own bridge works only if it is masqueraded",
			Remedy: "set it to 1 on the host, or let the agent's container write sysctls",
		}}
	}
	return true, nil
}

const routeLocalnet = "net/ipv4/conf/all/route_localnet"

// SetRouteLocalnet lets node ports answer on 127.0.0.1. Neighbours on the
// node's links can then reach what listens on the node's loopback alone, so the
// rule that drops such packets must be in place before (CVE-2020-8558).
func (s *Settings) SetRouteLocalnet(ctx context.Context) []*Problem {
	return s.want(ctx, sysctlFile(routeLocalnet), "1",
		"node ports do not answer on 127.0.0.1",
		"set it to 1 on the host, or switch that off with --iptables-localhost-nodeports=false")
}

// ResetRouteLocalnet takes SetRouteLocalnet back. It comes before the rule that
// drops neighbours' packets goes.
func (s *Settings) ResetRouteLocalnet(ctx context.Context) []*Problem {
	return s.want(ctx, sysctlFile(routeLocalnet), "0",
		"neighbours on this node's links may reach what listens on its loopback address alone",
		"set it to 0 on the host")
}

// want sets a setting, or says what it means that it cannot.
func (s *Settings) want(ctx context.Context, file, value, effect, remedy string) []*Problem {
	err := s.set(ctx, file, value)
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		remedy = "the kernel does not have it, or not yet: see that the module it belongs to is loaded before the agent starts"
	}
	return []*Problem{{Setting: name(file), Effect: effect, Remedy: remedy, Err: err}}
}

// set makes a file have a value, and logs if that is a change.
func (s *Settings) set(ctx context.Context, file, value string) error {
	old, err := s.read(file)
	if err != nil || old == value {
		return err
	}
	if err := s.write(filepath.Join(s.root, file), value); err != nil {
		return bare(err)
	}
	klog.FromContext(ctx).Info("Set kernel setting", "setting", name(file), "from", old, "to", value)
	return nil
}

// write is os.WriteFile for a file that there is.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// read returns what a file has, without the newline.
func (s *Settings) read(file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, file))
	return strings.TrimSpace(string(b)), bare(err)
}

func (s *Settings) readInt(file string) (int, error) {
	text, err := s.read(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// bare takes the file's name out of an error that has the setting's name
// anyway.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("%s: %w", path.Op, path.Err)
	}
	return err
}

// sysctlFile is where a sysctl is, its name with slashes.
func sysctlFile(sysctl string) string { return "proc/sys/" + sysctl }

// name names a file as people know it.
func name(file string) string {
	if sysctl, ok := strings.CutPrefix(file, "proc/sys/"); ok {
		return strings.ReplaceAll(sysctl, "/", ".")
	}
	return "/" + file
}
