// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
)

// Kernel is one table of the network namespace that it was opened in.
type Kernel struct {
	family table.Family
	name   string
	guarded
}

// New opens a table, which need not be there. It needs CAP_NET_ADMIN.
func New(f table.Family, name string) (*Kernel, error) {
	s, err := open()
	if err != nil {
		return nil, err
	}
	return &Kernel{family: f, name: name, guarded: guarded{s: s}}, nil
}

// Close ends the use of the Kernel. The table stays.
func (k *Kernel) Close() error { return k.s.close() }

// Name returns the table's name.
func (k *Kernel) Name() string { return k.name }

// Family returns the table's family.
func (k *Kernel) Family() table.Family { return k.family }

// StepError is an error of one of a transaction's steps.
type StepError struct {
	// Step is the index of the step, -1 where the kernel does not say which it is.
	Step int
	Err  error
}

func (e *StepError) Error() string {
	if e.Step < 0 {
		return e.Err.Error()
	}
	return "step " + strconv.Itoa(e.Step) + ": " + e.Err.Error()
}

// Unwrap returns the error of the kernel, an unix.Errno.
func (e *StepError) Unwrap() error { return e.Err }

// Apply does all steps at once, or none where it returns an error.
func (k *Kernel) Apply(steps []table.Step) error {
	if len(steps) == 0 {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	t := newTransaction(k.family, k.name, k.seq+1)
	var ends []uint32 // the last message of each step
	for _, s := range steps {
		if err := t.step(s); err != nil {
			return err
		}
		ends = append(ends, t.seq)
	}
	first, acked := k.seq+1, t.finish()
	k.seq = t.seq
	if err := k.s.send(t.b); err != nil {
		return fmt.Errorf("send a transaction to nf_tables: %w", err)
	}
	for {
		b, err := k.s.receive()
		if err != nil {
			return fmt.Errorf("wait for nf_tables to commit: %w", err)
		}
		var done bool
		var failed error
		whole := messages(b, func(m message) bool {
			if m.kind != unix.NLMSG_ERROR || m.seq < first || m.seq > k.seq {
				return true // an answer to what came before
			}
			errno := errnoOf(m.body)
			if errno != nil {
				failed = &StepError{Step: stepOf(ends, first, m.seq), Err: errno}
				return false
			}
			done = done || m.seq == acked
			return true
		})
		switch {
		case failed != nil:
			return fmt.Errorf("change nf_tables table %s %s: %w", k.family, k.name, failed)
		case done:
			return nil
		case !whole:
			return errors.New("netlink message is cut off")
		}
	}
}

// stepOf returns the step that a message belongs to, given the last message of each.
func stepOf(ends []uint32, first, seq uint32) int {
	if seq <= first { // the beginning of the transaction, which is for all of it
		return -1
	}
	for i, end := range ends {
		if seq <= end {
			return i
		}
	}
	return -1
}

// Read returns what there is of the table, nil where there is none. A dump that was
// disturbed is an error of unix.EINTR, and to be repeated.
func (k *Kernel) Read() (*table.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := &table.State{Sets: map[string]string{}, Chains: map[string]table.ChainState{}}
	found := false
	err := k.list(unix.NFT_MSG_GETTABLE, nil, func(a attrs) error {
		found = found || a.get(unix.NFTA_TABLE_NAME).text() == k.name
		return nil
	})
	if err != nil || !found {
		return nil, k.reading(err)
	}
	err = k.list(unix.NFT_MSG_GETCHAIN, nil, func(a attrs) error {
		if a.get(unix.NFTA_CHAIN_TABLE).text() == k.name {
			out.Chains[a.get(unix.NFTA_CHAIN_NAME).text()] = table.ChainState{Properties: chainProperties(a)}
		}
		return nil
	})
	if err != nil {
		return nil, k.reading(err)
	}
	inTable := func(b *buffer) { b.text(unix.NFTA_SET_TABLE, k.name) } // NFTA_RULE_TABLE is the same
	err = k.list(unix.NFT_MSG_GETSET, inTable, func(a attrs) error {
		s, err := setOf(a)
		if err == nil && a.get(unix.NFTA_SET_TABLE).text() == k.name && setAnonymous(a) == 0 {
			out.Sets[s.Name] = s.Properties()
		}
		return err
	})
	if err != nil {
		return nil, k.reading(err)
	}
	err = k.list(unix.NFT_MSG_GETRULE, inTable, func(a attrs) error {
		if a.get(unix.NFTA_RULE_TABLE).text() != k.name {
			return nil
		}
		name := a.get(unix.NFTA_RULE_CHAIN).text()
		c := out.Chains[name]
		c.Rules = append(c.Rules, userdataOf(a.get(unix.NFTA_RULE_USERDATA), idOfRule))
		out.Chains[name] = c
		return nil
	})
	return out, k.reading(err)
}

func (k *Kernel) reading(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read nf_tables table %s %s: %w", k.family, k.name, err)
}

// list dumps objects of the family.
func (k *Kernel) list(kind uint16, fill func(*buffer), yield func(attrs) error) error {
	k.seq++
	b := &buffer{}
	at := b.begin(kindOf(kind), unix.NLM_F_REQUEST|unix.NLM_F_DUMP, k.seq, uint8(k.family), 0)
	if fill != nil {
		fill(b)
	}
	b.end(at)
	return k.s.dump(b.b, k.seq, func(m message) error {
		if m.family != uint8(k.family) {
			return nil
		}
		return yield(m.body)
	})
}

// Elements calls yield for each element of a set. Of what rules have added it does not
// see what is added meanwhile.
func (k *Kernel) Elements(s *table.Set, yield func(table.Element)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var singles []single
	err := k.dumpElements(s, func(data []byte) {
		e, end := elementOf(s, data)
		if s.Interval && !concatenated(s) {
			singles = append(singles, single{e, end})
		} else {
			yield(e)
		}
	})
	if err != nil {
		return fmt.Errorf("read elements of %s: %w", s.Name, err)
	}
	for _, e := range ranges(singles) {
		yield(e)
	}
	return nil
}

// dumpElements calls yield for each element of a set.
func (k *Kernel) dumpElements(s *table.Set, yield func(data []byte)) error {
	fill := func(b *buffer) {
		b.text(unix.NFTA_SET_ELEM_LIST_TABLE, k.name)
		b.text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	}
	return k.list(unix.NFT_MSG_GETSETELEM, fill, func(a attrs) error {
		a.get(unix.NFTA_SET_ELEM_LIST_ELEMENTS).each(func(_ uint16, data []byte) { yield(data) })
		return nil
	})
}

// Get calls yield for the elements that have the keys, which are a hundred at most, up to
// the first that there is not.
func (k *Kernel) Get(s *table.Set, keys []string, yield func(table.Element)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seq++
	b := &buffer{}
	at := b.begin(kindOf(unix.NFT_MSG_GETSETELEM), unix.NLM_F_REQUEST|unix.NLM_F_ACK, k.seq, uint8(k.family), 0)
	b.text(unix.NFTA_SET_ELEM_LIST_TABLE, k.name)
	b.text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	all := b.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for _, key := range keys {
		one := b.open(unix.NFTA_LIST_ELEM)
		b.data(unix.NFTA_SET_ELEM_KEY, key)
		b.shut(one)
	}
	b.shut(all)
	b.end(at)
	err := k.s.dump(b.b, k.seq, func(m message) error {
		attrs(m.body).get(unix.NFTA_SET_ELEM_LIST_ELEMENTS).each(func(_ uint16, data []byte) {
			e, _ := elementOf(s, data)
			yield(e)
		})
		return nil
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("read elements of %s: %w", s.Name, err)
	}
	return nil
}

func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
