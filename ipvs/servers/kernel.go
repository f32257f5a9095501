// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/moby/ipvs"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead/ipvs/batch"
)

// Kernel has the virtual servers of one family in the network namespace of the
// thread that called New; its methods may be called from any. It is safe for
// concurrent use.
type Kernel struct {
	ipv6    bool
	family  uint16
	netmask uint32 // by which clients are told apart where connections are persistent

	mu     sync.Mutex // guards handle, whose methods send a request and await its answer
	handle *ipvs.Handle

	many *batch.Socket
	// genl is the number that IPVS has among generic netlink's families.
	genl uint16
}

// New opens the kernel's IPVS of a family, and has the module loaded if it is not.
// It fails with ErrNotSupported where there is none to be had.
func New(ipv6 bool) (*Kernel, error) {
	// Kernels of today load the module when they are asked for the family by its name.
	// Where that does not help, the library runs modprobe.
	genl, err := netlink.GenlFamilyGet("IPVS")
	logrus.SetOutput(io.Discard) // or it complains where there is no modprobe, needed or not
	handle, e := ipvs.New("")
	if e != nil {
		return nil, fmt.Errorf("open IPVS: %w", e)
	}
	if err != nil {
		genl, err = netlink.GenlFamilyGet("IPVS")
	}
	// The library looks for IPVS once in a process, and where it has found none sends
	// messages that do nothing, successfully, even this one without an address family.
	if err == nil && handle.IsServicePresent(&ipvs.Service{}) {
		err = errors.New("it was loaded too late for this process")
	}
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf(`%w (%v): load the module ip_vs on the host with "modprobe ip_vs", and at each boot by a file in /etc/modules-load.d with the line "ip_vs"; `+
			`where modprobe finds no such module, the kernel was built without CONFIG_IP_VS`, ErrNotSupported, err)
	}
	many, err := batch.Open(unix.NETLINK_GENERIC)
	if err != nil {
		handle.Close()
		return nil, err
	}
	k := &Kernel{ipv6: ipv6, family: unix.AF_INET, netmask: 0xffffffff, handle: handle, many: many, genl: genl.ID}
	if ipv6 {
		k.family, k.netmask = unix.AF_INET6, 128
	}
	return k, nil
}

// Close closes the sockets.
func (k *Kernel) Close() {
	k.many.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.handle.Close()
}

// List returns all virtual servers of the family with their destinations, in no
// particular order. It takes one dump, and one more for each virtual server.
func (k *Kernel) List() ([]Listed, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all, err := k.handle.GetServices()
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	all = slices.DeleteFunc(all, func(s *ipvs.Service) bool { return s.AddressFamily != k.family || s.FWMark != 0 })
	out := make([]Listed, len(all))
	for i, s := range all {
		if out[i], err = k.listed(s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Stats returns what has passed through each virtual server of the family. It takes one
// dump.
func (k *Kernel) Stats() (map[Key]Stats, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	all, err := k.handle.GetServices()
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	out := make(map[Key]Stats, len(all))
	for _, s := range all {
		if s.AddressFamily == k.family && s.FWMark == 0 {
			l := k.parse(s)
			out[l.Key] = l.Stats
		}
	}
	return out, nil
}

// Get returns one virtual server with its destinations.
func (k *Kernel) Get(key Key) (Listed, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, err := k.handle.GetService(k.named(key))
	if err != nil {
		return Listed{}, fmt.Errorf("list virtual server %s: %w", key, kernelError(err, nil))
	}
	return k.listed(s)
}

// listed returns a virtual server with its destinations. mu must be held.
func (k *Kernel) listed(s *ipvs.Service) (Listed, error) {
	out := k.parse(s)
	destinations, err := k.handle.GetDestinations(s)
	if err != nil {
		return Listed{}, fmt.Errorf("list destinations of virtual server %s: %w", out.Key, err)
	}
	out.Destinations = make([]Status, len(destinations))
	for i, d := range destinations {
		out.Destinations[i] = parseDestination(d)
	}
	return out, nil
}

// Create makes a virtual server without destinations: until it has one, packets to
// it are dropped or refused.
func (k *Kernel) Create(s Server) error {
	return k.server("create", k.handle.NewService, s.Key, k.service(s))
}

// Update makes a virtual server that is there as Create would. Its destinations
// and connections stay.
func (k *Kernel) Update(s Server) error {
	return k.server("update", k.handle.UpdateService, s.Key, k.service(s))
}

// Delete removes a virtual server and its destinations. The kernel drops packets
// of connections to them.
func (k *Kernel) Delete(key Key) error {
	return k.server("delete", k.handle.DelService, key, k.named(key))
}

func (k *Kernel) server(verb string, f func(*ipvs.Service) error, key Key, s *ipvs.Service) error {
	return k.do(fmt.Sprintf("%s virtual server %s", verb, key), ErrNoScheduler, func() error {
		if key.Addr.Is6() != k.ipv6 {
			return unix.EAFNOSUPPORT
		}
		return f(s)
	})
}

// UpdateDestination gives a destination that is there another weight. Connections
// to it go on.
func (k *Kernel) UpdateDestination(key Key, d Destination) error {
	return k.destination("update", k.handle.UpdateDestination, key, d)
}

// DeleteDestination removes a destination. The kernel drops packets of connections
// to it. It remembers the destination for two minutes, and each that is added meanwhile
// it looks for among all that it remembers (ip_vs_trash_get_dest in
// net/netfilter/ipvs/ip_vs_ctl.c): what deletes many and adds them again is slow.
func (k *Kernel) DeleteDestination(key Key, addr netip.AddrPort) error {
	return k.destination("delete", k.handle.DelDestination, key, Destination{Addr: addr})
}

func (k *Kernel) destination(verb string, f func(*ipvs.Service, *ipvs.Destination) error, key Key, d Destination) error {
	what := fmt.Sprintf("%s destination %s of virtual server %s", verb, d.Addr, key)
	return k.do(what, ErrNoDestination, func() error {
		if key.Addr.Is6() != k.ipv6 || d.Addr.Addr().Is6() != k.ipv6 {
			return unix.EAFNOSUPPORT
		}
		return f(k.named(key), &ipvs.Destination{
			Address: d.Addr.Addr().AsSlice(), Port: d.Addr.Port(), AddressFamily: k.family,
			Weight: d.Weight, ConnectionFlags: ipvs.ConnFwdMasq,
		})
	})
}

// Timeouts returns the times after which connections are forgotten.
func (k *Kernel) Timeouts() (Timeouts, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.handle.GetConfig()
	if err != nil {
		return Timeouts{}, fmt.Errorf("read IPVS timeouts: %w", err)
	}
	return Timeouts{TCP: c.TimeoutTCP, TCPFin: c.TimeoutTCPFin, UDP: c.TimeoutUDP}, nil
}

// SetTimeouts sets those of them that are not 0.
func (k *Kernel) SetTimeouts(t Timeouts) error {
	whole := func(d time.Duration) time.Duration { return time.Duration(seconds(d)) * time.Second }
	return k.do("set IPVS timeouts", nil, func() error {
		return k.handle.SetConfig(&ipvs.Config{TimeoutTCP: whole(t.TCP), TimeoutTCPFin: whole(t.TCPFin), TimeoutUDP: whole(t.UDP)})
	})
}

// probeMark is a persistence that nobody would choose, by which a virtual server is
// known that Schedulers of an earlier process has left.
const probeMark = 20077 * time.Second

// Schedulers returns those of names that the kernel has, as it says itself when
// asked to use one: it loads their modules where it can. To ask, it makes and
// removes a virtual server on an address for documentation.
func (k *Kernel) Schedulers(names ...string) ([]string, error) {
	// TEST-NET-2 (RFC 5737), and 2001:db8::/32 (RFC 3849).
	key := Key{Addr: netip.MustParseAddr("198.51.100.0"), Protocol: TCP, Port: 20000}
	if k.family == unix.AF_INET6 {
		key.Addr = netip.MustParseAddr("2001:db8:ffff::")
	}
	var out []string
	for _, name := range names {
		has, err := k.probe(Server{Key: key, Scheduler: name, Persistence: probeMark})
		if err != nil {
			return nil, fmt.Errorf("probe scheduler %s: %w", name, err)
		}
		if has {
			out = append(out, name)
		}
	}
	return out, nil
}

// probe makes a virtual server and removes it, on the next port that nobody else has.
func (k *Kernel) probe(s Server) (has bool, err error) {
	const ports = 100
	for last := s.Port + ports; ; s.Port++ {
		err := k.Create(s)
		if errors.Is(err, ErrExists) {
			l, gerr := k.Get(s.Key)
			if left := gerr == nil && l.Persistence == probeMark && len(l.Destinations) == 0; !left && s.Port < last {
				continue
			} else if left {
				err = k.Update(s)
			}
		}
		if errors.Is(err, ErrNoScheduler) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return true, k.Delete(s.Key)
	}
}

// AllSchedulers returns the names of all schedulers that Linux has.
func AllSchedulers() []string {
	return []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}
}

// do does what cannot be done twice at the same time. missing is what ENOENT means.
func (k *Kernel) do(what string, missing error, f func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", what, kernelError(err, missing))
	}
	return nil
}

// kernelError gives the kernel's errors, of do_ip_vs_set_ctl and its like in
// net/netfilter/ipvs/ip_vs_ctl.c, a name.
func kernelError(err, missing error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return ErrExists
	case errors.Is(err, unix.ESRCH):
		return ErrNoServer
	case errors.Is(err, unix.ENOENT) && missing != nil:
		return missing
	}
	return err
}

// named returns what the kernel finds a virtual server by.
func (k *Kernel) named(key Key) *ipvs.Service {
	return &ipvs.Service{
		AddressFamily: k.family, Address: key.Addr.AsSlice(), Protocol: uint16(key.Protocol), Port: key.Port, Netmask: k.netmask,
	}
}

// persistent is IP_VS_SVC_F_PERSISTENT, hashed IP_VS_SVC_F_HASHED, which the kernel
// sets for itself.
const (
	persistent = 0x01
	hashed     = 0x02
)

// service returns a virtual server as the library has it.
func (k *Kernel) service(s Server) *ipvs.Service {
	out := k.named(s.Key)
	out.SchedName, out.Flags = s.Scheduler, uint32(s.Flags)
	if s.Persistence > 0 {
		out.Flags |= persistent
		out.Timeout = seconds(s.Persistence)
	}
	return out
}

// parse reads a virtual server of the library's.
func (k *Kernel) parse(s *ipvs.Service) Listed {
	out := Listed{Stats: Stats{
		Conns: s.Stats.Connections, PacketsIn: s.Stats.PacketsIn, PacketsOut: s.Stats.PacketsOut,
		BytesIn: s.Stats.BytesIn, BytesOut: s.Stats.BytesOut,
	}}
	out.Key = Key{Addr: address(s.Address), Protocol: Protocol(s.Protocol), Port: s.Port}
	out.Scheduler = s.SchedName
	out.Flags = Flags(s.Flags) & (OnePacket | HashFallback | HashPort)
	if s.Flags&persistent != 0 {
		out.Persistence = time.Duration(s.Timeout) * time.Second
	}
	out.Altered = s.Netmask != k.netmask || s.Flags&^uint32(out.Flags)&^(persistent|hashed) != 0
	return out
}

// parseDestination reads a destination of the library's.
func parseDestination(d *ipvs.Destination) Status {
	return Status{
		Destination: Destination{Addr: netip.AddrPortFrom(address(d.Address), d.Port), Weight: d.Weight},
		ActiveConns: d.ActiveConnections, InactiveConns: d.InactiveConnections,
		Altered: d.ConnectionFlags&ipvs.ConnFwdMask != ipvs.ConnFwdMasq || d.UpperThreshold+d.LowerThreshold > 0,
		Stats: Stats{
			Conns: d.Stats.Connections, PacketsIn: d.Stats.PacketsIn, PacketsOut: d.Stats.PacketsOut,
			BytesIn: d.Stats.BytesIn, BytesOut: d.Stats.BytesOut,
		},
	}
}

// address returns an address of 4 or 16 bytes.
func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}
