// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"fairlead/nftables/table"
)

// Watch tells when others change tables of ours.
//
// The kernel tells all who listen what each transaction changes, element by element.
// What comes from our own sockets is left out by a filter of the socket, before it takes
// any room: a first load would fill every buffer otherwise.
type Watch struct {
	s      *socket
	stop   [2]int // a pipe
	tables []*Watcher
}

// Watcher tells whether others may have changed one table.
type Watcher struct {
	family table.Family
	name   string
	wake   chan struct{}

	mu      sync.Mutex
	suspect bool
}

// NewWatch listens for the tables of kernels, in the network namespace of the thread.
func NewWatch(kernels ...*Kernel) (*Watch, error) {
	s, err := open()
	if err != nil {
		return nil, err
	}
	w := &Watch{s: s}
	var own []uint32
	for _, k := range kernels {
		own = append(own, k.s.portID)
		w.tables = append(w.tables, &Watcher{family: k.family, name: k.name, wake: make(chan struct{}, 1), suspect: true})
	}
	err = errors.Join(
		ignore(s.fd, own),
		unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES),
		unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}),
		unix.Pipe2(w.stop[:], unix.O_CLOEXEC),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to nf_tables: %w", err), s.close())
	}
	return w, nil
}

// Of returns what tells of the table of a kernel, nil where it is not listened for.
func (w *Watch) Of(k *Kernel) *Watcher {
	for _, t := range w.tables {
		if t.family == k.family && t.name == k.name {
			return t
		}
	}
	return nil
}

// ignore has a socket drop what comes from senders: the first message of a datagram says
// who has made the transaction that all of it is about.
func ignore(fd int, senders []uint32) error {
	const load, equal, give = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	const senderAt = 12 // nlmsg_pid
	prog := []unix.SockFilter{{Code: load, K: senderAt}}
	for i, id := range senders {
		raw := binary.NativeEndian.AppendUint32(nil, id) // filters read in network byte order
		prog = append(prog, unix.SockFilter{Code: equal, Jt: uint8(len(senders) - i), K: binary.BigEndian.Uint32(raw)})
	}
	prog = append(prog, unix.SockFilter{Code: give, K: 0xffffffff}, unix.SockFilter{Code: give})
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
}

// Run receives until ctx is done, and then returns nil. It frees what NewWatch opened.
// After it every Watcher says that its table may have been changed.
func (w *Watch) Run(ctx context.Context) error {
	defer func() {
		_ = w.s.close()
		_ = unix.Close(w.stop[0])
		w.all()
	}()
	unstop := context.AfterFunc(ctx, func() { _ = unix.Close(w.stop[1]) })
	defer unstop()
	for {
		fds := []unix.PollFd{{Fd: int32(w.s.fd), Events: unix.POLLIN}, {Fd: int32(w.stop[0]), Events: unix.POLLIN}}
		if err := retried(func() error { _, err := unix.Poll(fds, -1); return err }); err != nil {
			return fmt.Errorf("wait for notifications of nf_tables: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		b, err := w.s.receive()
		if errors.Is(err, unix.ENOBUFS) { // some are lost
			w.all()
			continue
		}
		if err != nil {
			return fmt.Errorf("receive notifications of nf_tables: %w", err)
		}
		if !messages(b, func(m message) bool { w.take(m); return true }) {
			w.all()
		}
	}
}

// all says that every table may have been changed.
func (w *Watch) all() {
	for _, t := range w.tables {
		t.note()
	}
}

// take notes what a message is about. The table is the first attribute in all of them.
func (w *Watch) take(m message) {
	if m.kind>>8 != unix.NFNL_SUBSYS_NFTABLES || m.kind == kindOf(unix.NFT_MSG_NEWGEN) {
		return
	}
	for _, t := range w.tables {
		if uint8(t.family) == m.family && attrs(m.body).get(unix.NFTA_TABLE_NAME).text() == t.name {
			t.note()
		}
	}
}

func (t *Watcher) note() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.suspect = true
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Wake has a token while there may be something to look at.
func (t *Watcher) Wake() <-chan struct{} { return t.wake }

// Take tells whether others may have changed the table since it was last called; at first
// it does.
func (t *Watcher) Take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.suspect
	t.suspect = false
	select {
	case <-t.wake:
	default:
	}
	return out
}
