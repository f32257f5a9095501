// SPDX-License-Identifier: Apache-2.0

package servers

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What requests are made of, of linux/ip_vs.h. The library that does all else sends
// them one by one.
const (
	cmdNewDest = 5 // IPVS_CMD_NEW_DEST
	version    = 1 // IPVS_GENL_VERSION

	attrService = 1 // IPVS_CMD_ATTR_SERVICE, which has:
	attrFamily  = 1 // IPVS_SVC_ATTR_AF
	attrProto   = 2 // IPVS_SVC_ATTR_PROTOCOL
	attrAddr    = 3 // IPVS_SVC_ATTR_ADDR
	attrPort    = 4 // IPVS_SVC_ATTR_PORT

	attrDest       = 2  // IPVS_CMD_ATTR_DEST, which has:
	attrDestAddr   = 1  // IPVS_DEST_ATTR_ADDR
	attrDestPort   = 2  // IPVS_DEST_ATTR_PORT
	attrMethod     = 3  // IPVS_DEST_ATTR_FWD_METHOD
	attrWeight     = 4  // IPVS_DEST_ATTR_WEIGHT
	attrUpper      = 5  // IPVS_DEST_ATTR_U_THRESH
	attrLower      = 6  // IPVS_DEST_ATTR_L_THRESH
	attrDestFamily = 11 // IPVS_DEST_ATTR_ADDR_FAMILY
)

// AddDestination adds destinations. It goes on after one that the kernel refuses.
func (k *Kernel) AddDestination(key Key, destinations ...Destination) error {
	refused := func(d Destination, err error) error {
		return fmt.Errorf("add destination %s of virtual server %s: %w", d.Addr, key, kernelError(err, nil))
	}
	var errs []error
	var requests []*nl.NetlinkRequest
	var of []Destination
	for _, d := range destinations {
		if key.Addr.Is6() != k.ipv6 || d.Addr.Addr().Is6() != k.ipv6 {
			errs = append(errs, refused(d, unix.EAFNOSUPPORT))
			continue
		}
		requests, of = append(requests, k.newDestination(key, d)), append(of, d)
	}
	err := k.many.Do(requests, func(i int, err error) { errs = append(errs, refused(of[i], err)) })
	return errors.Join(append(errs, err)...)
}

// newDestination returns the request to add a destination.
func (k *Kernel) newDestination(key Key, d Destination) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(k.genl), 0)
	req.AddData(&nl.Genlmsg{Command: cmdNewDest, Version: version})
	service := nl.NewRtAttr(attrService, nil)
	service.AddRtAttr(attrFamily, nl.Uint16Attr(k.family))
	service.AddRtAttr(attrProto, nl.Uint16Attr(uint16(key.Protocol)))
	service.AddRtAttr(attrAddr, key.Addr.AsSlice())
	service.AddRtAttr(attrPort, binary.BigEndian.AppendUint16(nil, key.Port))
	req.AddData(service)
	dest := nl.NewRtAttr(attrDest, nil)
	dest.AddRtAttr(attrDestAddr, d.Addr.Addr().AsSlice())
	dest.AddRtAttr(attrDestPort, binary.BigEndian.AppendUint16(nil, d.Addr.Port()))
	dest.AddRtAttr(attrMethod, nl.Uint32Attr(ipvs.ConnFwdMasq))
	dest.AddRtAttr(attrWeight, nl.Uint32Attr(uint32(d.Weight)))
	dest.AddRtAttr(attrUpper, nl.Uint32Attr(0))
	dest.AddRtAttr(attrLower, nl.Uint32Attr(0))
	dest.AddRtAttr(attrDestFamily, nl.Uint16Attr(k.family))
	req.AddData(dest)
	return req
}
