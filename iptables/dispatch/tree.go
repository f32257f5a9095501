// SPDX-License-Identifier: Apache-2.0

// Package dispatch spreads rules that each match one destination over chains,
// so that a packet is compared with few of them: a tree in which every chain
// has a part of the addresses, and at one address a part of the ports.
//
// It looks like this in iptables-save, and chain names tell the way:
//
//	-A KUBE-SERVICES -d 10.96.32.0/20 -j KUBE-SVC-10.96.32.0/20
//	-A KUBE-SVC-10.96.32.0/20 -d 10.96.40.7/32 -p tcp … -j KUBE-SVC-XPGD46QRK7WJZT7O
//
// Its shape depends on the set of keys alone, not on how it came to be, so that
// a restart finds the chains that it left. One key that comes or goes concerns
// one chain, and where a chain gets too long, those that it is split into.
package dispatch

import (
	"cmp"
	"slices"
	"strings"

	"fairlead/iptables/ruleset"
)

const (
	// leafMax is how many keys a chain has before it is split. Walking 32 rules
	// that do not match costs about a microsecond.
	leafMax = 32
	// maxDepth is how many chains a packet passes below the root at most: the
	// kernel takes 15 jumps in a row on the nft variant, of which Services need
	// six besides (NFT_JUMP_STACK_SIZE, linux/netfilter/nf_tables.h). Keys that
	// are made to have more in common than that share a long chain.
	maxDepth = 7
)

// Tree is the rules of all owners below one root.
type Tree struct {
	prefix, match string
	addr          int
	top           *node
	// nodes are those that have a chain of their own, by its name.
	nodes map[string]*node
	// dirty are the names of chains that may have changed; the root's is empty.
	dirty map[string]bool
}

// node is a chain.
type node struct {
	slot
	depth, count int
	// entries are those of a leaf, sorted.
	entries []*entry
	// kids are the chains that an inner node leads to, sorted, and common is
	// what the paths of all that is below have in common.
	kids   []*node
	common string
}

// entry is the rules that an owner has for a key.
type entry struct {
	path, owner string
	rules       []ruleset.Rule
}

func (e *entry) compare(o *entry) int {
	return cmp.Or(strings.Compare(e.path, o.path), strings.Compare(e.owner, o.owner))
}

// New returns an empty Tree for keys whose addresses have addrBits bits, 0 for
// keys that have none. Chains below the root have names that start with prefix,
// and rules that lead to them match what match says besides, which ends with a
// space.
func New(addrBits int, prefix, match string) *Tree {
	t := &Tree{prefix: prefix, match: match, addr: addrBits / 4, nodes: map[string]*node{}, dirty: map[string]bool{}}
	t.top = &node{slot: slot{addr: t.addr}}
	return t
}

// Put sets the rules that an owner has for a key. None are rules, too: the key
// keeps its place, and the tree its shape, while an owner comes and goes. Of two
// owners of one key the one whose name sorts first has its rules first.
func (t *Tree) Put(k Key, owner string, rules []ruleset.Rule) {
	e := &entry{k.path(), owner, rules}
	leaf := t.leafOf(e.path)
	if leaf != nil {
		if i, found := slices.BinarySearchFunc(leaf.entries, e, (*entry).compare); found {
			if !slices.Equal(leaf.entries[i].rules, rules) {
				leaf.entries[i] = e
				t.touch(leaf)
			}
			return
		}
	}
	t.insert(e)
}

// Remove removes what an owner has for a key.
func (t *Tree) Remove(k Key, owner string) {
	e := &entry{path: k.path(), owner: owner}
	leaf := t.leafOf(e.path)
	if leaf == nil {
		return
	}
	i, found := slices.BinarySearchFunc(leaf.entries, e, (*entry).compare)
	if !found {
		return
	}
	leaf.entries = slices.Delete(leaf.entries, i, i+1)
	t.touch(leaf)
	t.shrink(e.path)
}

// Len returns the number of keys and owners.
func (t *Tree) Len() int { return t.top.count }

// Changed returns the chains that have changed since the last call, by name, the
// root's being empty; ok is false for those that are gone.
func (t *Tree) Changed(yield func(name string, rules []ruleset.Rule, ok bool)) {
	for name := range t.dirty {
		n := t.top
		if name != "" {
			n = t.nodes[name]
		}
		if n == nil {
			yield(name, nil, false)
		} else {
			yield(name, t.rules(n), true)
		}
	}
	t.dirty = map[string]bool{} // clear would keep the room for the first list, which takes time, too
}

// Root returns the rules of the root.
func (t *Tree) Root() []ruleset.Rule { return t.rules(t.top) }

// rules returns the rules of a chain.
func (t *Tree) rules(n *node) []ruleset.Rule {
	var out []ruleset.Rule
	for _, kid := range n.kids {
		out = append(out, ruleset.Rule(kid.slot.match(t.match)+"-j "+kid.chain(t.prefix)))
	}
	for _, e := range n.entries {
		out = append(out, e.rules...)
	}
	return out
}

func (t *Tree) touch(n *node) { t.dirty[t.name(n)] = true }

func (t *Tree) name(n *node) string {
	if n == t.top {
		return ""
	}
	return n.chain(t.prefix)
}

// leafOf returns the leaf in which a path has its place, nil where the tree
// would have to grow for it.
func (t *Tree) leafOf(path string) *node {
	n := t.top
	for n != nil && n.kids != nil {
		n = n.kid(path)
	}
	return n
}

// kid returns the child of an inner node that a path leads to, nil where there
// is none.
func (n *node) kid(path string) *node {
	if !strings.HasPrefix(path, n.common) {
		return nil
	}
	i, found := n.search(path)
	if !found {
		return nil
	}
	return n.kids[i]
}

// search returns where the child is, or would be, that a path leads to.
func (n *node) search(path string) (int, bool) {
	digits := path[:len(n.common)+1]
	return slices.BinarySearchFunc(n.kids, digits, func(k *node, d string) int { return strings.Compare(k.digits, d) })
}

// insert adds an entry that is not there.
func (t *Tree) insert(e *entry) {
	n := t.top
	for {
		n.count++
		switch {
		case n.kids == nil:
			i, _ := slices.BinarySearchFunc(n.entries, e, (*entry).compare)
			n.entries = slices.Insert(n.entries, i, e)
			t.touch(n)
			if len(n.entries) > leafMax {
				t.grow(n, n.entries)
			}
			return
		case !strings.HasPrefix(e.path, n.common):
			all := append(n.all(nil), e)
			slices.SortFunc(all, (*entry).compare)
			t.grow(n, all)
			return
		}
		i, found := n.search(e.path)
		if !found {
			n.kids = slices.Insert(n.kids, i, t.node(n, e.path[:len(n.common)+1]))
			t.touch(n)
		}
		n = n.kids[i]
	}
}

// node makes an empty child of n.
func (t *Tree) node(n *node, digits string) *node {
	kid := &node{slot: slot{digits, t.addr}, depth: n.depth + 1}
	t.nodes[t.name(kid)] = kid
	t.touch(kid)
	return kid
}

// grow builds what is below n anew, of sorted entries.
func (t *Tree) grow(n *node, all []*entry) {
	t.forget(n)
	t.touch(n)
	n.kids, n.common, n.entries, n.count = nil, "", all, len(all)
	if len(all) <= leafMax || n.depth == maxDepth {
		return
	}
	common := commonPrefix(all[0].path, all[len(all)-1].path)
	if len(common) == len(all[0].path) {
		return // one destination
	}
	n.common, n.entries = common, nil
	for len(all) > 0 {
		digits := all[0].path[:len(common)+1]
		end := slices.IndexFunc(all, func(e *entry) bool { return !strings.HasPrefix(e.path, digits) })
		if end < 0 {
			end = len(all)
		}
		kid := t.node(n, digits)
		n.kids = append(n.kids, kid)
		t.grow(kid, slices.Clone(all[:end]))
		all = all[end:]
	}
}

// forget takes the chains below n out of the tree.
func (t *Tree) forget(n *node) {
	for _, kid := range n.kids {
		t.forget(kid)
		t.touch(kid)
		delete(t.nodes, t.name(kid))
	}
}

// all returns the entries below n in their order.
func (n *node) all(out []*entry) []*entry {
	for _, kid := range n.kids {
		out = kid.all(out)
	}
	return append(out, n.entries...)
}

// shrink brings the tree into shape after an entry of the path has gone.
func (t *Tree) shrink(path string) {
	way := []*node{t.top}
	for n := t.top; n.kids != nil; {
		n = n.kid(path)
		way = append(way, n)
	}
	for _, n := range way {
		n.count--
	}
	for i, n := range way[:len(way)-1] {
		kid := way[i+1]
		if n.count <= leafMax || kid.count == 0 && len(n.kids) == 2 {
			t.grow(n, n.all(nil))
			return
		}
		if kid.count == 0 {
			at, _ := n.search(path)
			n.kids = slices.Delete(n.kids, at, at+1)
			t.touch(n)
			t.touch(kid)
			delete(t.nodes, t.name(kid))
			return
		}
	}
}

func commonPrefix(a, b string) string {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	return a[:i]
}
