// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	reservedPorts = "net/ipv4/ip_local_reserved_ports"
	localPorts    = "net/ipv4/ip_local_port_range"
)

// The node ports that an API server gives out, unless --service-node-port-range says
// otherwise there.
const (
	firstNodePort = 30000
	lastNodePort  = 32767
)

// ReservedPorts keeps ports from sockets that leave the choice to the kernel: those of
// clients. It is for one goroutine at a time.
type ReservedPorts struct {
	settings *Settings
	// ours are the ports that were not reserved before.
	ours map[uint16]bool
}

// NewReservedPorts reserves none yet.
func NewReservedPorts(s *Settings) *ReservedPorts {
	return &ReservedPorts{settings: s, ours: map[uint16]bool{}}
}

// ReserveNodePorts has the kernel reserve the node ports that an API server gives out by
// itself, all of them, where it may choose one for a socket: for an agent that cannot write
// settings later.
func (s *Settings) ReserveNodePorts(ctx context.Context) []*Problem {
	var ports []uint16
	for p := firstNodePort; p <= lastNodePort; p++ {
		ports = append(ports, uint16(p))
	}
	if !s.mayChoose(ports) {
		return nil
	}
	return NewReservedPorts(s).Set(ctx, ports)
}

// mayChoose tells whether the kernel may choose one of ports for a socket.
func (s *Settings) mayChoose(ports []uint16) bool {
	text, err := s.read(sysctlFile(localPorts))
	var first, last uint16
	if err == nil {
		_, err = fmt.Sscan(text, &first, &last)
	}
	return err != nil || slices.ContainsFunc(ports, func(p uint16) bool { return first <= p && p <= last })
}

// Set has the kernel reserve these ports, of all protocols and both families, and those
// that others have reserved, and no longer what an earlier Set had it reserve. That it cannot
// is no problem where the kernel chooses none of them anyway.
func (r *ReservedPorts) Set(ctx context.Context, ports []uint16) []*Problem {
	file := sysctlFile(reservedPorts)
	text, err := r.settings.read(file)
	var reserved map[uint16]bool
	if err == nil {
		reserved, err = parsePorts(text)
	}
	needed := ports
	if err == nil {
		needed = slices.DeleteFunc(slices.Clone(ports), func(p uint16) bool { return reserved[p] })
		for p := range r.ours {
			delete(reserved, p)
		}
		ours := map[uint16]bool{}
		for _, p := range ports {
			if !reserved[p] {
				reserved[p], ours[p] = true, true
			}
		}
		if err = r.settings.set(ctx, file, formatPorts(reserved)); err == nil {
			r.ours = ours
			return nil
		}
	}
	if !r.settings.mayChoose(needed) {
		return nil
	}
	return []*Problem{{
		Setting: name(file), Err: err,
		Effect: "a process of the node whose connection gets a node port's number for its source port gets no answers",
		Remedy: "let the agent's container write sysctls, or keep net.ipv4.ip_local_port_range apart from the range of node ports; --init-only reserves 30000 to 32767",
	}}
}

// parsePorts reads a list like "8080,30000-30010".
func parsePorts(text string) (map[uint16]bool, error) {
	out := map[uint16]bool{}
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err != nil || err2 != nil {
			return nil, fmt.Errorf("not a list of ports: %q", text)
		}
		for p := first; p <= last; p++ {
			out[uint16(p)] = true
		}
	}
	return out, nil
}

// formatPorts writes ports as the kernel does.
func formatPorts(ports map[uint16]bool) string {
	var list []int
	for p := range ports {
		list = append(list, int(p))
	}
	slices.Sort(list)
	var out []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if i == j {
			out = append(out, strconv.Itoa(list[i]))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", list[i], list[j]))
		}
		i = j + 1
	}
	return strings.Join(out, ",")
}
