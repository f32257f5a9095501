// SPDX-License-Identifier: Apache-2.0

package device

// SetKind makes the device one of another kind, for kernels without dummy devices.
func (d *Device) SetKind(kind string) { d.kind = kind }
