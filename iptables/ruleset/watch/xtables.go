// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"fairlead/iptables/ruleset"
)

// info is what the kernel tells of a table without listing it: struct
// ipt_getinfo in linux/netfilter_ipv4/ip_tables.h, and ip6t_getinfo, which is
// the same.
type info struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32 // offsets in bytes
	Underflow  [5]uint32
	Entries    uint32
	Size       uint32 // in bytes
}

// soGetInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const soGetInfo = 64

// xtables asks ip_tables or ip6_tables of one network namespace.
type xtables struct {
	tables []ruleset.Table
	level  int
	fd     int
	// path is of a file that lists the tables that there are. To ask about any
	// other would make it, or load its module. Without ip_tables there is no
	// such file; names is nil then.
	path  string
	names *os.File
}

func openXTables(cfg Config) (*xtables, error) {
	x := &xtables{tables: cfg.Tables, level: unix.SOL_IP, path: "/proc/thread-self/net/ip_tables_names"}
	domain := unix.AF_INET
	if cfg.IPv6 {
		x.level, x.path = unix.SOL_IPV6, "/proc/thread-self/net/ip6_tables_names"
		domain = unix.AF_INET6
	}
	var err error
	// A datagram socket does, which needs no CAP_NET_RAW.
	if x.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open socket to ask about tables: %w", err)
	}
	if _, err := x.Infos(); err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// Infos implements counters.
func (x *xtables) Infos() (map[ruleset.Table]info, error) {
	names, err := x.list()
	if err != nil {
		return nil, err
	}
	out := map[ruleset.Table]info{}
	for _, t := range x.tables {
		if !slices.Contains(names, string(t)) {
			continue
		}
		if out[t], err = x.info(t); err != nil {
			return nil, fmt.Errorf("ask about the table %s: %w", t, err)
		}
	}
	return out, nil
}

// list returns the tables that there are.
func (x *xtables) list() ([]string, error) {
	if x.names == nil {
		f, err := os.Open(x.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		x.names = f // stays with the network namespace of this thread
	}
	text, err := io.ReadAll(io.NewSectionReader(x.names, 0, math.MaxInt64))
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return strings.Fields(string(text)), nil
}

func (x *xtables) info(t ruleset.Table) (info, error) {
	var i info
	if len(t) >= len(i.Name) {
		return i, unix.ENAMETOOLONG
	}
	copy(i.Name[:], t)
	size := uint32(unsafe.Sizeof(i))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(x.fd), uintptr(x.level), soGetInfo,
		uintptr(unsafe.Pointer(&i)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return i, errno
	}
	return i, nil
}

// Close implements counters.
func (x *xtables) Close() error {
	if x.names == nil {
		return unix.Close(x.fd)
	}
	return errors.Join(x.names.Close(), unix.Close(x.fd))
}
