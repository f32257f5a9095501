// SPDX-License-Identifier: Apache-2.0

package sysctl

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const reservedPorts = "net/ipv4/ip_local_reserved_ports"

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

// Set has the kernel reserve these ports, of all protocols and both families, and those
// that others have reserved, and no longer what an earlier Set had it reserve.
func (r *ReservedPorts) Set(ctx context.Context, ports []uint16) []*Problem {
	file := sysctlFile(reservedPorts)
	text, err := r.settings.read(file)
	var reserved map[uint16]bool
	if err == nil {
		reserved, err = parsePorts(text)
	}
	if err == nil {
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
	return []*Problem{{
		Setting: name(file), Err: err,
		Effect: "a process of the node whose connection gets a node port's number for its source port gets no answers",
		Remedy: "let the agent's container write sysctls, or keep net.ipv4.ip_local_port_range apart from the range of node ports",
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
