// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"fairlead/e2e/load/workload"
	"fairlead/proxier/model"
)

// save runs iptables-save of the node's variant. The command alone is timed,
// not how it gets into the namespace.
func (b *bench) save(ctx context.Context, out io.Writer, args ...string) (time.Duration, error) {
	var took time.Duration
	err := b.node.Do(func() error {
		cmd := exec.CommandContext(ctx, b.node.Variant.Tool(model.IPv4, "-save"), args...)
		cmd.Stdout = out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		start := time.Now()
		err := cmd.Run()
		took = time.Since(start)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("save rules: %w", err)
	}
	return took, nil
}

// timeSave is how long a bare iptables-save takes: the better of two.
func (b *bench) timeSave(ctx context.Context) (time.Duration, error) {
	one, err := b.save(ctx, nil)
	if err != nil {
		return 0, err
	}
	two, err := b.save(ctx, nil)
	return min(one, two), err
}

// dispatch matches a rule that leads from a cluster IP to a Service's chain, in
// a line of iptables-save.
var dispatch = regexp.MustCompile(`^-A \S+ .*?-d ([0-9.]+)/32 .*-j KUBE-(?:SVC|SVL|EXT)-`)

// dispatchOrder returns where Services are reached, in the order in which their
// rules stand: who walks a list meets them in that order. Where there is no such
// rule it is the order of the addresses.
func (b *bench) dispatchOrder(ctx context.Context) ([]netip.AddrPort, error) {
	r, w := io.Pipe()
	done := make(chan struct{})
	var order []netip.AddrPort
	var perr error
	go func() {
		defer close(done)
		order, perr = readOrder(r, b.plan())
		_ = r.CloseWithError(perr)
	}()
	_, err := b.save(ctx, w, "-t", "nat")
	w.Close()
	<-done
	if err := errors.Join(err, perr); err != nil {
		return nil, err
	}
	if len(order) == 0 {
		for i := range b.plan().Services {
			order = append(order, b.plan().At(i))
		}
	}
	return order, nil
}

func readOrder(in io.Reader, plan workload.Plan) ([]netip.AddrPort, error) {
	seen := map[netip.Addr]bool{}
	for i := range plan.Services {
		seen[plan.VIP(i)] = false
	}
	var order []netip.AddrPort
	s := bufio.NewScanner(in)
	for s.Scan() {
		if !strings.HasPrefix(s.Text(), "-A KUBE-") {
			continue
		}
		m := dispatch.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		addr, err := netip.ParseAddr(m[1])
		if err != nil {
			return nil, fmt.Errorf("read rule %q: %w", s.Text(), err)
		}
		if met, planned := seen[addr]; planned && !met {
			seen[addr] = true
			order = append(order, netip.AddrPortFrom(addr, plan.Port))
		}
	}
	return order, s.Err()
}
