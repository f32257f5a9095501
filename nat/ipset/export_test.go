// SPDX-License-Identifier: Apache-2.0

package ipset

// Spare returns the name of the set that takes this one's place when it grows.
func (s *Set) Spare() string { return s.spare().name }
